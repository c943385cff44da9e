package detect

import (
	"context"
	"errors"
	"time"

	"vmscope/ctype"
	"vmscope/mem"
)

// A guest that the host does not let run shows the same at each look, whatever it
// was about to do. So between two looks its clock has to go on more than once: it
// catches up at a single stroke when a virtual CPU comes to run again.
const (
	ranBeats = 3
	ranPause = 4 * time.Millisecond // a tick, with CONFIG_HZ=250
	ranTries = 75                   // a guest may make its clock stand
)

type queueLayout struct {
	Running ctype.Field `c:"rq.nr_running"` // kernel/sched/sched.h
}

// ran waits until the guest was seen to run, or has nothing to run: a CPU that is
// idle keeps no time, and finishes nothing.
func ran(ctx context.Context, l *Look) error {
	f, err := bind[queueLayout](l)
	if err != nil {
		return nil // nothing tells
	}
	at, err := l.Symbol("jiffies_64")
	if err != nil {
		return nil
	}
	s := uncached(l)
	last, err := s.Uint64(at)
	if err != nil {
		return nil
	}
	beats := 0
	for range ranTries {
		if err := pause(ctx, ranPause); err != nil {
			return err
		}
		now, err := s.Uint64(at)
		if err != nil || allIdle(l, f.Running) {
			return nil
		}
		if now != last {
			beats++
		}
		if last = now; beats == ranBeats {
			return nil
		}
	}
	return nil
}

// allIdle reports whether no CPU has anything to run.
func allIdle(l *Look, running ctype.Field) bool {
	rqs, err := l.LookupSymbol("runqueues")
	if err != nil {
		return false
	}
	offsets, err := perCPU(l)
	if err != nil {
		return false
	}
	s := uncached(l)
	for _, off := range offsets {
		n, err := s.Uint32(running.At(rqs.Addr + off))
		if err != nil && !errors.Is(err, mem.ErrNotMapped) || n > 0 {
			return false
		}
	}
	return true
}
