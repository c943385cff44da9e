package infer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// TestOwnAddressEverywhere has modules full of their own addresses, in which each place
// may begin a run of any step: none is where they lie, and that is found out in a
// number of steps that a test can wait for.
func TestOwnAddressEverywhere(t *testing.T) {
	w := newWorld(2, 8)
	const size = 1280
	for i, o := range w.mods {
		for off := mem.VA(88); off < size-8; off += 8 {
			w.put(o+off, uint64(o))
		}
		name := w.alloc(16, 8)
		w.text(name, fmt.Sprintf("mod_%c", 'a'+i)) // what sysfs has
		w.put(o+size-8, uint64(name))
	}
	l := newLook(t.Context(), w.kernel())
	if m, err := l.modules(); err != nil || len(m.self) < 100 {
		t.Fatal("the modules are none", err)
	}
	r, err := Run(t.Context(), w.kernel())
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(r.Members, "module.list") {
		t.Errorf("found %v", r.Members)
	}
}

func TestProgressions(t *testing.T) {
	got := progressions([]int{0, 8, 16, 40, 64, 88, 400, 800}, 3, 256)
	if want := []progression{{0, 8}, {16, 24}, {40, 24}}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	var all []int
	for off := 0; off < maxModule; off += 4 {
		all = append(all, off)
	}
	if n := len(progressions(all, 2, maxPart)); n > len(all)*maxPart/4 {
		t.Errorf("%d of %d numbers", n, len(all))
	}
}

// TestEnded ends the context at any of the reads: Run says so, and reads no more than
// what was under way.
func TestEnded(t *testing.T) {
	w := newWorld(2, 8)
	for at := 1; ; at += 97 {
		ctx, cancel := context.WithCancel(t.Context())
		e := &ender{PhysReader: &memtest.Bytes{Data: w.b}, at: at, end: cancel}
		k := w.kernel()
		k.Mem = mem.NewSpace("world", e, w.space())
		r, err := Run(ctx, k)
		cancel()
		if e.reads < at { // it was done before
			if err != nil {
				t.Error(err)
			}
			return
		}
		if r != nil || !errors.Is(err, context.Canceled) || e.reads > at+maxTask/page {
			t.Fatalf("ended at read %d: %v after %d reads", at, err, e.reads)
		}
	}
}

// ender calls end at a read.
type ender struct {
	mem.PhysReader
	reads, at int
	end       func()
}

func (e *ender) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if e.reads++; e.reads == e.at {
		e.end()
	}
	return e.PhysReader.ReadPhys(p, pa)
}
