package mem_test

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// source is expensive memory: it counts calls and pieces.
type source struct {
	memtest.Bytes
	vecs, pieces int
}

func (s *source) ReadPhysVec(v []mem.Vec) (n int, err error) {
	s.vecs++
	for i := range v {
		s.pieces++
		if _, err := s.Bytes.ReadPhys(v[i].P, v[i].PA); err != nil {
			return i, err
		}
	}
	return len(v), nil
}

func TestCache(t *testing.T) {
	data := fill(0x8800, 1)
	src := &source{Bytes: memtest.Bytes{Base: 0x1000, Data: data}}
	c := mem.NewCache(src, 4)
	check := func(pa mem.PA, n, reads int) {
		t.Helper()
		p := make([]byte, n)
		if k, err := c.ReadPhys(p, pa); k != n || err != nil || !bytes.Equal(p, data[pa-0x1000:][:n]) {
			t.Errorf("%#x: %d bytes, %v", uint64(pa), k, err)
		}
		if src.Reads() != reads {
			t.Errorf("%#x: %d reads, want %d", uint64(pa), src.Reads(), reads)
		}
	}
	check(0x1010, 8, 1)     // miss
	check(0x1ff8, 8, 1)     // hit
	check(0x1ffc, 8, 2)     // the next page
	check(0x2000, 0x800, 2) // hit
	copy(data, "changed")   // not seen before Forget
	p := make([]byte, 7)
	if _, err := c.ReadPhys(p, 0x1000); err != nil || string(p) == "changed" {
		t.Errorf("%q, %v", p, err)
	}
	c.Forget()
	check(0x1000, 7, 3)
	check(0x1000, 5*4096, 4) // bulk goes past the cache
	check(0x9000, 0x800, 6)  // half a page: asked for as a whole, then as far as it goes
	k, err := c.ReadPhys(make([]byte, 16), 0x97f8)
	if k != 8 {
		t.Errorf("%d bytes", k)
	}
	wantFault(t, err, 0x9800, mem.ErrNoRAM)
	_, err = c.Load64(0x97f9)
	wantFault(t, err, 0x9800, mem.ErrNoRAM)
	if v, err := c.Load64(0x1ffd); err != nil || byte(v) != data[0xffd] || byte(v>>24) != data[0x1000] {
		t.Errorf("%#x, %v", v, err) // across pages
	}
	// No more than max pages: the fifth drops the others.
	c.Forget()
	n := src.Reads()
	for i := range 5 {
		check(mem.PA(0x1000+i*0x1000), 1, n+i+1)
	}
	check(0x1000, 1, n+6)
	if c.Ranges() != nil {
		t.Error("the source has no ranges")
	}
	if _, err := c.Extents(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestCacheVec(t *testing.T) {
	data := fill(0x10000, 2)
	src := &source{Bytes: memtest.Bytes{Base: 0, Data: data}}
	c := mem.NewCache(src, 16)
	vec := func(at ...int) (v []mem.Vec) {
		for _, pa := range at {
			v = append(v, mem.Vec{P: make([]byte, 8), PA: mem.PA(pa)})
		}
		return v
	}
	v := vec(0x1000, 0x1ffc, 0x3010, 0x1010, 0x3018) // pages 1, 2, 3
	for round := range 2 {
		if n, err := c.ReadPhysVec(v); n != len(v) || err != nil {
			t.Fatal(n, err)
		}
		for i := range v {
			if !bytes.Equal(v[i].P, data[v[i].PA:][:8]) {
				t.Errorf("piece %d: %x", i, v[i].P)
			}
		}
		if src.vecs != 1 || src.pieces != 3 || src.Reads() != 3 {
			t.Errorf("round %d: %d vectored reads, %d pieces, %d reads", round, src.vecs, src.pieces, src.Reads())
		}
	}
	v = vec(0x4000, 0x20000, 0x5000)
	if n, err := c.ReadPhysVec(v); n != 1 || !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("%d, %v", n, err)
	}
	// More pieces than fit: still right.
	c = mem.NewCache(src, 2)
	v = vec(0x0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000)
	if n, err := c.ReadPhysVec(v); n != len(v) || err != nil || !bytes.Equal(v[5].P, data[0x5000:0x5008]) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestCacheConcurrent(t *testing.T) {
	data := fill(0x20000, 3)
	c := mem.NewCache(&memtest.Bytes{Data: data}, 8)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := make([]byte, 24)
			for i := range 2000 {
				pa := mem.PA(i*131+g*4099) % 0x1f000
				if _, err := c.ReadPhys(p, pa); err != nil || !bytes.Equal(p, data[pa:][:24]) {
					t.Errorf("%#x: %x, %v", uint64(pa), p, err)
					return
				}
				if v, err := c.Load64(pa &^ 7); err != nil || byte(v) != data[pa&^7] {
					t.Errorf("%#x: %#x, %v", uint64(pa), v, err)
					return
				}
				switch i % 64 {
				case 0:
					c.ReadPhysVec([]mem.Vec{{P: p[:8], PA: pa}, {P: p[8:], PA: 0x1000}})
				case 1:
					c.Forget()
				}
			}
		})
	}
	wg.Wait()
}

// A vector at the end of all addresses ends.
func TestCacheLastPage(t *testing.T) {
	c := mem.NewCache(&source{Bytes: memtest.Bytes{Data: fill(0x1000, 1)}}, 64)
	for _, pa := range []mem.PA{^mem.PA(0), ^mem.PA(0) - 0xfff, ^mem.PA(0) - 10, ^mem.PA(0) - 0x1005} {
		v := []mem.Vec{{P: make([]byte, 11), PA: pa}, {P: make([]byte, 8), PA: 0}}
		if n, err := c.ReadPhysVec(v); n != 0 || !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("%#x: %d, %v", uint64(pa), n, err)
		}
	}
}

// A cache holds as many pages as it was told, whichever way they come.
func TestCacheBound(t *testing.T) {
	const pages = 1024
	src := &source{Bytes: memtest.Bytes{Data: make([]byte, pages*mem.PageSize)}}
	c := mem.NewCache(src, 64)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	b := make([]byte, 32)
	for i := range 500 {
		var v []mem.Vec
		for k := range 32 {
			v = append(v, mem.Vec{P: b[k : k+1], PA: mem.PA((i*32 + k) % pages * mem.PageSize)})
		}
		if n, err := c.ReadPhysVec(v); n != len(v) || err != nil {
			t.Fatal(n, err)
		}
	}
	if grown := int64(heap() - before); grown > 4*64*mem.PageSize {
		t.Errorf("a cache of 64 pages holds %d KiB", grown>>10)
	}
	runtime.KeepAlive(c)
	runtime.KeepAlive(src)
}
