package detect

import (
	"context"
	"errors"
	"time"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

// What a guest's memory holds while it reboots is no kernel's: what firmware and
// the next kernel write over the last one looks like tampering with it. So before
// findings are believed, the kernel has to be in place; and where its structures
// contradict themselves, to be seen running, for which there is goneWait. A guest
// that is idle may show nothing for so long.
const (
	goneWait = 1200 * time.Millisecond // linux.Beat tells a clock that stands after one second
	gonePoll = 20 * time.Millisecond
)

// GoneTries is how many sweeps in a row may be Gone. What the last of them found
// counts: a guest must not get rid of an alarm by making its clock stand.
const GoneTries = 3

// errGone is what is known of a guest then.
var errGone = errors.New("the guest rebooted while it was looked at")

// gone reports whether the kernel of a sweep was, at the end, not the one that
// runs: began is its sign of life from the beginning.
func gone(ctx context.Context, l *Look, began linux.Beat, broken bool) bool {
	still := func() (linux.Beat, bool) {
		if c, ok := l.Phys.(*mem.Cache); ok {
			c.Forget()
		}
		return l.StillRuns(began)
	}
	last, ok := still()
	if !ok || !broken {
		return !ok
	}
	for range goneWait / gonePoll {
		if pause(ctx, gonePoll) != nil {
			return false
		}
		now, ok := still()
		if !ok {
			return true
		}
		if now.Jiffies != last.Jiffies {
			return false
		}
	}
	return true
}
