package guestlab

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// RAM is how QEMU holds the guest's memory, which decides by which way a tool can reach it.
type RAM int

const (
	SharedFile RAM = iota // a file mapped shared, on a memory file system; Guest.RAMFile is its path
	Memfd                 // a memfd mapped shared, as libvirt does for vhost-user
	Anonymous             // plain private memory: QEMU's default
)

func (r RAM) String() string {
	switch r {
	case SharedFile:
		return "shared"
	case Memfd:
		return "memfd"
	case Anonymous:
		return "anon"
	}
	return fmt.Sprintf("RAM(%d)", int(r))
}

// ParseRAM reads what String prints.
func ParseRAM(s string) (RAM, error) {
	for r := SharedFile; r <= Anonymous; r++ {
		if r.String() == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("guestlab: RAM kind %q is not shared, memfd or anon", s)
}

// Config describes a guest. The zero value of every field but Kernel is a good default.
type Config struct {
	Kernel    string   // short name, one of Kernels
	Name      string   // QEMU's -name and the guest's host name; default unique on this machine
	MemoryMiB int      // default 512
	CPUs      int      // default 1
	CPUModel  string   // QEMU's -cpu; default "qemu64" (4-level paging), on Arm "cortex-a57"; "max" turns on 5-level paging (Arm: LPA2) where the kernel can
	Machine   string   // QEMU's -machine: "q35" (default) or "pc", on Arm "virt"
	RAM       RAM      // default SharedFile
	Append    string   // more kernel command line
	Modules   []string // more modules to load at boot, beside the usual ones
	NoQMP     bool     // start QEMU without a QMP socket

	Disk        string   // raw image to attach as /dev/vda by QEMU's old -drive; default none
	Disks       []Disk   // more disks, by -blockdev; Guest.DiskDevice finds them in the guest
	Libvirt     bool     // have the host's libvirt start QEMU; RAM is then private, and virtio the only bus
	Daemon      *Libvirt // have this libvirt start QEMU; the disks are in its Dir
	AllowReboot bool     // let the guest reboot; else QEMU ends when the guest does
	QEMUArgs    []string // more QEMU arguments, at the end

	// Files are more files of the guest's root, mode 0755: the path there and where it comes from.
	Files map[string]string

	platform *platform // the kernel's
	accel    string    // QEMU's -accel; default software emulation
	agent    string    // the backend of the agent's port; default a socket in the run directory
	ports    int       // how many more ports with a socket in the run directory there are; see runDir.portSocket
}

var guestCount atomic.Int64

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = fmt.Sprintf("lab-%d-%d", os.Getpid(), guestCount.Add(1))
	}
	c.Libvirt = c.Libvirt || c.Daemon != nil
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 512
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	src, err := lookupSource(c.Kernel)
	if err != nil {
		return c, err
	}
	c.platform = src.platform
	if c.CPUModel == "" {
		c.CPUModel = c.platform.cpu
	}
	if c.Machine == "" {
		c.Machine = c.platform.machine
	}
	if c.accel == "" {
		c.accel = "tcg,thread=multi"
	}
	if strings.ContainsAny(c.Name, ",=/\n") || strings.ContainsAny(c.Disk, ",\n") {
		return c, fmt.Errorf("guestlab: name %q or disk %q would be misread on QEMU's command line", c.Name, c.Disk)
	}
	c.Disks = slices.Clone(c.Disks)
	for i := range c.Disks {
		n := i
		if c.Disk != "" {
			n++
		}
		if err := c.Disks[i].withDefaults(n); err != nil {
			return c, err
		}
	}
	return c, nil
}

// cpu is the processor model without CMPXCHG16B, unless it says itself what it wants. QEMU 7.2's emulation of that
// instruction now and then leaves a pointer's bits in the flags register; the kernel's allocator uses it all the time,
// and a guest under load (6.12 above all) dies of a trap after some seconds. Without it the kernel takes a lock.
func (c *Config) cpu() string {
	if !c.platform.pc() || strings.Contains(c.CPUModel, "cx16") {
		return c.CPUModel
	}
	return c.CPUModel + ",-cx16"
}

// qemuArgs is QEMU's command line, without the program. Paths are those of the guest's run directory.
func (c *Config) qemuArgs(image string, d runDir) []string {
	machine := c.Machine
	args := []string{
		"-name", c.Name,
		"-accel", c.accel,
		"-cpu", c.cpu(),
		"-smp", fmt.Sprint(c.CPUs),
		"-m", fmt.Sprintf("%dM", c.MemoryMiB),
	}
	switch c.RAM {
	case SharedFile:
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", c.MemoryMiB, d.ram()))
		machine += ",memory-backend=ram"
	case Memfd:
		args = append(args, "-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", c.MemoryMiB))
		machine += ",memory-backend=ram"
	}
	agent := c.agent
	if agent == "" {
		agent = fmt.Sprintf("socket,path=%s,server=on,wait=off", d.agentSocket())
	}
	args = append(args,
		"-machine", machine,
		"-kernel", image,
		"-initrd", d.initrd(),
		"-append", c.commandLine(),
		"-display", "none", "-nodefaults", "-no-user-config",
		"-chardev", fmt.Sprintf("socket,id=console,path=%s,server=on,wait=off,logfile=%s", d.consoleSocket(), d.consoleLog()),
		"-serial", "chardev:console",
		"-chardev", agent+",id=agent",
		"-device", "virtio-serial-pci,id=ports",
		"-device", "virtserialport,bus=ports.0,chardev=agent,name="+agentPort,
	)
	for i := range c.ports {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,path=%s,server=on,wait=off", i, d.portSocket(i)),
			"-device", fmt.Sprintf("virtserialport,bus=ports.0,chardev=port%d,name=%s", i, portName(i)))
	}
	if !c.NoQMP {
		args = append(args, "-qmp", fmt.Sprintf("unix:%s,server=on,wait=off", d.qmpSocket()))
	}
	if c.Disk != "" {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=disk0,cache=writeback", c.Disk), "-device", "virtio-blk-pci,drive=disk0")
	}
	for i := range c.Disks {
		args = append(args, c.Disks[i].qemuArgs()...)
	}
	if !c.AllowReboot {
		args = append(args, "-no-reboot")
	}
	return append(args, c.QEMUArgs...)
}

// commandLine leaves KASLR as it is by default: on. Few messages go to the slow serial line; the kernel's own
// log has them all. A panic ends QEMU at once rather than after the test's patience.
func (c *Config) commandLine() string {
	return strings.TrimSpace("console=" + c.platform.console + " loglevel=4 panic=-1 " + c.Append)
}
