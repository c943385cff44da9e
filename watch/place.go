package watch

import (
	"strings"
	"time"

	"vmscope/event"
	"vmscope/fsinfer/ext4"
)

const (
	// placeAfter is how long it is taken for granted where a file system is mounted: twice as long each time that it is where it
	// was, up to placeMost.
	placeAfter = 250 * time.Millisecond
	placeMost  = time.Second
	// placeWait is how long events wait for the answer. It is read from a guest, which may make that take as long as it likes.
	placeWait = 2 * time.Second
	// mountTime is how long a mount may take from its first write to when the guest's programs see it.
	mountTime = 10 * time.Second
)

// place is where the guest has a file system mounted.
type place struct {
	at      string
	last    string        // where it was when that was known last, since MOUNT: where UNMOUNT, which the guest sees first, is told for
	mounted time.Time     // when MOUNT was told last
	until   time.Time     // at is taken for granted
	after   time.Duration // for so long the last time
	asked   chan answer
	began   time.Time // when that was asked
	slow    bool      // the last answer took longer than events wait
}

type answer struct {
	at  string
	err error
}

// place asks where the guest has a file system mounted, for the events that come next; now if one is MOUNT, or if the last answer
// is old. While it is mounted nowhere, that may change at any moment: it is asked as often as takes a tenth of the time, and
// for each event just behind a MOUNT.
func (w *Watch) place(v *volume, events []event.Event) {
	if w.opt.Mounted == nil {
		return
	}
	p, now := &v.place, w.opt.Clock()
	fresh := p.asked == nil
	for i := range events {
		if events[i].Op == event.Mount {
			p.last, p.mounted, p.until, p.after, fresh = "", now, time.Time{}, 0, true // what was asked before does not count
		}
	}
	if fresh {
		if now.Before(p.until) {
			return
		}
		p.asked, p.began = make(chan answer, 1), now
		go func(to chan<- answer, name string, super ext4.Super) {
			at, err := w.opt.Mounted(name, &super)
			to <- answer{at, err}
		}(p.asked, v.name, *v.fs.Super())
	}
	wait := placeWait
	if !fresh || p.slow {
		wait = 0
	}
	if a, ok := p.wait(wait); ok {
		p.slow = !fresh
		p.take(a, w.opt.Clock())
	} else {
		p.slow = true
	}
}

// wait waits so long for the answer.
func (p *place) wait(long time.Duration) (a answer, ok bool) {
	select {
	case a = <-p.asked:
		return a, true
	default:
	}
	late := time.NewTimer(long)
	defer late.Stop()
	select {
	case a = <-p.asked:
		return a, true
	case <-late.C:
		return a, false
	}
}

func (p *place) take(a answer, now time.Time) {
	p.asked = nil
	took := now.Sub(p.began)
	wait := max(min(9*took, time.Second), took)
	switch {
	case a.err != nil:
	case a.at != "":
		at := mountPoint(a.at)
		if p.after = min(2*p.after, placeMost); p.after == 0 || at != p.at {
			p.after = placeAfter
		}
		p.at, p.last = at, at
		wait = max(wait, p.after)
	default:
		p.at = ""
		if now.Sub(p.mounted) < mountTime {
			wait = 0
		}
	}
	p.until = now.Add(wait)
}

// mountPoint cleans what Options.Mounted said.
func mountPoint(p string) string {
	if !strings.HasPrefix(p, "/") {
		return ""
	}
	return strings.TrimRight(p, "/")
}
