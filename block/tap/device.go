package tap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"vmscope/block"
	"vmscope/internal/ring"
)

// base is what a disk holds now.
type base interface {
	block.Device
	io.Closer
}

// past reads a disk as it was when the write that was given last had been made: the blocks whose content a receiver
// caught before a transaction changed them, and for all others what the disk holds now.
type past struct {
	t *Tap

	mu   sync.Mutex // of conn; never held together with the tap's
	conn base
}

func (p *past) Size() int64 { return p.t.size }

// connect gives the connection, made anew if need be.
func (p *past) connect(ctx context.Context) (base, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		return p.conn, nil
	}
	m, err := p.t.attachedAt(ctx)
	if err != nil {
		return nil, err
	}
	p.conn, err = dialBase(ctx, m.Content)
	return p.conn, err
}

// broken forgets a connection that failed.
func (p *past) broken(c base) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == c {
		p.conn = nil
		c.Close()
	}
}

func (p *past) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// ReadAt reads. What lies behind the disk's end is io.EOF.
func (p *past) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > p.t.size {
		return 0, fmt.Errorf("%w: offset %d of %d", block.ErrOutOfRange, off, p.t.size)
	}
	var end error
	if int64(len(b)) > p.t.size-off {
		b, end = b[:p.t.size-off], io.EOF
	}
	if len(b) == 0 {
		return 0, end
	}
	var err error
	for range 2 {
		var c base
		if c, err = p.connect(p.t.ctx); err != nil {
			break
		}
		// First the disk, then the ring: what changes a block in between has put what was there into the ring before, as long as
		// there is a receiver.
		if !readNow(c, b, off) {
			err = block.ReadFull(c, b, off)
		}
		if err == nil {
			p.t.received()
			err = p.t.overlay(b, off)
			break
		}
		p.broken(c)
		if p.t.ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		if e := p.t.failed(); e != nil {
			err = e
		}
		return 0, fmt.Errorf("read %d bytes at %d of %s: %w", len(b), off, p.t.disk, err)
	}
	return len(b), end
}

// images finds the pre-images in the ring by the place that they were read from.
type images struct {
	pages map[int64][]image // by page number, in the ring's order
	order []image           // all, in the ring's order
}

type image struct {
	pos      uint64
	off, len int64
}

// imagePage is the unit of the index: most blocks are one page.
const imagePage = 4096

func (x *images) add(pos uint64, r ring.Record) {
	if len(r.Data) == 0 {
		return
	}
	if x.pages == nil {
		x.pages = map[int64][]image{}
	}
	m := image{pos, r.Off, r.Len}
	x.order = append(x.order, m)
	for pg := m.off / imagePage; pg <= (m.off+m.len-1)/imagePage; pg++ {
		x.pages[pg] = append(x.pages[pg], m)
	}
}

// release forgets what is not in the ring any more.
func (x *images) release(tail uint64) {
	n := 0
	for n < len(x.order) && int64(x.order[n].pos-tail) < 0 {
		x.drop(x.order[n])
		n++
	}
	if n > 0 {
		x.order = slices.Delete(x.order, 0, n)
	}
}

func (x *images) drop(m image) {
	for pg := m.off / imagePage; pg <= (m.off+m.len-1)/imagePage; pg++ {
		l := slices.DeleteFunc(x.pages[pg], func(o image) bool { return o.pos == m.pos })
		if len(l) == 0 {
			delete(x.pages, pg)
		} else {
			x.pages[pg] = l
		}
	}
}

// written forgets the images of a range that lie before pos: what they show is not there any more.
func (x *images) written(off, n int64, pos uint64) {
	if len(x.pages) == 0 || n <= 0 {
		return
	}
	x.overlapping(off, n, func(m image) {
		if int64(m.pos-pos) < 0 {
			x.drop(m)
		}
	})
}

// overlapping calls f for the images that overlap a range, each once, in the ring's order.
func (x *images) overlapping(off, n int64, f func(image)) {
	var found []image
	from, to := off/imagePage, (off+n-1)/imagePage
	if to-from > int64(len(x.pages)) {
		for pg, l := range x.pages {
			if pg >= from && pg <= to {
				found = append(found, l...)
			}
		}
	} else {
		for pg := from; pg <= to; pg++ {
			found = append(found, x.pages[pg]...)
		}
	}
	slices.SortFunc(found, func(a, b image) int { return cmp.Compare(int64(a.pos-b.pos), 0) })
	found = slices.CompactFunc(found, func(a, b image) bool { return a.pos == b.pos })
	for _, m := range found {
		if m.off < off+n && off < m.off+m.len {
			f(m)
		}
	}
}

// overlay puts the images of a range over what was read: of each byte the oldest.
func (t *Tap) overlay(b []byte, off int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	losing := t.con.Losing() // before scan: told meanwhile, scan sees it
	if err := t.scan(); err != nil {
		return err
	}
	t.inexact = t.inexact || losing || t.gaps && int64(t.gap-t.con.Pos()) >= 0
	if len(t.images.pages) == 0 {
		return nil
	}
	var list []image
	t.images.overlapping(off, int64(len(b)), func(m image) { list = append(list, m) })
	for _, m := range slices.Backward(list) {
		r, err := t.con.At(m.pos)
		if err != nil {
			return err
		}
		if m.off >= off {
			copy(b[m.off-off:], r.Data)
		} else {
			copy(b, r.Data[off-m.off:])
		}
	}
	return nil
}

// Inexact reports whether something was read of Device, since it was asked last, while writes had been lost that Next has not
// told of yet: with them went what they overwrote, and what was read may be from behind them.
func (t *Tap) Inexact() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.inexact
	t.inexact = false
	return was
}

// scan takes what is new in the ring into the index. The tap's lock is held.
func (t *Tap) scan() error {
	t.images.release(t.con.Tail())
	return t.con.Scan(func(pos uint64, r ring.Record) {
		if r.Kind == ring.PreImage && r.Extra == 0 {
			t.images.add(pos, r)
		}
		if r.Kind == ring.Lost {
			t.gap, t.gaps = pos, true
		}
		for _, m := range t.joints {
			m.joint.saw(m.disk, pos, &r)
		}
	})
}

var errClosed = errors.New("the tap is closed")
