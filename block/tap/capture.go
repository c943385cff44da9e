package tap

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"vmscope/block"
	"vmscope/internal/ring"
)

// capture catches what blocks hold before transactions change them. A journalled file system writes a block to its home
// only when the transaction that changes it is committed, that is, when the commit block was answered. So the homes
// that a descriptor or revoke block names are read as soon as that block comes, and the commit block is not answered before
// they are in the ring.
//
// A block that was captured is not captured again until its home was written: until then the reader of the ring has what
// the transactions made of it. To capture once too often does no harm, so what is remembered of that may be forgotten.
type capture struct {
	gen  uint32
	logs []*logReader
	// several: one of the journals lies on other disks, too.
	several bool
	ring    *ring.Producer
	own     uint32                         // the shelf of the tap's disk
	read    readDisk                       // of the disk as it is now
	cached  func(p []byte, off int64) bool // the same, of what takes no time; nil: nothing does
	others  readOthers                     // of other disks
	most    int64                          // bytes of one transaction's images

	mu     sync.Mutex
	have   marks
	asked  map[spot]*piece // of the transaction that is being written
	bytes  int64           // of asked
	full   bool            // asked is not complete
	flight *sync.WaitGroup // of its reads that were begun
	flying bool            // there are such
	slots  chan struct{}   // bounds the reads at one time
}

type (
	readDisk   func(ctx context.Context, p []byte, off int64) error
	readOthers func(ctx context.Context, disk int, p []byte, off int64) error
)

// spot is where a place begins.
type spot struct {
	shelf uint32
	off   int64
}

// piece is one block that is being read.
type piece struct {
	place
	data []byte // once it was read
	err  error
}

// A commit is held up for at most capturePatience: for a guest that drains its disk just now nothing can be read. One
// read is at most readMost bytes; readsAtOnce are under way together.
const (
	capturePatience = 250 * time.Millisecond
	readMost        = 256 << 10
	readsAtOnce     = 16
)

func newCapture(gen uint32, journals []Journal, p *ring.Producer, most int64, read readDisk, others readOthers) (*capture, error) {
	c := &capture{gen: gen, ring: p, read: read, others: others, most: most, asked: map[spot]*piece{}, flight: &sync.WaitGroup{}, slots: make(chan struct{}, readsAtOnce)}
	for _, j := range journals {
		l, err := newLogReader(j)
		if err != nil {
			return nil, err
		}
		c.logs = append(c.logs, l)
		if len(j.Others) > 0 {
			c.own = uint32(j.Disk) + 1
		}
		c.several = c.several || slices.ContainsFunc(j.Volume, func(s block.Segment) bool {
			return slices.ContainsFunc(s.Legs, func(leg block.Leg) bool { return leg.Disk >= 0 && leg.Disk != j.Disk })
		})
	}
	return c, nil
}

// covers reports whether a write reaches a journal: logged wants to see its content then.
func (c *capture) covers(off, n int64) bool {
	for _, l := range c.logs {
		if len(l.within(off, n)) > 0 {
			return true
		}
	}
	return false
}

// logged looks at what is written to a journal. When it returns, the guest may be told that this was written. Calls come one
// after the other. more: it completes nothing, and a commit block is to follow.
func (c *capture) logged(off int64, data []byte) (more bool) {
	if c.ring.Losing() { // whoever reads the ring begins anew behind the loss
		c.mu.Lock()
		c.have = nil
		c.mu.Unlock()
	}
	var need []*piece
	for _, l := range c.logs {
		c.refresh(l, off, data)
		open := l.read(off, data, func(at place) {
			if p := c.want(at); p != nil {
				need = append(need, p)
			}
		}, func() {
			c.fetch(need)
			need = nil
			c.commit()
		})
		more = more || open
	}
	c.fetch(need)
	if c.several {
		// The commit block may be on another disk. What is in the ring only after a home was written would be taken for what
		// that held then.
		c.commit()
	}
	return more && !c.several
}

// refresh has a journal whose superblock is on another disk take over its format, which a mount may have changed.
func (c *capture) refresh(l *logReader, off int64, data []byte) {
	if l.away.Len == 0 || len(l.within(off, int64(len(data)))) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), capturePatience)
	defer cancel()
	b := make([]byte, l.away.Len)
	if c.readAt(ctx, l.away.shelf, b, l.away.Off) == nil {
		l.follow(b)
	}
}

// want notes a block that is to be read; nil if it need not be. What is for a Joint is captured by each transaction: writes to
// other disks are not seen here.
func (c *capture) want(at place) *piece {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := spot{at.shelf, at.Off}
	if c.asked[key] != nil || at.shelf == 0 && c.have.all(at.Range) {
		return nil
	}
	if c.bytes+at.Len > c.most {
		c.full = true
		return nil
	}
	c.bytes += at.Len
	p := &piece{place: at}
	c.asked[key] = p
	return p
}

// fetch begins to read. Neighbours are read together.
func (c *capture) fetch(need []*piece) {
	slices.SortFunc(need, func(a, b *piece) int { return cmp.Or(cmp.Compare(a.shelf, b.shelf), cmp.Compare(a.Off, b.Off)) })
	for len(need) > 0 {
		n, end := 1, need[0].End()
		for n < len(need) && need[n].Off == end && need[n].shelf == need[0].shelf && need[n].End()-need[0].Off <= readMost {
			end = need[n].End()
			n++
		}
		list := need[:n]
		need = need[n:]
		b := make([]byte, end-list[0].Off)
		land := func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, p := range list {
				p.data, p.err = b[p.Off-list[0].Off:][:p.Len:p.Len], err
			}
		}
		// To start a goroutine takes longer than to read what is in memory, and the guest waits.
		if c.cached != nil && c.here(list[0].shelf) && c.cached(b, list[0].Off) {
			land(nil)
			continue
		}
		flight := c.flight
		flight.Add(1)
		c.flying = true
		go func() {
			defer flight.Done()
			c.slots <- struct{}{}
			defer func() { <-c.slots }()
			ctx, cancel := context.WithTimeout(context.Background(), 4*capturePatience)
			defer cancel()
			land(c.readAt(ctx, list[0].shelf, b, list[0].Off))
		}()
	}
}

// here reports whether a shelf is the tap's own disk.
func (c *capture) here(shelf uint32) bool { return shelf == 0 || shelf == c.own }

// readAt reads what a disk holds.
func (c *capture) readAt(ctx context.Context, shelf uint32, p []byte, off int64) error {
	if c.here(shelf) {
		return c.read(ctx, p, off)
	}
	return c.others(ctx, int(shelf)-1, p, off)
}

// commit puts the images of the transaction into the ring.
func (c *capture) commit() {
	c.mu.Lock()
	none := len(c.asked) == 0 && !c.full
	c.mu.Unlock()
	if none {
		return
	}
	c.wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []ring.Record
	whole := !c.full
	now := time.Now().UnixNano()
	for _, p := range c.asked {
		if whole = whole && p.data != nil && p.err == nil; !whole {
			break
		}
		list = append(list, ring.Record{Kind: ring.PreImage, Extra: p.shelf, Time: now, Off: p.Off, Len: p.Len, Data: p.data})
	}
	if !whole {
		c.ring.Lose(1, ring.NotCaught)
		c.have = nil
	} else if c.ring.AppendAll(list) {
		for _, p := range c.asked {
			if p.shelf == 0 {
				c.have = c.have.set(p.Range)
			}
		}
	}
	clear(c.asked)
	c.bytes, c.full = 0, false
}

// wait waits for the reads that were begun, as long as a commit may be held up.
func (c *capture) wait() {
	if !c.flying {
		return
	}
	done := make(chan struct{})
	flight := c.flight
	c.flight, c.flying = &sync.WaitGroup{}, false // those that are late are the next one's no more
	go func() { flight.Wait(); close(done) }()
	t := time.NewTimer(capturePatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// overwritten is told of each write that has reached the disk outside of the journals.
func (c *capture) overwritten(off, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.have.clear(block.Range{Off: off, Len: n})
}

// marks is a set of sectors of a disk, to which all blocks are aligned: bits by chunks of 2 MiB of the disk.
type marks map[int64]*markBits

type markBits [64]uint64

const (
	markUnit  = 512
	markChunk = 64 * 64 // units
	maxMarks  = 1 << 16 // chunks, of half a KiB
)

// each calls f for the words of a range: its chunk, index, and the bits. Without all, chunks that are not there are passed
// over.
func (m marks) each(r block.Range, f func(chunk, word int64, bits uint64) bool) bool {
	from, to := r.Off/markUnit, (r.End()+markUnit-1)/markUnit
	for u := from; u < to; {
		n := min(to-u, 64-u%64)
		bits := ^uint64(0)
		if n < 64 {
			bits = 1<<n - 1
		}
		if !f(u/markChunk, u%markChunk/64, bits<<(u%64)) {
			return false
		}
		u += n
	}
	return true
}

// all reports whether all of a range is in the set.
func (m marks) all(r block.Range) bool {
	return m.each(r, func(c, w int64, bits uint64) bool { p := m[c]; return p != nil && p[w]&bits == bits })
}

// set adds a range and gives the set. One that has become too large is begun anew.
func (m marks) set(r block.Range) marks {
	if m == nil || len(m) >= maxMarks {
		m = marks{}
	}
	m.each(r, func(c, w int64, bits uint64) bool {
		if m[c] == nil {
			m[c] = new(markBits)
		}
		m[c][w] |= bits
		return true
	})
	return m
}

// clear takes a range out.
func (m marks) clear(r block.Range) {
	if len(m) == 0 || r.Len <= 0 {
		return
	}
	first, last := r.Off/markUnit/markChunk, (r.End()-1)/markUnit/markChunk
	for c := first; c <= last; c++ {
		if last-first > int64(len(m)) { // most of the disk is discarded
			for c := range m {
				if c >= first && c <= last {
					m.clearIn(c, r)
				}
			}
			return
		}
		if m[c] != nil {
			m.clearIn(c, r)
		}
	}
}

// clearIn takes the part of a range out that lies in a chunk.
func (m marks) clearIn(c int64, r block.Range) {
	const size = markChunk * markUnit
	from, to := max(r.Off, c*size), min(r.End(), (c+1)*size)
	m.each(block.Range{Off: from, Len: to - from}, func(c, w int64, bits uint64) bool { m[c][w] &^= bits; return true })
}
