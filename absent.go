package vmscope

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmscope/kernel/linux"
	"vmscope/kernel/stage"
	"vmscope/mem"
	"vmscope/vm"
)

const (
	// stageTime bounds the search for what a machine without a kernel is doing instead.
	stageTime = 5 * time.Second
	// lastTicks is how long the clock of a kernel that has given its machine up is watched.
	lastTicks = 2 * time.Second
	tickPoll  = 20 * time.Millisecond
)

// explain adds to the error of a search for a kernel what the memory holds instead.
func (g *Guest) explain(ctx context.Context, l vm.Layout, why error) error {
	var t stage.Trace
	if m, err := g.in(l); err == nil && errors.Is(why, linux.ErrNoKernel) {
		sctx, cancel := context.WithTimeout(ctx, stageTime)
		defer cancel()
		err = mem.Guard(func() error { t = stage.Find(sctx, m); return nil })
		if err == nil {
			return fmt.Errorf("%s: %w: %s%s", g.target, why, t.Advice(infoOf(m).Live), unread(m))
		}
	}
	return fmt.Errorf("%s: %w", g.target, why)
}

// unread says which pages cannot be read because the guest's table of its frames and the hypervisor's contradict each
// other: a guest that bends the entry of a page by which kernels are found is not to be taken for an empty machine.
func unread(m vm.Machine) string {
	d, ok := m.(vm.Doubted)
	if !ok {
		return ""
	}
	list, all, err := d.Disputed(1)
	if err != nil || len(list) == 0 {
		return ""
	}
	return fmt.Sprintf("; what is on %d pages is not known, for the guest's table of its frames (p2m) contradicts the hypervisor's (m2p) there, the first at physical address %#x", all, uint64(list[0].Page))
}

// ended is an error if the kernel that was found has given the machine up, and its clock stands still: what runs now is
// firmware, or another kernel that is not up yet. A dump is of the moment it was taken.
func (g *Guest) ended(ctx context.Context, v *linux.View) error {
	by := v.Restarts()
	if by == "" || !infoOf(g.machine).Live {
		return nil
	}
	first, err := v.Jiffies()
	for end := time.Now().Add(lastTicks); err == nil && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tickPoll):
		}
		now, err := g.kernel.View(fresh(g.phys)).Jiffies()
		if err == nil && now != first {
			return nil // it still shuts down
		}
	}
	return fmt.Errorf("%s: %w: Linux %q has ended by %s, and what follows is not up yet: try again in some seconds", g.target, linux.ErrNoKernel, v.Release, by)
}
