package detect

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmscope/ctype"
	"vmscope/mem"
)

// A running guest changes while two of its lists are compared: what is in one
// and not in the other may just come or go. Only what is found in each of some
// looks, with pauses in which a guest finishes what it was at, is reported.
const (
	persistLooks = 4
	persistPause = 3 * time.Millisecond
)

// persists reports what find finds each time. A look that finds nothing above
// inventory ends it at once, so a guest with nothing to find is looked at once,
// and so is one that stands still; what is inventory is as the last look has it.
//
// A look that something disturbed, such as a contradiction, may lack findings
// and takes none away. If the last one was disturbed, why is returned, beside
// what at least two looks found.
func persists(ctx context.Context, l *Look, report func(Finding), find func(report func(Finding)) error) error {
	if l.Still() {
		return find(report)
	}
	var kept, inventory []Finding // of looks that were not disturbed; of the last one
	var all []found               // of all looks
	looked := false
	for i := range persistLooks {
		if i > 0 {
			if err := errors.Join(grace(ctx, l), ran(ctx, l), pause(ctx, persistPause<<i)); err != nil {
				return err
			}
			forget(l)
			l.renew() // modules and BPF programs may have come and gone
		}
		var now []Finding
		inventory = nil
		err := find(func(f Finding) {
			switch {
			case f.Severity == Info && len(inventory) <= maxFindings: // one more than are shown
				inventory = append(inventory, f)
			case f.Severity != Info && len(now) <= maxFindings:
				now = append(now, f)
			}
		})
		switch {
		case err == nil && looked:
			kept = slices.DeleteFunc(now, func(f Finding) bool { return !slices.ContainsFunc(kept, f.same) })
		case err == nil:
			kept, looked = now, true
		case ctx.Err() != nil || errors.Is(err, mem.ErrUnreachable):
			return err
		case i == persistLooks-1 || len(now)+len(inventory) == 0 && !passing(err):
			for _, f := range now {
				if i := slices.IndexFunc(all, func(g found) bool { return f.same(g.Finding) }); i >= 0 && all[i].times > 0 {
					report(f)
				}
			}
			for _, f := range inventory {
				report(f)
			}
			return err
		}
		for _, f := range now {
			if i := slices.IndexFunc(all, func(g found) bool { return f.same(g.Finding) }); i >= 0 {
				all[i].times++
			} else if len(all) <= maxFindings {
				all = append(all, found{f, 1})
			}
		}
		if err == nil && len(kept) == 0 {
			break
		}
	}
	for _, f := range append(kept, inventory...) {
		report(f)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

type graceLayout struct {
	Seq ctype.Field `c:"rcu_state.gp_seq"` // kernel/rcu/tree.h
}

// Bounds of waiting for a grace period.
const (
	graceTries = 40
	gracePause = 10 * time.Millisecond
)

// grace waits until the guest has freed what it was about to free: if a grace
// period of RCU runs, until the one behind it has ended, which may take a while
// on a guest that starves. What was unlisted, such as a module's text, stays in
// memory until then. A guest that is idle runs none.
func grace(ctx context.Context, l *Look) error {
	f, err := bind[graceLayout](l)
	if err != nil {
		return nil // not a kernel with this way of RCU
	}
	at, err := l.Symbol("rcu_state")
	if err != nil {
		return nil
	}
	const state = 3 // the low bits tell whether one runs; see kernel/rcu/rcu.h
	s := uncached(l)
	seq, err := s.Uint64(f.Seq.At(at))
	if err != nil || seq&state == 0 {
		return nil
	}
	end := (seq + 2*state + 1) &^ state
	for range graceTries {
		if now, err := s.Uint64(f.Seq.At(at)); err != nil || now-end < 1<<63 {
			return nil
		}
		if err := pause(ctx, gracePause); err != nil {
			return err
		}
	}
	return nil
}

// found is a finding and in how many looks it was.
type found struct {
	Finding
	times int
}

// passing reports whether an error may come from a guest that changes while it is
// read.
func passing(err error) bool {
	return errors.Is(err, mem.ErrInconsistent) || errors.Is(err, mem.ErrNotMapped) || errors.Is(err, mem.ErrNoRAM)
}
