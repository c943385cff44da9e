package mem

import (
	"encoding/binary"
	"sync"
)

// Cache keeps the pages that were read from a source that is expensive to ask
// (another process's memory, a monitor socket). It belongs to one View and dies
// with it, so no answer outlives one look at the guest. It never writes.
//
// It is safe for concurrent use.
type Cache struct {
	src   PhysReader
	max   int
	mu    sync.Mutex
	pages map[PA]*[PageSize]byte
	free  []*[PageSize]byte // pages of forgotten entries
}

// NewCache keeps at most max pages of src in memory; when they are full it
// forgets them all and starts anew, which bounds both memory and bookkeeping.
func NewCache(src PhysReader, max int) *Cache {
	return &Cache{src: src, max: max, pages: make(map[PA]*[PageSize]byte)}
}

// Source is what the cache reads from: for who must know the present, not what
// was true when a page was first read.
func (c *Cache) Source() PhysReader { return c.src }

// Ranges and Extents are those of the source.
func (c *Cache) Ranges() []Range {
	if g, ok := c.src.(Ranger); ok {
		return g.Ranges()
	}
	return nil
}

// Extents lists the source's data extents.
func (c *Cache) Extents() ([]Range, error) { return Extents(c.src) }

// Forget drops all pages: the next reads see the guest as it is then.
func (c *Cache) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
}

func (c *Cache) forget() {
	for _, p := range c.pages {
		c.free = append(c.free, p)
	}
	clear(c.pages)
}

// page returns the cached page that holds pa, reading it on a miss. c.mu is
// held. Nil: the source does not give the whole page.
func (c *Cache) page(pa PA) *[PageSize]byte {
	base := pa &^ (PageSize - 1)
	if p := c.pages[base]; p != nil {
		return p
	}
	if len(c.pages) >= c.max {
		c.forget()
	}
	p := c.blank()
	if _, err := c.src.ReadPhys(p[:], base); err != nil {
		c.free = append(c.free, p)
		return nil
	}
	c.pages[base] = p
	return p
}

// blank gives a page to be filled.
func (c *Cache) blank() *[PageSize]byte {
	if n := len(c.free); n > 0 {
		p := c.free[n-1]
		c.free = c.free[:n-1]
		return p
	}
	return new([PageSize]byte)
}

// Load64 loads the word at pa, little endian.
func (c *Cache) Load64(pa PA) (uint64, error) {
	off := pa % PageSize
	if off <= PageSize-8 {
		c.mu.Lock()
		if p := c.page(pa); p != nil {
			v := binary.LittleEndian.Uint64(p[off:])
			c.mu.Unlock()
			return v, nil
		}
		c.mu.Unlock()
	}
	b := words.Get().(*[8]byte)
	defer words.Put(b)
	if _, err := c.src.ReadPhys(b[:], pa); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// ReadPhys copies from cached pages. Reads of many pages at once bypass the
// cache: they are bulk transfers that would only push out the page tables.
func (c *Cache) ReadPhys(p []byte, pa PA) (n int, err error) {
	if len(p) > 4*PageSize {
		return c.src.ReadPhys(p, pa)
	}
	for n < len(p) {
		at := pa + PA(n)
		off := int(at % PageSize)
		m := min(len(p)-n, PageSize-off)
		c.mu.Lock()
		q := c.page(at)
		if q != nil {
			copy(p[n:n+m], q[off:])
		}
		c.mu.Unlock()
		if q == nil {
			// Part of the page may be readable: let the source say how far.
			k, err := c.src.ReadPhys(p[n:n+m], at)
			if err != nil {
				return n + k, err
			}
		}
		n += m
	}
	return n, nil
}

// ReadPhysVec fetches all missing pages of small pieces by one vectored read,
// then copies. Pieces longer than a page go to the source as they are.
func (c *Cache) ReadPhysVec(v []Vec) (n int, err error) {
	c.prefetch(v)
	for i := range v {
		if _, err := c.ReadPhys(v[i].P, v[i].PA); err != nil {
			return i, err
		}
	}
	return len(v), nil
}

// prefetch loads the pages that the pieces start and end in. Failures are left
// for the read itself to meet and report.
func (c *Cache) prefetch(v []Vec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var miss []Vec
	asked := make(map[PA]bool)
	for i := range v {
		if len(v[i].P) == 0 || len(v[i].P) > 4*PageSize || len(miss) >= c.max/2 {
			continue
		}
		// Counted, for the last page of all has no address behind it.
		base := v[i].PA &^ (PageSize - 1)
		for range (int(v[i].PA-base) + len(v[i].P) + PageSize - 1) / PageSize {
			if c.pages[base] == nil && !asked[base] {
				asked[base] = true
				miss = append(miss, Vec{P: c.blank()[:], PA: base})
			}
			base += PageSize
		}
	}
	done := 0
	if len(miss) > 1 {
		if len(c.pages)+len(miss) > c.max {
			c.forget()
		}
		done, _ = ReadVec(c.src, miss)
	}
	for i, m := range miss {
		if p := (*[PageSize]byte)(m.P); i < done {
			c.pages[m.PA] = p
		} else {
			c.free = append(c.free, p)
		}
	}
}
