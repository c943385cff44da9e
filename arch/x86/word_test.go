package x86_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// TestWord compares Word with Translate and a load of their own, at addresses
// of pages of all sizes, absent ones and others out of its reach.
func TestWord(t *testing.T) {
	const size = 8 << 20
	for _, mode := range []x86.Mode{x86.Level4, x86.Level5} {
		data := make([]byte, size)
		r := rand.New(rand.NewPCG(3, 4))
		for i := 0; i < size; i += 8 {
			binary.LittleEndian.PutUint64(data[i:], r.Uint64()&^1) // no page entry that is present
		}
		clear(data[0x3000:0x80000])
		tb := memtest.NewTables(data, 0, 0x3000, mode.Levels())
		tb.Map(0xffff888000000000, 0, 1<<30, 3, w|nx) // most of it outside of RAM
		tb.Map(0xffffffff81000000, 2<<20, 4<<20, 2, 0)
		tb.Map(0x400000, 0x100000, 64<<10, 1, u|w)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := x86.NewPaging(ram, tb.Root, mode)
		s := mem.NewSpace("test", ram, p)
		hits := 0
		for range 20000 {
			va := []mem.VA{0xffff888000000000, 0xffffffff81000000, 0x400000, 0x1234567890, 1 << 62}[r.IntN(5)]
			va += mem.VA(r.Uint64N([]uint64{16 << 20, 8 << 20, 128 << 10}[r.IntN(3)]))
			if r.IntN(4) > 0 {
				va &^= 7
			}
			v, ok := p.Word(va)
			m, err := p.Translate(va)
			want, have := uint64(0), false
			if err == nil {
				want, have = ram.Word(m.PA)
			}
			if ok && (!have || v != want) {
				t.Fatalf("%v: word at %#x = %#x, want %#x, %v", mode, uint64(va), v, want, err)
			}
			if !ok && have && va&7 == 0 {
				t.Fatalf("%v: no word at %#x, which has %#x", mode, uint64(va), want)
			}
			if ok {
				hits++
			}
			got, serr := s.Uint64(va)
			if have && (serr != nil || got != want) {
				t.Fatalf("%v: space reads %#x at %#x, %v, want %#x", mode, got, uint64(va), serr, want)
			}
		}
		if hits < 1000 {
			t.Errorf("%v: only %d words", mode, hits)
		}
	}
}
