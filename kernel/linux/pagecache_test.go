package linux

import (
	"errors"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// cacheWorld is a world with a file's page cache in it.
type cacheWorld struct {
	*world
	p     *pageCachePlan
	cache mem.VA
	vmem  mem.VA
}

// pagesAt is a port whose array of struct page lies at vmem.
type pagesAt struct {
	amd64
	vmem mem.VA
}

func (p pagesAt) vmemmap(*View) (mem.VA, error) { return p.vmem, nil }

func newCacheWorld(t testing.TB) *cacheWorld {
	w := newWorld(t)
	p, err := newPageCachePlan(w.v.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	// The array of struct page lies at the upper end of the world's memory.
	c := &cacheWorld{world: w, p: p, vmem: 1 << 20}
	w.v.Kernel.port = pagesAt{vmem: c.vmem}
	if _, err := derived(w.v.Kernel, func(*Kernel) (*pageCachePlan, error) { return p, nil }); err != nil {
		t.Fatal(err)
	}
	c.cache = w.alloc(1024)
	return c
}

// page makes frame pfn hold page number index of the file, or a folio that
// begins with it, and gives its struct page.
func (c *cacheWorld) page(pfn, index uint64) mem.VA {
	at := c.vmem + mem.VA(pfn*c.p.Page.Size())
	c.put64(c.p.Index.At(at), index)
	c.put64(c.p.Flags.At(at), 1<<c.p.UpToDate)
	return at
}

// node makes an XArray node below a parent.
func (c *cacheWorld) node(shift, offset uint64, parent mem.VA) mem.VA {
	at := c.alloc(uint64(c.p.node))
	c.put(at, c.p.xa.Shift, shift)
	c.put(at, c.p.xa.Offset, offset)
	c.put64(c.p.xa.Parent.At(at), uint64(parent))
	return at
}

func (c *cacheWorld) slot(node mem.VA, i int, e mem.VA) {
	c.put64(c.p.xa.Slots.At(node)+mem.VA(8*i), uint64(e))
}

func (c *cacheWorld) head(e mem.VA) { c.put64(c.p.xa.Head.At(c.p.Pages.At(c.cache)), uint64(e)) }

func (c *cacheWorld) want(t *testing.T, want map[uint64]uint64) {
	t.Helper()
	pc, err := c.v.PageCache(c.cache)
	if err != nil {
		t.Fatal(err)
	}
	for index := range uint64(1 << 13) {
		pa, ok, err := pc.Frame(index)
		pfn, there := want[index]
		if err != nil || ok != there || ok && uint64(pa) != pfn*mem.PageSize {
			t.Errorf("page %d: %#x, %v, %v; want frame %#x, %v", index, uint64(pa), ok, err, pfn, there)
		}
		if ok && !pc.Settled(index) && index == 0 {
			t.Errorf("page %d is not settled", index)
		}
	}
}

func TestPageCache(t *testing.T) {
	t.Run("nothing", func(t *testing.T) { newCacheWorld(t).want(t, nil) })
	t.Run("one page", func(t *testing.T) {
		c := newCacheWorld(t)
		c.head(c.page(7, 0))
		c.want(t, map[uint64]uint64{0: 7})
	})
	t.Run("one node", func(t *testing.T) {
		c := newCacheWorld(t)
		n := c.node(0, 0, 0)
		c.head(n | xaInternal)
		c.slot(n, 0, c.page(9, 0))
		c.slot(n, 1, 0x1235) // was written out
		c.slot(n, 5, c.page(4, 5))
		c.slot(n, 63, c.page(1, 63))
		c.want(t, map[uint64]uint64{0: 9, 5: 4, 63: 1})
	})
	t.Run("folios", func(t *testing.T) {
		c := newCacheWorld(t)
		top := c.node(6, 0, 0)
		c.head(top | xaInternal)
		low := c.node(0, 1, top)
		c.slot(top, 1, low|xaInternal)
		c.slot(low, 8, c.page(32, 64+8)) // of four pages
		for i := 9; i < 12; i++ {
			c.slot(low, i, 8<<2|xaInternal)
		}
		c.slot(top, 4, c.page(512, 256)) // of 128 pages
		c.slot(top, 5, 4<<2|xaInternal)
		want := map[uint64]uint64{72: 32, 73: 33, 74: 34, 75: 35}
		for i := range uint64(128) {
			want[256+i] = 512 + i
		}
		c.want(t, want)
	})
	t.Run("every slot has the folio", func(t *testing.T) { // until v5.17
		c := newCacheWorld(t)
		n := c.node(0, 0, 0)
		c.head(n | xaInternal)
		for i := range 4 {
			c.slot(n, i, c.page(16, 0))
		}
		c.want(t, map[uint64]uint64{0: 16, 1: 17, 2: 18, 3: 19})
	})
}

func TestPageCacheHostile(t *testing.T) {
	broken := func(t *testing.T, c *cacheWorld, index uint64) {
		t.Helper()
		pc, err := c.v.PageCache(c.cache)
		if err != nil {
			t.Fatal(err)
		}
		if pa, ok, err := pc.Frame(index); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%#x, %v, %v", uint64(pa), ok, err)
		}
	}
	t.Run("loop", func(t *testing.T) {
		c := newCacheWorld(t)
		n := c.node(6, 0, 0)
		c.head(n | xaInternal)
		c.slot(n, 0, n|xaInternal)
		broken(t, c, 3)
	})
	t.Run("stranger", func(t *testing.T) {
		c := newCacheWorld(t)
		n, other := c.node(6, 0, 0), c.node(0, 0, 0x1000)
		c.head(n | xaInternal)
		c.slot(n, 0, other|xaInternal)
		broken(t, c, 3)
	})
	t.Run("page of another place", func(t *testing.T) {
		c := newCacheWorld(t)
		n := c.node(0, 0, 0)
		c.head(n | xaInternal)
		c.slot(n, 3, c.page(9, 4))
		broken(t, c, 3)
	})
	t.Run("no struct page", func(t *testing.T) {
		c := newCacheWorld(t)
		n := c.node(0, 0, 0)
		c.head(n | xaInternal)
		c.slot(n, 3, c.page(9, 3)+8)
		broken(t, c, 3)
	})
}

// TestCachedFile asks of which file a page is. What its struct page says and the
// file does not is not believed.
func TestCachedFile(t *testing.T) {
	c := newCacheWorld(t)
	l := layoutOf[cachedFileLayout](c.world)
	inode := c.alloc(2048)
	c.put64(l.Host.At(c.cache), uint64(inode))
	c.put64(l.Cache.At(inode), uint64(c.cache))
	n := c.node(0, 0, 0)
	c.head(n | xaInternal)
	page := c.page(8, 4) // of two pages
	c.slot(n, 4, page)
	c.slot(n, 5, 4<<2|xaInternal)
	c.put64(l.Mapping.At(page), uint64(c.cache))
	c.put64(l.Head.At(page+mem.VA(c.p.Page.Size())), uint64(page)|1)
	stranger := c.page(20, 4)
	c.put64(l.Mapping.At(stranger), uint64(c.cache))
	anonymous := c.page(21, 4)
	c.put64(l.Mapping.At(anonymous), uint64(c.cache)|1)
	for pa, want := range map[mem.PA]uint64{8*mem.PageSize + 5: 4*mem.PageSize + 5, 9 * mem.PageSize: 5 * mem.PageSize, 10 * mem.PageSize: 0, 20 * mem.PageSize: 0, 21 * mem.PageSize: 0} {
		if _, off, ok, err := c.v.CachedFile(pa); err != nil || off != want || ok != (want != 0) {
			t.Errorf("%#x: %#x, %v, %v, want %#x", uint64(pa), off, ok, err, want)
		}
	}
}

// FuzzPageCache looks pages up in memory that answers whatever the input says.
func FuzzPageCache(f *testing.F) {
	c := newCacheWorld(f)
	n := c.node(0, 0, 0)
	c.head(n | xaInternal)
	c.slot(n, 5, c.page(4, 5))
	look := func(v *View) {
		pc, err := v.PageCache(c.cache)
		if err != nil {
			return
		}
		for _, index := range []uint64{0, 5, 1 << 40, ^uint64(0)} {
			if _, ok, err := pc.Frame(index); ok && err != nil {
				panic("a page and an error")
			}
			pc.Settled(index)
		}
		if _, _, ok, err := v.CachedFile(4 * mem.PageSize); ok && err != nil && !errors.Is(err, mem.ErrInconsistent) && !transient(err) {
			panic(err)
		}
	}
	f.Add(c.answers(look))
	f.Fuzz(func(t *testing.T, answers []byte) {
		s := &memtest.Script{Answers: answers}
		look(viewOf(c.v.Kernel, s))
		if s.Reads > 1000 {
			t.Fatalf("%d reads", s.Reads)
		}
	})
}
