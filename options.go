package vmscope

// Option changes how a guest is opened.
type Option func(*options)

type options struct {
	layout    string
	paused    bool
	writable  bool
	registers bool
	truncated bool
	route     string
}

// Layout tells how a raw dump lies in guest-physical space ("q35", "pc",
// "virt", "flat", "low=3G"); otherwise it is found by trial and proved.
func Layout(kind string) Option { return func(o *options) { o.layout = kind } }

// Paused stops the guest's vCPUs for the time of each View and Update. It needs
// the guest's monitor (QMP). The guest runs again afterwards whatever happens
// to this process; a guest that was paused before stays so.
func Paused() Option { return func(o *options) { o.paused = true } }

// Writable opens the door of Update.
func Writable() Option { return func(o *options) { o.writable = true } }

// Registers asks the monitor for the vCPUs' registers to confirm which kernel
// runs, where several look as if they did. None is needed otherwise.
func Registers() Option { return func(o *options) { o.registers = true } }

// AllowTruncated opens a dump of which the end is missing.
func AllowTruncated() Option { return func(o *options) { o.truncated = true } }

// Route forces the way to a live guest's memory: "mmap", "vmread" or "qmp".
// Otherwise the fastest that works is taken.
func Route(name string) Option { return func(o *options) { o.route = name } }
