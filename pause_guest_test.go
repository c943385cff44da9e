package vmscope_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
)

// runsOn checks that the guest's clock goes on and that its monitor agrees.
func runsOn(t *testing.T, g *guestlab.Guest, after string) {
	t.Helper()
	if s := status(t, g); s != "running" {
		t.Fatalf("after %s the guest is %s", after, s)
	}
	a, err := g.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b.Monotone <= a.Monotone {
		t.Errorf("after %s the guest's clock stands still", after)
	}
}

// testPause checks that a guest stands still during a View of a guest opened
// Paused, and runs again whatever happens in it.
func testPause(t *testing.T, g *guestlab.Guest) {
	ctx := t.Context()
	p, err := vmscope.Open(ctx, g.Name(), vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	err = p.View(ctx, func(v *vmscope.View) error {
		if s := status(t, g); s != "paused" {
			t.Errorf("during a View the guest is %s", s)
		}
		first, err := v.Jiffies()
		if err != nil {
			return err
		}
		forks, err := v.Symbol("total_forks")
		if err != nil {
			return err
		}
		n, err := v.Mem.Uint64(forks)
		if err != nil {
			return err
		}
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
			now, err := v.Jiffies()
			if err != nil {
				return err
			}
			m, err := v.Mem.Uint64(forks)
			if err != nil || now != first || m != n {
				t.Fatalf("the clock went from %d to %d, forks from %d to %d, %v", first, now, n, m, err)
			}
		}
		// A second look meanwhile must not make it run.
		if err := p.View(ctx, func(*vmscope.View) error { return nil }); err != nil {
			return err
		}
		if s := status(t, g); s != "paused" {
			t.Errorf("after a View within a View the guest is %s", s)
		}
		_, err = v.Processes()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	runsOn(t, g, "a View")

	mine := errors.New("mine")
	if err := p.View(ctx, func(*vmscope.View) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	runsOn(t, g, "an error")

	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		p.View(ctx, func(*vmscope.View) error { panic("mine") })
	}()
	runsOn(t, g, "a panic")

	cctx, cancel := context.WithCancel(ctx)
	err = p.View(cctx, func(*vmscope.View) error { cancel(); return cctx.Err() })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	runsOn(t, g, "a cancelled context")
	if err := p.View(cctx, func(*vmscope.View) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a View whose context had ended: %v", err)
	}
	runsOn(t, g, "a context cancelled before")

	// Who was paused before stays so.
	qmp(t, g.QMPSocket(), "stop", nil)
	if err := p.View(ctx, func(v *vmscope.View) error { _, err := v.Processes(); return err }); err != nil {
		t.Error(err)
	}
	if s := status(t, g); s != "paused" {
		t.Errorf("a guest that was paused before is %s", s)
	}
	// Nor does it take a running guest to look at it.
	if s := look(t, g.Name()); len(s.procs) == 0 {
		t.Error("no processes in a paused guest")
	}
	qmp(t, g.QMPSocket(), "cont", nil)
	runsOn(t, g, "cont")

	// Somebody else holds the monitor: pausing fails with a clear word and in
	// good time, looking works.
	c, err := net.Dial("unix", g.QMPSocket())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = p.View(ctx, func(*vmscope.View) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "pause") || time.Since(began) > 30*time.Second {
		t.Errorf("pause without a free monitor: %v after %v", err, time.Since(began))
	}
	t.Logf("monitor held by somebody else: %v (%v)", err, time.Since(began).Round(time.Millisecond))
	if s := look(t, g.Name()); len(s.procs) == 0 {
		t.Error("no processes")
	}
	c.Close()
	runsOn(t, g, "a pause that failed")

	// A dump does not run.
	d, err := vmscope.Open(ctx, g.RAMFile(), vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.View(ctx, func(*vmscope.View) error { return nil }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("pause of a file: %v", err)
	}
}
