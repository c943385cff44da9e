package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/qmp"
	"vmscope/vm/qemu/libvirt"
)

// dial connects to the monitor of process pid.
func dial(ctx context.Context, path string, pid int) (*qmp.Client, error) {
	// A QEMU takes the path over from another that was started with the same.
	// Whoever hands sockets to QEMUs (libvirt) is none.
	return qmp.Dial(ctx, path, func(at int) error {
		if at != pid {
			if p, _, ok := inspect(at); ok {
				return fmt.Errorf("%q is by now the monitor of %v", path, p)
			}
		}
		return nil
	})
}

// way is one of the ways to a monitor: the path of its socket, or, behind viaLibvirt, that of libvirt's daemon, which may be
// any ("").
type way string

const viaLibvirt = "libvirt:"

func (w way) libvirt() bool { return strings.HasPrefix(string(w), viaLibvirt) }

// ways lists the ways to the monitor of a machine, the best first: a socket of its own marks no domain of libvirt as tainted,
// and of one that libvirt holds an answer is to be had only where libvirt's daemon is gone.
func (p Process) ways() []way {
	var own, held []way
	for _, path := range p.QMP {
		if slices.Contains(p.held, path) {
			held = append(held, way(path))
		} else {
			own = append(own, way(path))
		}
	}
	libvirt := []way{way(viaLibvirt + p.Daemon)}
	switch {
	case p.Daemon != "":
		return slices.Concat(libvirt, own, held)
	case p.Libvirt:
		return slices.Concat(own, libvirt, held)
	}
	return own
}

// traceless reports whether a question to the monitor leaves nothing behind, or was asked for: libvirt marks a domain.
func (p Process) traceless() bool {
	ways := p.ways()
	return p.Daemon != "" || len(ways) > 0 && !ways[0].libvirt()
}

// connect takes one way.
func (p Process) connect(ctx context.Context, w way) (qmp.Monitor, error) {
	if daemon, ok := strings.CutPrefix(string(w), viaLibvirt); ok {
		return p.relay(ctx, daemon)
	}
	c, err := dial(ctx, string(w), p.PID)
	if err != nil {
		return nil, fmt.Errorf("monitor %q: %w", w, err)
	}
	return c, nil
}

// monitor takes the first way that leads to the monitor.
func (p Process) monitor(ctx context.Context) (qmp.Monitor, way, error) {
	var errs error
	for _, w := range p.ways() {
		wait := monitorWait
		if w.libvirt() {
			wait = libvirtWait
		}
		wctx, cancel := context.WithTimeout(ctx, wait)
		m, err := p.connect(wctx, w)
		cancel()
		if err == nil {
			return m, w, nil
		}
		errs = errors.Join(errs, err)
		if w.libvirt() && !errors.Is(err, libvirt.ErrNoDaemon) && p.Daemon != "" {
			break // the daemon that was asked for is there: it holds the others
		}
	}
	if errs == nil {
		errs = errNoMonitor("ask the monitor")
	}
	return nil, "", errs
}

// Monitor connects to the monitor of a machine: to a socket, or through libvirt where that holds it. It must be closed soon: a
// socket serves one client at a time.
func (p Process) Monitor(ctx context.Context) (qmp.Monitor, error) {
	m, _, err := p.monitor(ctx)
	return m, err
}

// Alive reports whether the process still runs, and is still the same.
func (p Process) Alive() bool {
	now, _, ok := inspect(p.PID)
	return ok && now.start == p.start
}

// byDaemon stands between the PID and the socket of libvirt's daemon in a target.
const byDaemon = "?libvirt="

// Target names the process for Find and Open, of another process of ours too.
func (p Process) Target() string {
	if p.Daemon == "" {
		return strconv.Itoa(p.PID)
	}
	return strconv.Itoa(p.PID) + byDaemon + p.Daemon
}

// Start is when the process started, in clock ticks since the host's boot: with
// the PID it names the process for good.
func (p Process) Start() uint64 { return p.start }
