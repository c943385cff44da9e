package arm_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/arch/arm"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

const mmu = 1 // SCTLR.M

// FuzzTranslate walks tables whose descriptors are the input, in the order in
// which they are asked for, in the mode that SCTLR and TTBCR say.
func FuzzTranslate(f *testing.F) {
	entries := func(e ...uint64) (b []byte) {
		for _, v := range e {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	f.Add(uint32(mmu), uint32(0), uint64(0xc0300000), entries(0x4111140e<<32|0x4111140e))
	f.Add(uint32(mmu|1<<29), uint32(7), uint64(0xc0300000), entries(0x12441c2e<<32|0x12441c2e))
	f.Add(uint32(mmu), uint32(1), uint64(0x1000), entries(0x5000<<32|0x5001, 0x606e<<32|0x606d))
	f.Add(uint32(mmu), uint32(1<<31|2<<16), uint64(0xc0300000), entries(0x40000711))
	f.Add(uint32(mmu), uint32(1<<31), uint64(0x1000), entries(0x5003, 0x6003, 0xff00007003))
	f.Fuzz(func(t *testing.T, sctlr, ttbcr uint32, va uint64, answers []byte) {
		mode := arm.ModeOf(sctlr, ttbcr)
		s := &memtest.Script{Answers: answers}
		m, err := arm.NewPaging(s, mode, 0x10000, 0x20000).Translate(mem.VA(va))
		if s.Reads > 3 || !mode.Long && s.Reads > 2 || s.Reads > 0 && sctlr&mmu == 0 {
			t.Fatalf("%d reads", s.Reads)
		}
		if (err != nil) != (m == mem.Mapping{}) {
			t.Fatalf("%+v and %v", m, err)
		}
		checkSteps(t, arm.NewPaging(&memtest.Script{Answers: answers}, mode, 0x10000, 0x20000), mem.VA(va), m, err)
		if err != nil {
			var fe *mem.FaultError
			if !errors.As(err, &fe) || fe.Addr != va || fe.Op != "translate" || fe.Level > 3 {
				t.Fatalf("%v", err)
			}
			if !errors.Is(err, mem.ErrNotMapped) && !errors.Is(err, mem.ErrNoRAM) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		if m.PA >= 1<<40 || uint64(m.PA)%m.Size != va%m.Size || m.Entry&3 == 0 || va>>32 != 0 || m.Left() == 0 || m.Left() > m.Size {
			t.Fatalf("%+v of %#x", m, va)
		}
	})
}

// FuzzMappings lists hostile tables that can only refer to themselves.
func FuzzMappings(f *testing.F) {
	f.Add(uint32(mmu), uint32(0), uint32(0), uint32(1<<30), []byte{1, 0x04, 0, 0, 2, 0, 4, 0})
	f.Add(uint32(mmu), uint32(1<<31|1<<16), uint32(0x80000000), uint32(1<<30), []byte{3, 0x10, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, sctlr, ttbcr, first, size uint32, table []byte) {
		data := make([]byte, 1<<16)
		copy(data, table)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := arm.NewPaging(ram, arm.ModeOf(sctlr, ttbcr), 0, 0)
		next, n, tables := uint64(0), 0, 64
		for r, err := range p.MappingsWithin(&tables, mem.VA(first), mem.VA(first)+mem.VA(size)) {
			if err == nil {
				if uint64(r.VA) < next || r.Size == 0 || r.Page == 0 || uint64(r.VA)+r.Size > 1<<32 {
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
		if tables < -1 {
			t.Fatalf("%d tables more than allowed", -tables)
		}
	})
}
