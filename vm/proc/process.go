// Package proc attaches to the VMMs that have no monitor to ask: Firecracker,
// cloud-hypervisor, crosvm, kvmtool, and any other process that runs a guest. All
// that it needs stands in /proc/PID: the program and its arguments, the open
// files, the mappings. The RAM is the largest of those; where it lies in the
// guest's physical memory is documented for each VMM, and proved by the kernel in
// it (vm.Ambiguous).
//
// Nothing here stops the guest, or talks to its VMM.
package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/procram"
	"vmscope/vm"
)

// Process is a process that runs a guest. Names are those that whoever started it
// chose: quote them.
type Process struct {
	PID  int
	Name string // as the VMM was told; "" if it was not
	VMM  string // "firecracker", …; of another VMM the name of its program
	RAM  uint64 // bytes; 0 if it is not known
	// Encrypted says why the guest's memory cannot be read from the host; "" if it
	// can.
	Encrypted string

	kind   *kind
	socket string
	start  uint64 // start time in clock ticks: tells a reused PID
	ppid   int
}

// String names the process for messages.
func (p Process) String() string {
	if p.Name == "" {
		return fmt.Sprintf("%s VM (pid %d)", p.VMM, p.PID)
	}
	return fmt.Sprintf("%s VM %q (pid %d)", p.VMM, p.Name, p.PID)
}

// List finds the processes that run guests, but for QEMU's (package qemu): those
// of VMMs that we know, and those that have a VM of KVM open. Processes that end
// meanwhile are left out.
func List() ([]Process, error) {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Process
	for _, e := range dir {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := inspect(pid, false); ok {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return a.PID - b.PID })
	return withoutHelpers(out), nil
}

// withoutHelpers leaves out processes that a VMM started from its own program,
// to run a device (crosvm): they may map the RAM too.
func withoutHelpers(in []Process) []Process {
	var out []Process
	for _, p := range in {
		if !slices.ContainsFunc(in, func(q Process) bool { return q.PID == p.ppid && q.VMM == p.VMM }) {
			out = append(out, p)
		}
	}
	return out
}

// inspect tells whether pid runs a guest, and what it says of itself; any: it is
// believed to.
func inspect(pid int, any bool) (p Process, ok bool) {
	proc := "/proc/" + strconv.Itoa(pid)
	cmdline, err := os.ReadFile(proc + "/cmdline")
	if err != nil || len(cmdline) == 0 { // gone, a zombie, a kernel thread
		return p, false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	program := base(args[0])
	// The program file tells for sure, if we may see it; argument 0 is a claim.
	if exe, err := os.Readlink(proc + "/exe"); err == nil {
		program = base(exe)
	}
	k := kindOf(program)
	if k == nil {
		if !any && (strings.Contains(program, "qemu") || program == "kvm" || !runsKVM(proc)) {
			return p, false
		}
		k = foreign(program)
	}
	ppid, start, err := procram.Stat(pid)
	if err != nil {
		return p, false
	}
	t := k.read(args[1:])
	p = Process{PID: pid, Name: t.name, VMM: k.name, RAM: t.ram, Encrypted: t.secret, kind: k, socket: t.socket, start: start, ppid: ppid}
	if p.RAM == 0 {
		if m, err := procram.Mappings(pid); err == nil {
			if a := arrangements(p, m); len(a) > 0 {
				p.RAM = a[0].size()
			}
		}
	}
	return p, true
}

// runsKVM reports whether a process has a VM of KVM open.
func runsKVM(proc string) bool {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(fds, func(e os.DirEntry) bool {
		l, err := os.Readlink(proc + "/fd/" + e.Name())
		return err == nil && l == "anon_inode:kvm-vm"
	})
}

// Find turns what names a VM of a VMM into a process: its name, its PID, or the
// path of its API's socket. An empty VMM takes any process by its PID.
func Find(vmm, target string) (Process, error) {
	pid, err := strconv.Atoi(target)
	if vmm == "" {
		if err != nil || pid <= 0 {
			return Process{}, fmt.Errorf("%w: pid:%s: it is no process id", vm.ErrNoVM, target)
		}
		p, ok := inspect(pid, true)
		if !ok {
			return Process{}, fmt.Errorf("%w: no process %d runs", vm.ErrNoVM, pid)
		}
		return p, nil
	}
	all, lerr := List()
	if lerr != nil {
		return Process{}, lerr
	}
	all = slices.DeleteFunc(all, func(p Process) bool { return p.VMM != vmm })
	is := func(f func(p Process) bool) []Process {
		return slices.DeleteFunc(slices.Clone(all), func(p Process) bool { return !f(p) })
	}
	hits := is(func(p Process) bool { return p.Name == target && target != "" })
	if len(hits) == 0 && err == nil {
		hits = is(func(p Process) bool { return p.PID == pid })
	}
	if len(hits) == 0 && strings.Contains(target, "/") {
		hits = is(func(p Process) bool { return p.serves(target) })
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		return Process{}, fmt.Errorf("%w: no %s VM %q; %s", vm.ErrNoVM, vmm, target, running(all))
	}
	return Process{}, fmt.Errorf("%w: %s; choose one by its PID", vm.ErrManyVMs, running(hits))
}

// serves reports whether the VMM's API has its socket at path.
func (p Process) serves(path string) bool {
	at := p.socket
	if at == "" {
		return false
	}
	proc := fmt.Sprintf("/proc/%d/", p.PID)
	if filepath.IsAbs(at) {
		at = proc + "root" + at
	} else {
		at = proc + "cwd/" + at
	}
	a, err1 := os.Stat(at)
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// running lists machines for a message.
func running(all []Process) string {
	if len(all) == 0 {
		return "none runs on this host (or none that we may see)"
	}
	var s []string
	for _, p := range all[:min(len(all), 20)] {
		s = append(s, p.String())
	}
	if len(all) > 20 {
		s = append(s, fmt.Sprintf("and %d more", len(all)-20))
	}
	return "running: " + strings.Join(s, ", ")
}

// errNoRAM says that no mapping looks like the RAM.
var errNoRAM = errors.New("guest RAM not found among the mappings of the process")
