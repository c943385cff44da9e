package qemu

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"vmscope/internal/qmp"
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

// Monitor connects to the monitor of a machine: to its socket, or where another
// holds that and libvirt's virsh is there and knows the machine, through
// libvirt. It must be closed soon: a socket serves one client at a time.
func (p Process) Monitor(ctx context.Context) (qmp.Monitor, error) {
	// Who holds a monitor for good is most often libvirt.
	wait := monitorWait
	_, virsh := exec.LookPath("virsh")
	if virsh == nil {
		wait = virshAfter
	}
	m, errs := p.sockets(ctx, wait)
	if m != nil {
		return m, nil
	}
	if virsh == nil && ctx.Err() == nil {
		v, err := qmp.NewVirsh(ctx, p.Name)
		if err == nil {
			return v, nil
		}
		if m, errs = p.sockets(ctx, monitorWait); m != nil {
			return m, nil
		}
	}
	if errs == nil {
		errs = errNoMonitor("ask the monitor")
	}
	return nil, errs
}

// sockets connects to the first socket that answers.
func (p Process) sockets(ctx context.Context, wait time.Duration) (qmp.Monitor, error) {
	var errs error
	for _, path := range p.QMP {
		dctx, cancel := context.WithTimeout(ctx, wait)
		c, err := dial(dctx, path, p.PID)
		cancel()
		if err == nil {
			return c, nil
		}
		errs = errors.Join(errs, fmt.Errorf("monitor %q: %w", path, err))
	}
	return nil, errs
}

// Alive reports whether the process still runs, and is still the same.
func (p Process) Alive() bool {
	now, _, ok := inspect(p.PID)
	return ok && now.start == p.start
}

// Start is when the process started, in clock ticks since the host's boot: with
// the PID it names the process for good.
func (p Process) Start() uint64 { return p.start }
