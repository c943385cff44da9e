package watch

import (
	"context"
	"sync"
	"time"
)

// turns keeps the writes to several disks in order where a volume lies on more than one: what the guest wrote when an earlier
// write to another disk was done must not be applied before that one.
//
// A write is in its disk's queue before the guest is told that it is done. So a disk whose queue is found empty after another's
// write came has nothing that the guest could have waited for.
type turns struct {
	mu    sync.Mutex
	now   uint64 // rises with each write that comes
	lines []line // one of each disk
	news  chan struct{}
}

type line struct {
	comes bool // a write waits for its turn, or is being applied
	at    time.Time
	empty uint64 // what now was when nothing was there
	ended bool
	stop  context.CancelFunc // ends the wait for a write
}

func newTurns(disks int) *turns { return &turns{lines: make([]line, disks), news: make(chan struct{})} }

// add makes room for one more disk.
func (t *turns) add() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line{})
}

// changed wakes all who wait for their turn. mu is held.
func (t *turns) changed() {
	close(t.news)
	t.news = make(chan struct{})
}

// waits says that a disk's next write is waited for, until stop is called. It gives what empty takes.
func (t *turns) waits(disk int, stop context.CancelFunc) (now uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[disk].comes, t.lines[disk].stop = false, stop
	for i := range t.lines {
		if t.lines[i].comes {
			stop() // only look
		}
	}
	return t.now
}

// empty says that there was no write when now was so.
func (t *turns) empty(disk int, now uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[disk].empty = now
	t.changed()
}

// wake ends all waits for a write: there is something to be done.
func (t *turns) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.lines {
		if l := &t.lines[i]; l.stop != nil {
			l.stop()
		}
	}
}

// end says that nothing more comes.
func (t *turns) end(disk int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[disk].ended, t.lines[disk].comes = true, false
	t.changed()
}

// comes waits for the turn of a disk's write, which ends with the next call of waits.
func (t *turns) comes(ctx context.Context, disk int, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now++
	mine := t.now
	t.lines[disk].comes, t.lines[disk].at = true, at
	t.changed()
	for {
		first := true
		for i := range t.lines {
			l := &t.lines[i]
			if i == disk || l.ended || l.comes && !l.at.Before(at) || !l.comes && l.empty >= mine {
				continue
			}
			first = false
			if !l.comes && l.stop != nil {
				l.stop()
			}
		}
		if first {
			return
		}
		news := t.news
		t.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
		t.mu.Lock()
		if ctx.Err() != nil {
			return
		}
	}
}
