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
	types     string
	systemMap string
	progress  func(done, total uint64)
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

// Progress is told how much of a dump was read that is compressed as a whole, in
// bytes, and zeros when that is over.
func Progress(f func(done, total uint64)) Option { return func(o *options) { o.progress = f } }

// Route forces the way to a live guest's memory: "mmap", "vmread" or "qmp".
// Otherwise the fastest that works is taken.
func Route(name string) Option { return func(o *options) { o.route = name } }

// Types reads the kernel's types from a file, and the symbols that it has: for
// kernels that carry no BTF (CONFIG_DEBUG_INFO_BTF). It may be a vmlinux with
// DWARF or BTF, raw BTF, a symbol table of Volatility 3, or what 'vmscope
// profile' makes of these; which, is told by its content. A file of another kernel
// is a linux.ErrOtherKernel of View.
func Types(path string) Option { return func(o *options) { o.types = path } }

// SystemMap reads symbols from a file that kallsyms may lack, those of data
// (CONFIG_KALLSYMS_ALL): a System.map, or what Types takes.
func SystemMap(path string) Option { return func(o *options) { o.systemMap = path } }
