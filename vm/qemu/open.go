package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/procram"
	"vmscope/internal/qmp"
	"vmscope/vm"
)

// Errors of Open. Each message names the machine and says what to do.
var (
	ErrNoVM       = vm.ErrNoVM
	ErrManyVMs    = vm.ErrManyVMs
	ErrPermission = procram.ErrPermission
	ErrEncrypted  = vm.ErrEncrypted
)

// Route is a way to the guest's memory.
type Route string

// The routes, the best first.
const (
	// Mmap maps the file or memfd that holds the RAM.
	Mmap Route = "mmap"
	// VMRead copies by process_vm_readv: for RAM that is private to QEMU.
	VMRead Route = "vmread"
	// QMP asks the monitor: slow, for hosts that forbid ptrace. QEMU reads
	// through its own mapping, so that searching all RAM makes pages of a shared
	// file real that the guest never used; the other routes leave holes alone.
	QMP Route = "qmp"
)

// Option changes how Open works.
type Option func(*options)

type options struct {
	route     Route
	writable  bool
	noMonitor bool
}

// Force uses one route or fails.
func Force(r Route) Option { return func(o *options) { o.route = r } }

// Writable makes the machine a mem.PhysWriter. Writing changes the guest under
// its feet.
func Writable() Option { return func(o *options) { o.writable = true } }

// NoMonitor never talks to QEMU's monitor while attaching.
func NoMonitor() Option { return func(o *options) { o.noMonitor = true } }

// Open attaches to a running QEMU, found by its name, its PID, the path of its
// QMP socket, or a Process' Target. It neither stops nor changes the guest.
//
// The machine is a mem.Ranger, a mem.Extenter, a vm.Describer, vm.Ambiguous,
// and, where a monitor is free, a vm.Pauser and vm.CPUs. By the route Mmap it is
// mem.Mapped, by VMRead a mem.VecReader.
func Open(ctx context.Context, target string, opts ...Option) (vm.Machine, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	p, err := Find(target)
	if err != nil {
		return nil, err
	}
	if p.Encrypted != "" {
		return nil, fmt.Errorf("%s: %w against this host (%s): look into it from within, or start it without", p, ErrEncrypted, p.Encrypted)
	}
	if p.XenDomain != "" {
		return nil, fmt.Errorf("%w: %s is but the device model of a Xen domain, and has none of its memory: use xen:%s", ErrNoVM, p, p.XenDomain)
	}
	return attach(ctx, p, o)
}

// String names the process for messages.
func (p Process) String() string {
	if p.Name == "" {
		return fmt.Sprintf("VM without name (pid %d)", p.PID)
	}
	return fmt.Sprintf("VM %q (pid %d)", p.Name, p.PID)
}

// Find turns a name, a PID, the path of a QMP socket, or a Target into a
// process.
func Find(target string) (Process, error) {
	if target == "" {
		return Process{}, fmt.Errorf("%w: the target is empty: give a name, a PID or the path of a QMP socket", ErrNoVM)
	}
	if first, daemon, ok := strings.Cut(target, byDaemon); ok {
		pid, err := strconv.Atoi(first)
		if p, _, ok := inspect(pid); ok && err == nil {
			p.Daemon = daemon
			return p, nil
		}
		return Process{}, fmt.Errorf("%w: process %q is not a QEMU", ErrNoVM, first)
	}
	if st, err := os.Stat(target); err == nil && st.Mode()&os.ModeSocket != 0 {
		return findSocket(target)
	} else if strings.Contains(target, "/") {
		if err == nil {
			err = errors.New("not a socket")
		}
		return Process{}, fmt.Errorf("%w: QMP socket %q: %w", ErrNoVM, target, err)
	}
	all, err := List()
	if err != nil {
		return Process{}, err
	}
	var hits []Process
	for _, p := range all {
		if p.Name == target {
			hits = append(hits, p)
		}
	}
	if pid, err := strconv.Atoi(target); err == nil && len(hits) == 0 {
		if p, _, ok := inspect(pid); ok {
			return p, nil
		}
		if unix.Kill(pid, 0) != unix.ESRCH && pid > 0 {
			return Process{}, fmt.Errorf("%w: process %d is not a QEMU; %s", ErrNoVM, pid, running(all))
		}
	}
	switch len(hits) {
	case 0:
		return Process{}, fmt.Errorf("%w: %q; %s", ErrNoVM, target, running(all))
	case 1:
		return hits[0], nil
	}
	var pids []string
	for _, p := range hits {
		pids = append(pids, strconv.Itoa(p.PID))
	}
	return Process{}, fmt.Errorf("%w: %q; choose one by its PID: %s", ErrManyVMs, target, strings.Join(pids, ", "))
}

// running lists the machines there are, for a message.
func running(all []Process) string {
	if len(all) == 0 {
		return "no QEMU runs on this host (or none that we may see)"
	}
	var s []string
	for _, p := range all[:min(len(all), 20)] {
		name := "without name"
		if p.Name != "" {
			name = strconv.Quote(p.Name)
		}
		s = append(s, fmt.Sprintf("%s (pid %d)", name, p.PID))
	}
	if len(all) > 20 {
		s = append(s, fmt.Sprintf("and %d more", len(all)-20))
	}
	return "running: " + strings.Join(s, ", ")
}

// findSocket finds the QEMU that listens on a socket: by whom the kernel says we
// talk to, else, for sockets that QEMU was handed, by the command lines.
func findSocket(path string) (Process, error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	pid := 0
	if err == nil {
		pid, err = qmp.Peer(conn)
		conn.Close()
	}
	if p, _, ok := inspect(pid); ok && err == nil {
		return p, nil
	}
	all, lerr := List()
	if lerr != nil {
		return Process{}, lerr
	}
	for _, p := range all {
		if slices.ContainsFunc(p.QMP, func(q string) bool { return sameFile(q, path) }) {
			return p, nil
		}
	}
	if err != nil {
		return Process{}, fmt.Errorf("%w: QMP socket %q: %w", ErrNoVM, path, err)
	}
	return Process{}, fmt.Errorf("%w: QMP socket %q belongs to process %d, which is not a QEMU that we can see; %s", ErrNoVM, path, pid, running(all))
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
