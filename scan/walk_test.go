package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"vmscope"
	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/pattern"
)

// TestWalk searches address spaces that share pages, in other orders and with
// holes, and compares what is found in each with what is there.
func TestWalk(t *testing.T) {
	const pages = 96
	r := rand.New(rand.NewPCG(7, 8))
	total := 0
	for round := range 16 {
		data := make([]byte, (pages+64)*mem.PageSize)
		for i := range pages * mem.PageSize {
			data[i] = "abc"[r.IntN(3)]
		}
		rule := pattern.NewRule("r", pat(t, "abcabcab"), pat(t, "/bcca+bb/"), pat(t, "{ 61 62 63 61 [30-40] 62 63 63 63 63 63 61 62 }"))
		set, err := pattern.Compile([]*pattern.Rule{rule})
		if err != nil {
			t.Fatal(err)
		}
		var phys mem.PhysReader = &memtest.Bytes{Data: data}
		if round%2 == 0 {
			if phys, err = mem.NewRAM(mem.Segment{Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		s := &search{View: &vmscope.View{View: &linux.View{Phys: phys}}, ctx: context.Background(), set: set, scanner: set.Scanner(),
			o: Options{Max: 1 << 20}, phys: phys, frames: newFrames(phys)}
		next := uint64(pages * mem.PageSize)
		for n := range 4 {
			tb := memtest.NewTables(data, 0, next, 4)
			var mapped []arch.Region
			for va := mem.VA(0x400000); va < 0x400000+200*mem.PageSize; va += mem.PageSize {
				if r.IntN(20) > 0 {
					frame := r.IntN(pages)
					if r.IntN(3) > 0 { // as it lies, and as others have it
						frame = int(va/mem.PageSize) % pages
					}
					tb.Map(va, mem.PA(frame)*mem.PageSize, mem.PageSize, 1, memtest.U)
					mapped = append(mapped, arch.Region{VA: va, PA: mem.PA(frame) * mem.PageSize, Size: mem.PageSize})
				}
			}
			space := mem.NewSpace("test", phys, x86.NewPaging(phys, tb.Root, x86.Level4))
			got := map[string]int{}
			s.found = func(m Match) error {
				if *m.PA%mem.PageSize != mem.PA(m.VA%mem.PageSize) || len(m.Data) != min(m.Len, maxData) {
					t.Fatalf("%+v", m)
				}
				got[fmt.Sprintf("%#x+%d", uint64(m.VA), m.Len)]++
				return nil
			}
			s.begin(&unit{kind: "test", space: space})
			if err := s.walk(space, 0, userEnd, func(arch.Region) bool { return true }, false); err != nil {
				t.Fatal(err)
			}
			if err := s.end(); err != nil {
				t.Fatal(err)
			}
			want := map[string]int{}
			for len(mapped) > 0 {
				k := 1
				for k < len(mapped) && mapped[k].VA == mapped[k-1].VA+mem.PageSize {
					k++
				}
				var run []byte
				for _, p := range mapped[:k] {
					run = append(run, data[p.PA:p.PA+mem.PageSize]...)
				}
				set.Scanner().Scan(run, 0, len(run), func(m pattern.Match) {
					want[fmt.Sprintf("%#x+%d", uint64(mapped[0].VA)+uint64(m.Start), m.End-m.Start)]++
				})
				mapped = mapped[k:]
			}
			total += len(want)
			if len(got) != len(want) {
				t.Errorf("round %d, space %d: %d places, want %d", round, n, len(got), len(want))
			}
			for k, times := range want {
				if got[k] != times {
					t.Errorf("round %d, space %d: %s %d times, want %d", round, n, k, got[k], times)
				}
			}
			if t.Failed() {
				return
			}
			next += 8 * mem.PageSize
		}
		if s.report.Searched > pages*mem.PageSize && round%2 == 0 {
			t.Errorf("searched %d bytes of %d", s.report.Searched, pages*mem.PageSize)
		}
	}
	if total < 1000 {
		t.Errorf("only %d places", total)
	}
}

func pat(t testing.TB, text string) pattern.String {
	t.Helper()
	s, err := pattern.ParsePattern(text, pattern.Modifiers{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCancel ends a search in its midst and demands what was found by then.
func TestCancel(t *testing.T) {
	data := bytes.Repeat([]byte("needle  "), 1<<16)
	ram, err := mem.NewRAM(mem.Segment{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	set, err := pattern.Compile([]*pattern.Rule{pattern.NewRule("r", pat(t, "needle"))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []mem.PA
	r, err := Run(ctx, &vmscope.View{View: &linux.View{Phys: ram}}, set, Options{Physical: true, Max: 100, Progress: func(Progress) { cancel() }},
		func(m Match) error { got = append(got, *m.PA); return nil })
	if !errors.Is(err, context.Canceled) || len(got) != 100 || !slices.IsSorted(got) || !slices.Equal(r.Limited, []string{"r"}) {
		t.Errorf("%v, %d matches, %+v", err, len(got), r)
	}
}
