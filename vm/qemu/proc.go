// Package qemu attaches to a running QEMU (KVM or TCG) from outside: its
// process is found in /proc, the guest's RAM in its mappings. No monitor, no
// start option and no agent is needed; where a monitor is free it is used
// briefly to make sure.
//
// Nothing here stops the guest unless Pause is called.
package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vmscope/internal/procram"
)

// Process is a QEMU that runs on this host. Names and paths are those of its
// command line, chosen by whoever started it: quote them.
type Process struct {
	PID     int
	Name    string // of -name; "" if it has none
	Program string // base name of the emulator
	Machine string // board, e.g. "q35"; "" if not told
	Accel   string // "kvm", "tcg", "xen", …
	RAM     uint64 // main memory, bytes; 0 if not told
	QMP     []string
	// Libvirt says that libvirt started it, as the domain Name, and holds one of its monitors.
	Libvirt bool
	// Daemon is the socket of libvirt's daemon by which its monitor is asked; "" if nobody chose one.
	Daemon string
	// Encrypted names the confidential-computing object (e.g. "sev-guest") that
	// keeps the guest's memory from the host; "" if there is none.
	Encrypted string
	// XenDomain is the number of the Xen domain whose devices it emulates ("0": it serves disks of all); "" if of none. Such a
	// QEMU has no guest's memory: the hypervisor does.
	XenDomain string

	start uint64   // start time in clock ticks: tells a reused PID
	held  []string // those of QMP that libvirt holds
	conf  config
}

// List finds the QEMU processes that run, sorted by PID as /proc is. Processes
// that end meanwhile are left out.
func List() ([]Process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Process
	parents := map[int]int{}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		p, ppid, ok := inspect(pid)
		if ok {
			out, parents[pid] = append(out, p), ppid
		}
	}
	return dropForks(out, parents), nil
}

// dropForks leaves out helpers that a QEMU forked and that have not become
// another program: same command line as the parent.
func dropForks(in []Process, parents map[int]int) []Process {
	byPID := map[int]int{}
	for i := range in {
		byPID[in[i].PID] = i
	}
	var out []Process
	for _, p := range in {
		if i, ok := byPID[parents[p.PID]]; ok {
			if q := in[i]; q.Program == p.Program && q.conf.raw == p.conf.raw {
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

// inspect tells whether pid is a QEMU system emulator, and what it says of
// itself.
func inspect(pid int) (p Process, ppid int, ok bool) {
	proc := "/proc/" + strconv.Itoa(pid)
	cmdline, err := os.ReadFile(proc + "/cmdline")
	if err != nil || len(cmdline) == 0 { // gone, a zombie, a kernel thread
		return p, 0, false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	prog := args[0]
	// The program file tells for sure, if we may see it; argument 0 is a claim.
	if exe, err := os.Readlink(proc + "/exe"); err == nil {
		prog = strings.TrimSuffix(exe, " (deleted)")
		if !emulator(prog) && !(emulator(args[0]) && wrapped(prog)) {
			return p, 0, false
		}
		if !emulator(prog) {
			prog = args[0]
		}
	}
	if !emulator(prog) {
		return p, 0, false
	}
	ppid, start, err := procram.Stat(pid)
	if err != nil {
		return p, 0, false
	}
	c := parseArgs(args)
	c.raw = string(cmdline)
	if a := archOf(prog); a != "" {
		c.arch = a
	}
	p = Process{
		PID: pid, Name: c.name, Program: filepath.Base(prog), Machine: c.machine, Accel: accel(proc, c.accel),
		RAM: c.ram, Encrypted: c.secret, XenDomain: c.domid, start: start, conf: c,
	}
	for _, q := range c.qmp {
		p.Libvirt = p.Libvirt || q.libvirt
		if path := q.at(pid); path != "" {
			p.QMP = append(p.QMP, path)
			if q.libvirt {
				p.held = append(p.held, path)
			}
		}
	}
	return p, ppid, true
}

// emulator reports whether a path is that of a system emulator of QEMU, under
// the names that distributions give it.
func emulator(path string) bool {
	base := filepath.Base(path)
	switch base {
	case "qemu-kvm", "kvm", "qemu", "qemu-dm":
		return true
	}
	// Nix wraps programs as .qemu-system-x86_64-wrapped, and Debian has xen-qemu-system-i386 for Xen's domains.
	for _, prefix := range []string{"qemu-system-", ".qemu-system-", "xen-qemu-system-"} {
		if strings.HasPrefix(base, prefix) {
			return true
		}
	}
	return false
}

// wrapped reports whether a program is the dynamic loader, which runs others
// under their own name, so that argument 0 is to be believed.
func wrapped(exe string) bool {
	base := filepath.Base(exe)
	return strings.HasPrefix(base, "ld-linux") || strings.HasPrefix(base, "ld-musl") || base == "ld.so"
}

// accel tells the accelerator by the open /dev/kvm, else by the command line.
func accel(proc, told string) string {
	fds, err := os.ReadDir(proc + "/fd")
	if err == nil {
		for _, e := range fds {
			if l, err := os.Readlink(proc + "/fd/" + e.Name()); err == nil && strings.Contains(l, "kvm-vm") {
				return "kvm"
			}
		}
		if told == "kvm" { // it may have fallen back ("accel=kvm:tcg")
			return "tcg"
		}
	}
	if told == "" {
		return "tcg"
	}
	return told
}

// at gives a path by which this process reaches the socket: the one of the
// command line, seen from the other's root and working directory, or the one
// that an inherited descriptor is bound to. "" if there is none.
func (q qmpEnd) at(pid int) string {
	proc := "/proc/" + strconv.Itoa(pid)
	path := q.path
	if path == "" && q.fd >= 0 {
		link, err := os.Readlink(proc + "/fd/" + strconv.Itoa(q.fd))
		if err != nil {
			return ""
		}
		ino, ok := strings.CutPrefix(link, "socket:[")
		if !ok {
			return ""
		}
		path = boundPath(proc, strings.TrimSuffix(ino, "]"))
	}
	if path == "" {
		return ""
	}
	if !filepath.IsAbs(path) {
		if cwd, err := os.Readlink(proc + "/cwd"); err == nil {
			path = filepath.Join(cwd, path)
		}
	}
	// What the path leads to here may be another machine's.
	inside := proc + "/root" + path
	if _, err := os.Stat(inside); sameFile(path, inside) || errors.Is(err, os.ErrPermission) {
		return path
	}
	return inside
}

// boundPath finds the path that a listening unix socket is bound to.
func boundPath(proc, inode string) string {
	for _, s := range unixSockets(proc) {
		if s.inode == inode {
			return s.path
		}
	}
	return ""
}

// unixSocket is a line of /proc/net/unix.
type unixSocket struct{ inode, path string }

func unixSockets(proc string) []unixSocket {
	b, err := os.ReadFile(proc + "/net/unix")
	if err != nil {
		return nil
	}
	var out []unixSocket
	for line := range strings.Lines(string(b)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.SplitN(strings.Join(strings.Fields(strings.TrimSuffix(line, "\n")), " "), " ", 8)
		if len(f) == 8 {
			out = append(out, unixSocket{f[6], f[7]})
		}
	}
	return out
}
