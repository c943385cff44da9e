package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// pageCacheLayout is what leads from a file to the frames that hold its pages:
// struct address_space (include/linux/fs.h), struct page and folio
// (include/linux/mm_types.h).
type pageCacheLayout struct {
	Pages ctype.Field `c:"address_space.i_pages"`
	Page  ctype.Type  `c:"page"`
	Index ctype.Field `c:"folio.index|page.index"`
	Flags ctype.Field `c:"page.flags"`

	UpToDate int64 `c:"enum(PG_uptodate)"`
}

// maxFolio bounds the pages of one folio: those of a 1 GiB page.
const maxFolio = 1 << 18

// pageCachePlan is what finding page frames takes in one kernel.
type pageCachePlan struct {
	pageCacheLayout
	xa    xarrayLayout
	bytes uint64 // of a page
	node  int    // bytes of an xa_node to read
	slots uint64 // of a node
}

func newPageCachePlan(k *Kernel) (*pageCachePlan, error) {
	l, err := layout64[pageCacheLayout](k)
	if err != nil {
		return nil, err
	}
	xa, err := layout[xarrayLayout](k)
	if err != nil {
		return nil, err
	}
	p := &pageCachePlan{pageCacheLayout: *l, xa: *xa, bytes: k.Mode.PageSize(), slots: uint64(xa.Slots.Type.Len())}
	if p.slots == 0 || p.slots&(p.slots-1) != 0 || l.Page.Size() == 0 {
		return nil, fmt.Errorf("XArray nodes of %d slots, struct page of %d bytes: %w", p.slots, l.Page.Size(), errors.ErrUnsupported)
	}
	p.node, err = span(xa.Shift, xa.Offset, xa.Parent, xa.Slots)
	return p, err
}

// PageCache is what the kernel keeps in memory of one file. It remembers where
// it found the pages and is not safe for concurrent use: make one for one look.
type PageCache struct {
	*pageCachePlan
	v    *View
	at   mem.VA // of the struct address_space
	vmem mem.VA // of the struct page of frame 0
	runs map[uint64][]mem.VA

	key uint64 // of the run that was asked for last
	run []mem.VA
}

// PageCache looks at the pages of a file, given by its struct address_space.
func (v *View) PageCache(cache mem.VA) (*PageCache, error) {
	p, err := derived(v.Kernel, newPageCachePlan)
	if err != nil {
		return nil, err
	}
	c := &PageCache{pageCachePlan: p, v: v, at: cache}
	c.vmem, err = v.port.vmemmap(v)
	c.Forget()
	return c, err
}

// Forget drops what is remembered.
func (c *PageCache) Forget() { c.runs, c.key, c.run = make(map[uint64][]mem.VA), 0, nil }

// Frame is where page number index of the file lies in memory; ok is false if it
// is not there.
func (c *PageCache) Frame(index uint64) (pa mem.PA, ok bool, err error) {
	key := index / c.slots
	if c.run == nil || c.key != key {
		run, known := c.runs[key]
		if !known {
			if run, err = c.find(key * c.slots); err != nil {
				return 0, false, err
			}
			c.runs[key] = run
		}
		c.key, c.run = key, run
	}
	if c.run == nil || c.run[index%c.slots] == 0 {
		return 0, false, nil
	}
	return c.frame(c.run[index%c.slots], index)
}

// Settled reports whether the page is one whose content is the file's: it was
// read whole.
func (c *PageCache) Settled(index uint64) bool {
	run := c.runs[index/c.slots]
	if run == nil {
		return false
	}
	flags, err := c.v.Mem.Uint64(c.Flags.At(run[index%c.slots]))
	return err == nil && flags>>c.UpToDate&1 != 0
}

// find gives the struct pages, or those of the folios, of the pages of one node of
// the file's XArray, of which the first is given; nil: there are none.
func (c *PageCache) find(first uint64) ([]mem.VA, error) {
	e, err := c.v.Mem.Pointer(c.xa.Head.At(c.Pages.At(c.at)))
	if err != nil {
		return nil, err
	}
	var parent mem.VA
	var offset uint64
	if e&3 != xaInternal && first == 0 { // a file of one page needs no node
		run := make([]mem.VA, c.slots)
		run[0] = pageOf(e)
		return run, nil
	}
	o := object{b: make([]byte, c.node)}
	for shift := uint64(64); e&3 == xaInternal && e >= xaInternalMax; {
		at := e - xaInternal
		if err := o.read(c.v, at); err != nil {
			return nil, err
		}
		own := o.uint(c.xa.Shift)
		switch {
		case own >= shift:
			return nil, errBroken("xa_node", at, fmt.Sprintf("shift %d below a node of shift %d", own, shift))
		case o.ptr(c.xa.Parent) != parent || parent != 0 && o.uint(c.xa.Offset) != offset:
			return nil, errBroken("xa_node", at, fmt.Sprintf("its parent is %#x, came from %#x", uint64(o.ptr(c.xa.Parent)), uint64(parent)))
		case parent == 0 && first>>own >= c.slots:
			return nil, nil // beyond what the tree covers
		}
		slots := object{b: o.bytes(c.xa.Slots)}
		slot := func(i uint64) mem.VA {
			e := mem.VA(uintAt(slots.b, 8*i, 8))
			if e&3 == xaInternal && e < xaInternalMax && uint64(e>>2) < i { // the rest of a folio that begins in another slot
				e = mem.VA(uintAt(slots.b, 8*uint64(e>>2), 8))
			}
			return e
		}
		if own == 0 {
			run := make([]mem.VA, c.slots)
			for i := range run {
				run[i] = pageOf(slot(uint64(i)))
			}
			return run, nil
		}
		shift, parent, offset = own, at, first>>own&(c.slots-1)
		e = slot(offset)
	}
	if p := pageOf(e); p != 0 && parent != 0 { // a folio of more pages than a node has slots
		run := make([]mem.VA, c.slots)
		for i := range run {
			run[i] = p
		}
		return run, nil
	}
	return nil, nil
}

// pageOf is the struct page in a slot; 0 for what is none: nothing, or the trace
// of a page that is not in memory.
func pageOf(e mem.VA) mem.VA {
	if e&3 != 0 {
		return 0
	}
	return e
}

// frame is where page index of the file lies, which is in the given folio.
func (c *PageCache) frame(folio mem.VA, index uint64) (mem.PA, bool, error) {
	first, err := c.v.Mem.Uint64(c.Index.At(folio))
	if err != nil {
		return 0, false, err
	}
	n := uint64(folio - c.vmem)
	size := c.Page.Size()
	if folio < c.vmem || n%size != 0 || index < first || index-first >= maxFolio {
		return 0, false, errBroken("page cache", folio, fmt.Sprintf("page %d of a file is said to be in a folio that begins with page %d", index, first))
	}
	return mem.PA((n/size + index - first) * c.bytes), true, nil
}
