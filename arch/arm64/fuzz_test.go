package arm64_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/arch/arm64"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// FuzzTranslate walks tables whose descriptors are the input, in the order in
// which they are asked for, in the mode that a TCR_EL1 says.
func FuzzTranslate(f *testing.F) {
	entries := func(e ...uint64) (b []byte) {
		for _, v := range e {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	f.Add(uint64(16|16<<16|2<<30), uint64(0xffff800008010000), entries(0x1003, 0x2003, 0x3003, 0x4003))
	f.Add(uint64(12|12<<16|2<<30|1<<59), uint64(0xfff0000000000000), entries(0x1003, 0x2003, 0x3003, 0x4003, 0x5303))
	f.Add(uint64(12|12<<16|3<<30|6<<32), uint64(0xfff0000000000000), entries(0x1003, 0x20f001))
	f.Add(uint64(17|1<<30|17<<16), uint64(0xffff800000000000), entries(0x1003, 1))
	f.Fuzz(func(t *testing.T, tcr, va uint64, answers []byte) {
		s := &memtest.Script{Answers: answers}
		m, err := arm64.NewPaging(s, arm64.ModeOf(tcr), 0x10000, 0x20000).Translate(mem.VA(va))
		if s.Reads > 5 {
			t.Fatalf("%d reads", s.Reads)
		}
		if (err != nil) != (m == mem.Mapping{}) {
			t.Fatalf("%+v and %v", m, err)
		}
		checkSteps(t, arm64.NewPaging(&memtest.Script{Answers: answers}, arm64.ModeOf(tcr), 0x10000, 0x20000), mem.VA(va), m, err)
		if err != nil {
			var fe *mem.FaultError
			if !errors.As(err, &fe) || fe.Addr != va || fe.Op != "translate" || fe.Level > 5 {
				t.Fatalf("%v", err)
			}
			if !errors.Is(err, mem.ErrNotMapped) && !errors.Is(err, mem.ErrNoRAM) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		if m.PA >= 1<<52 || uint64(m.PA)%m.Size != va%m.Size || m.Entry&1 == 0 {
			t.Fatalf("%+v of %#x", m, va)
		}
	})
}

// FuzzMappings lists one page of hostile tables that can only refer to itself.
func FuzzMappings(f *testing.F) {
	f.Add(uint64(16|16<<16|2<<30), uint64(0), uint64(1<<30), []byte{3, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, tcr, first, size uint64, table []byte) {
		data := make([]byte, 2<<16)
		copy(data, table)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := arm64.NewPaging(ram, arm64.ModeOf(tcr), 0, 0)
		next, n, tables := uint64(0), 0, 64
		for r, err := range p.MappingsWithin(&tables, mem.VA(first), mem.VA(first+min(size, ^first))) {
			if err == nil {
				if uint64(r.VA) < next || r.Size == 0 || r.Page == 0 {
					t.Fatalf("%+v after %#x", r, next)
				}
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
