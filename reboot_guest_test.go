package vmscope_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
)

// TestRebootGuest reboots a guest, and then goes over into a kernel of another
// release, while it is open by every route: the next View must show the running
// kernel without anyone's action.
func TestRebootGuest(t *testing.T) {
	kernels := guestlab.TestKernels(t)
	old, young := kernels[0], kernels[len(kernels)-1]
	g := guestlab.Boot(t, guestlab.Config{Kernel: old, AllowReboot: true, MemoryMiB: 768})
	open := make(map[string]*vmscope.Guest)
	for name, c := range map[string]struct {
		target string
		opts   []vmscope.Option
	}{
		"mmap":          {g.Name(), nil},
		"vmread":        {g.Name(), []vmscope.Option{vmscope.Route("vmread")}},
		"registers":     {g.Name(), []vmscope.Option{vmscope.Registers()}},
		"file":          {g.RAMFile(), nil},
		"opened before": {g.QMPSocket(), nil},
	} {
		vg, err := vmscope.Open(t.Context(), c.target, c.opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer vg.Close()
		open[name] = vg
	}
	views := func(after string) {
		t.Helper()
		all := make(map[string]seen)
		text := make(map[string]uint64)
		w := truthOf(t, g, func() {
			for name, vg := range open {
				if name == "opened before" && after == "the first boot" {
					continue // its first look is after the reboot
				}
				var s seen
				err := vg.View(t.Context(), func(v *vmscope.View) (err error) {
					text[name] = uint64(v.Text)
					if s, err = see(v); err != nil {
						err = fmt.Errorf("kernel %s with _stext at physical %#x: %w; rejected: %q", v.Release, uint64(v.Kernel.Phys), err, v.Report.Rejected)
					}
					return err
				})
				if err != nil {
					t.Errorf("after %s by %s: %v", after, name, err)
					continue
				}
				all[name] = s
			}
		})
		syms, err := g.Run(t.Context(), "grep ' _stext$' /proc/kallsyms")
		if err != nil {
			t.Fatal(err)
		}
		want := number(t, "0x"+syms[:16])
		for name, s := range all {
			if text[name] != want {
				t.Errorf("after %s by %s: _stext %#x, the guest says %#x", after, name, text[name], want)
			}
			t.Run(after+" by "+name, func(t *testing.T) { w.check(t, s) })
		}
	}
	views("the first boot")
	if err := g.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	views("a reboot")
	if err := g.Kexec(t.Context(), young); err != nil {
		t.Fatal(err)
	}
	views("an upgrade")
	if err := g.Kexec(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	views("a downgrade")
	t.Run("panic", func(t *testing.T) { testPanic(t, g) })
}

// testPanic has a guest's kernel panic, which must be told, and all of it be seen as before.
func testPanic(t *testing.T, g *guestlab.Guest) {
	look := func() (state string, s seen) {
		err := vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) (err error) {
			if state, err = v.State(); err == nil {
				s, err = see(v)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return state, s
	}
	if state, _ := look(); state != "running" {
		t.Errorf("a guest that answers is %s", state)
	}
	w := truthOf(t, g, func() {})
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := g.Run(ctx, "echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger")
		answered <- err
	}()
	var last seen
	until(t, func() bool {
		var state string
		state, last = look()
		return state == "panicked"
	})
	cancel()
	if err := <-answered; err == nil {
		t.Error("a guest that panicked answers")
	}
	for pid, p := range w.procs {
		if !slices.ContainsFunc(last.procs, func(q kernel.Process) bool { return q.PID == pid }) {
			t.Errorf("process %d (%s) was there before the panic", pid, p.Comm)
		}
	}
}
