// Package vm says what a hypervisor, or a dump that one made, can give: the
// guest's memory always, and more by optional capabilities that are found by
// type assertion. A capability that a source lacks answers with
// errors.ErrUnsupported.
package vm

import (
	"context"
	"errors"

	"vmscope/mem"
)

// Errors of opening a machine, whatever runs it. Each message names the machine and
// says what to do.
var (
	ErrNoVM    = errors.New("no such VM")
	ErrManyVMs = errors.New("several VMs have this name")
	// ErrEncrypted says that the guest's memory is encrypted against its host.
	ErrEncrypted = errors.New("guest memory is encrypted")
)

// Machine is a guest seen from outside: all that a dump has. It is safe for
// concurrent use until Close.
//
// Most machines are also a mem.Ranger, a mem.Extenter and a Describer.
type Machine interface {
	mem.PhysReader
	Close() error
}

// Info is what is known of a machine before anybody looked into its memory.
type Info struct {
	Name string // as its owner named it; "" if it has no name
	PID  int    // of the process that runs it; 0 for a dump, and under a hypervisor that needs none
	// Domain is the number by which a Xen host knows it; 0: none.
	Domain int
	VMM    string // "qemu-kvm", "qemu-tcg", "xen-pvh", "dump"
	RAM    uint64 // bytes
	Live   bool   // the guest may change while it is read
	Slow   bool   // reading all memory takes minutes: ask the registers first where to look
	Route  string // how its memory is read, e.g. "mmap /dev/shm/x", "process_vm_readv"
	// Layout says where RAM lies in guest-physical space and how that is known.
	Layout string
	// System is the operating system that the source says it is of, if that is not
	// Linux, e.g. "Windows (kernel version 15, build 19041)".
	System string
}

// Describer is the capability to describe the machine.
type Describer interface {
	Info() Info
}

// Pauser is the capability to stop the guest's vCPUs. Whoever pauses must
// resume, whatever happens.
type Pauser interface {
	Pause(context.Context) error
	Resume(context.Context) error
}

// Releaser is the capability of a live machine to let go of what it holds of the
// guest between reads. Some hypervisors keep what is mapped: a guest that ends,
// or gives memory back, is not rid of it before. Reads after it take it anew.
type Releaser interface {
	Release() error
}

// Ender is the capability of a live machine to say that it has ended. Mapped
// memory outlives it: what can be read then is the guest's last moment.
type Ender interface {
	// Ended is an ErrUnreachable once the guest has ended.
	Ended() error
}

// Registers are those of one vCPU that matter to find a kernel. Values are
// those of the moment they were read; on a live guest they are history.
type Registers struct {
	CR0, CR3, CR4, EFER uint64
	RIP, RSP, RFLAGS    uint64
	GSBase, KernelGS    uint64
	IDTBase, GDTBase    uint64
	CS, SS              uint16
	// LSTAR, CSTAR and SysenterEIP are where SYSCALL of 64 bits, SYSCALL of 32 bits
	// and SYSENTER lead (MSRs 0xc0000082, 0xc0000083 and 0x176, Intel SDM volume 4,
	// table 2-2), of a PV guest of Xen's LSTAR is where Xen has the first lead; 0:
	// the source does not tell, or nothing was set.
	LSTAR, CSTAR, SysenterEIP uint64
	// General are rax rcx rdx rbx rsp rbp rsi rdi r8 … r15, as instructions number
	// them.
	General [16]uint64
	// Valid says that the source gave CR3 and CR4, not only general registers.
	Valid bool
}

// CPUs is the capability to read the registers of the vCPUs.
type CPUs interface {
	CPUs(context.Context) ([]Registers, error)
}

// Doubted is the capability of a machine whose guest keeps a table of its own of
// which frame of the host each physical page is, beside the hypervisor's (a PV domain
// of Xen's). A page on which the two contradict each other cannot be read, and is
// evidence: kernels change both together.
type Doubted interface {
	// Disputed lists the first such pages, most of them, as they are at the moment,
	// and tells how many there are in all. A guest that just changes the table may
	// have one for an instant.
	Disputed(most int) (list []Disputed, all int, err error)
}

// Disputed is a page that is one frame by the guest's word, where the hypervisor says
// that this frame is another page.
type Disputed struct {
	Page  mem.PA // start of the page
	Frame uint64 // of the host, by the guest's table
	Is    mem.PA // the page that Frame is by the hypervisor's
	Owned bool   // whether Frame is any page at all by the hypervisor's
}

// Layout is one way in which a run of RAM bytes of known size may lie in
// guest-physical space: Ranges in the order of the bytes.
type Layout struct {
	Name   string // "flat", "q35", "pc", "virt", …
	Ranges []mem.Range
	// Set tells layouts of one machine apart that are not of the same bytes: where
	// nothing is found in one, nothing is in another of the same set.
	Set int
}

// Ambiguous is the capability of a machine whose RAM is known but not where it
// lies: it can be looked at in any of several layouts, the likeliest first.
// Which one is right is for a proof to decide (a page-table walk that leads
// where a kernel says it lies), never for a guess.
type Ambiguous interface {
	Layouts() []Layout
	// In returns a view of the same machine in the given layout. It shares the
	// machine's mappings: close the machine, not the view.
	In(Layout) (Machine, error)
}
