package tap

import (
	"sync"
	"sync/atomic"
	"time"

	"vmscope/block"
	"vmscope/internal/ring"
)

// feed is what a receiver does with the writes that reach it, whatever brings them: it puts them into the ring, before
// they are answered. It never waits for who reads the ring.
type feed struct {
	ring     *ring.Producer
	interest *ring.Interest
	capture  atomic.Pointer[capture] // nil: none
	order    sync.Mutex              // of what the capture sees, where several connections write
	bufs     sync.Pool
	taken    atomic.Uint64 // requests, so far
	alarm    alarm         // set before beat is called
}

func newFeed(p *ring.Producer, size int64) *feed {
	return &feed{ring: p, interest: p.Interest(size), bufs: sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}}
}

// incoming is a write that is on its way.
type incoming struct {
	f      *feed
	off    int64
	n      int
	slot   ring.Slot
	buf    *[]byte // of ours, for the capture to look at first
	fua    bool
	wanted bool
}

// begin makes a place for n bytes that are being written at off. The place (incoming.data) is nil where nobody wants the
// content, or where there is no room.
func (f *feed) begin(off int64, n int, fua bool) incoming {
	f.taken.Add(1)
	w := incoming{f: f, off: off, n: n, fua: fua}
	if f.ring.Deserted() {
		return w
	}
	if c := f.capture.Load(); c != nil && c.covers(off, int64(n)) {
		w.wanted = true
		w.buf = f.bufs.Get().(*[]byte)
		if cap(*w.buf) < n {
			*w.buf = make([]byte, n)
		}
		*w.buf = (*w.buf)[:n]
		return w
	}
	if w.wanted = n > 0 && f.interest.Wanted(off, int64(n)); w.wanted {
		w.slot = f.ring.Reserve(w.record(), n)
	}
	return w
}

func (w *incoming) record() ring.Record {
	r := ring.Record{Kind: ring.Write, Off: w.off, Len: int64(w.n)}
	if w.fua {
		r.Flags |= ring.FUA
	}
	if !w.wanted {
		r.Flags |= ring.NoData
	}
	return r
}

// data is where the content goes.
func (w *incoming) data() []byte {
	if w.buf != nil {
		return *w.buf
	}
	return w.slot.Data
}

// publish puts the write into the ring: the disk has taken it. The guest is answered when this returns.
func (w *incoming) publish() {
	f := w.f
	c := f.capture.Load()
	if w.buf != nil {
		f.order.Lock()
		r := w.record()
		r.Data = *w.buf
		r.Flags |= ring.Logged
		if c != nil && c.logged(w.off, *w.buf) {
			r.Flags |= ring.More
		}
		f.ring.Append(r)
		f.order.Unlock()
		f.bufs.Put(w.buf)
		return
	}
	if w.slot.OK() {
		w.slot.Commit()
	} else if !w.wanted {
		f.ring.Append(w.record())
	}
	if c != nil {
		c.overwritten(w.off, int64(w.n))
	}
}

// abandon takes the write back. failed: the disk may hold a part of it.
func (w *incoming) abandon(failed bool) {
	if w.buf != nil {
		w.f.bufs.Put(w.buf)
	}
	if w.slot.OK() {
		w.slot.Abandon()
	}
	if failed {
		w.f.ring.Lose(1, ring.WriteError)
	}
}

// other puts in what has no content.
func (f *feed) other(k ring.Kind, off, n int64, fua bool) {
	r := ring.Record{Kind: k, Off: off, Len: n}
	if fua {
		r.Flags |= ring.FUA
	}
	f.ring.Append(r)
	if c := f.capture.Load(); c != nil && n > 0 {
		c.overwritten(off, n)
	}
}

// ops are the ring's kinds as block's.
var ops = map[ring.Kind]block.Op{
	ring.Write: block.OpWrite, ring.Zeroes: block.OpZeroes, ring.Discard: block.OpDiscard, ring.Flush: block.OpFlush,
}

// beat makes the ring's clock go on, and puts off the alarm, until stop is closed.
func (f *feed) beat(stop <-chan struct{}) {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		f.ring.Tick()
		f.alarm.putOff()
		select {
		case <-stop:
			return
		case <-t.C:
		}
	}
}

// beatEvery is how often a receiver says that it lives.
const beatEvery = 200 * time.Millisecond
