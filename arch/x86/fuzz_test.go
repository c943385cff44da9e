package x86_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// FuzzTranslate walks tables whose entries are the input, in the order in which
// they are asked for.
func FuzzTranslate(f *testing.F) {
	entries := func(e ...uint64) (b []byte) {
		for _, v := range e {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	f.Add(uint8(x86.Level4), uint64(0xffffffff81000000), entries(0x1007, 0x2007, 0x3007, 0x4007))
	f.Add(uint8(x86.Level5), uint64(0xff00000000000000), entries(0x1007, 0x2007, 0x3007, 0x4007, 0x5001))
	f.Add(uint8(x86.Level4), uint64(0x1000), entries(0x1087))
	f.Add(uint8(x86.Level4), uint64(0x1000), entries(0x1007, 0xffffffffffffff87))
	f.Add(uint8(x86.PAE), uint64(0xc0001000), entries(0x1001, 0x2087))
	f.Add(uint8(x86.Bits32), uint64(0xc0001000), entries(0x1001, 0x1001<<32))
	f.Fuzz(func(t *testing.T, mode uint8, va uint64, answers []byte) {
		s := &memtest.Script{Answers: answers}
		p := x86.NewPaging(s, 0x1000, x86.Mode(mode))
		m, err := p.Translate(mem.VA(va))
		if s.Reads > p.Mode().Levels() {
			t.Fatalf("%d reads in %v mode", s.Reads, p.Mode())
		}
		if (err != nil) != (m == mem.Mapping{}) {
			t.Fatalf("%+v and %v", m, err)
		}
		checkSteps(t, x86.NewPaging(&memtest.Script{Answers: answers}, 0x1000, x86.Mode(mode)), mem.VA(va), m, err)
		if err != nil {
			var fe *mem.FaultError
			if !errors.As(err, &fe) || fe.Addr != va || fe.Op != "translate" || fe.Level > p.Mode().Levels() {
				t.Fatalf("%v", err)
			}
			if !errors.Is(err, mem.ErrNotMapped) && !errors.Is(err, mem.ErrNoRAM) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		switch {
		case m.PA >= 1<<52 || uint64(m.PA)%m.Size != va%m.Size:
			t.Fatalf("%+v of %#x", m, va)
		case m.Entry&1 == 0 || !p.Mode().Canonical(mem.VA(va)) || m.Left() > m.Size || m.Left() == 0:
			t.Fatalf("%+v of %#x", m, va)
		}
	})
}

// FuzzMappings lists one page of hostile tables that can only refer to itself,
// in both ways, and compares each region with a walk.
func FuzzMappings(f *testing.F) {
	f.Add(uint64(0), uint64(1<<30), []byte{7, 0x10, 0, 0, 0, 0, 0, 0, 0x87, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, first, size uint64, table []byte) {
		data := make([]byte, 2*mem.PageSize)
		copy(data, table)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := x86.NewPaging(ram, 0, x86.Level4)
		next, n := first&^(1<<30-1), 0
		for r, err := range p.Mappings(mem.VA(first), mem.VA(first+min(size, ^first))) {
			if err == nil && (uint64(r.VA) < next || r.Size == 0 || r.Page == 0) {
				t.Fatalf("%+v after %#x", r, next)
			}
			if err == nil {
				next = uint64(r.VA) + r.Size
				if m, err := p.Translate(r.VA); err != nil || m.PA != r.PA || m.Size != r.Page || m.Perm != r.Perm {
					t.Fatalf("%+v, but %+v, %v", r, m, err)
				}
			}
			if n++; n > 2000 {
				return
			}
		}
	})
}
