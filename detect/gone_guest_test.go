package detect

import (
	"errors"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
)

// TestGone sweeps a guest without a pause while it reboots again and again: what a reboot leaves in memory is no finding.
func TestGone(t *testing.T) {
	lab := guestlab.Boot(t, guestlab.Config{Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, AllowReboot: true})
	g, err := vmscope.Open(t.Context(), lab.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	rebooted := make(chan error)
	go func() {
		for range 3 {
			if err := lab.Reboot(t.Context()); err != nil {
				rebooted <- err
				return
			}
		}
		rebooted <- nil
	}()
	sweeps, gone := 0, 0
	done := errors.New("done")
	err = Watch(t.Context(), g, All(), time.Millisecond, func(changes []Change, r Result, err error) error {
		sweeps++
		if r.Gone {
			gone++
		}
		for _, c := range changes {
			if c.Severity != Info && !c.Gone {
				t.Errorf("sweep %d: %s (%s)", sweeps, c.Summary, c.ID)
			}
		}
		select {
		case err := <-rebooted:
			return errors.Join(done, err)
		default:
			return nil
		}
	})
	if !errors.Is(err, done) {
		t.Error(err)
	}
	t.Logf("%d sweeps, %d of them of a kernel that went", sweeps, gone)
}
