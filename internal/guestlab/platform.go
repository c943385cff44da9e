package guestlab

// A platform is a kind of machine that the lab has kernels for.
type platform struct {
	arch    string // Debian's and Go's name of it
	goarch  string
	qemu    string // the emulator; any other than a PC's comes in a package of its own
	machine string // defaults of QEMU's -machine and -cpu
	cpu     string
	console string // the kernel's name of the first serial line
}

var (
	amd64 = &platform{arch: "amd64", goarch: "amd64", qemu: qemu, machine: "q35", cpu: "qemu64", console: "ttyS0"}
	i386  = &platform{arch: "i386", goarch: "386", qemu: qemu, machine: "q35", cpu: "qemu64", console: "ttyS0"}
	arm64 = &platform{arch: "arm64", goarch: "arm64", qemu: "qemu-system-aarch64", machine: "virt", cpu: "cortex-a57", console: "ttyAMA0"}
	armhf = &platform{arch: "armhf", goarch: "arm", qemu: "qemu-system-arm", machine: "virt,highmem=off", cpu: "cortex-a15", console: "ttyAMA0"}
)

// pc reports whether the machine is one of x86.
func (p *platform) pc() bool { return p.qemu == qemu }
