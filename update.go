package vmscope

import (
	"context"
	"errors"
	"fmt"

	"vmscope/mem"
)

// ErrReadOnly says that the guest was not opened Writable.
var ErrReadOnly = errors.New("the guest is open for reading only")

// Tx is a View that can write.
type Tx struct {
	*View
	w mem.PhysWriter
}

// Update looks at the guest as View does and lets f change its memory. The guest
// must have been opened Writable. Writes take effect at once and one by one: a
// running guest sees them as they come, and nothing is undone if f fails.
func (g *Guest) Update(ctx context.Context, f func(*Tx) error) error {
	if !g.opt.writable {
		return fmt.Errorf("%s: %w", g.target, ErrReadOnly)
	}
	return g.View(ctx, func(v *View) error {
		w, ok := v.Machine.(mem.PhysWriter)
		if !ok {
			return fmt.Errorf("write to %s: %w by this source", g.target, errors.ErrUnsupported)
		}
		return f(&Tx{v, w})
	})
}

// WritePhys writes p at the guest-physical address pa.
func (tx *Tx) WritePhys(p []byte, pa mem.PA) (int, error) {
	n, err := tx.w.WritePhys(p, pa)
	tx.stale()
	return n, err
}

// Write writes p at the virtual address va of a space, across pages, whatever
// the page tables permit the guest itself. All pages are looked up before the
// first byte is written, so an unmapped page in the middle changes nothing.
func (tx *Tx) Write(s *mem.Space, p []byte, va mem.VA) (int, error) {
	type piece struct {
		p  []byte
		pa mem.PA
	}
	var pieces []piece
	for n := 0; n < len(p); {
		m, err := s.Translate(va + mem.VA(n))
		if err != nil {
			return 0, err
		}
		k := int(min(uint64(len(p)-n), m.Left()))
		pieces = append(pieces, piece{p[n : n+k], m.PA})
		n += k
	}
	done := 0
	for _, x := range pieces {
		n, err := tx.w.WritePhys(x.p, x.pa)
		done += n
		if err != nil {
			tx.stale()
			return done, err
		}
	}
	tx.stale()
	return done, nil
}

// stale drops what the View cached: it was true before the write.
func (tx *Tx) stale() {
	if c, ok := tx.Phys.(*mem.Cache); ok {
		c.Forget()
	}
}
