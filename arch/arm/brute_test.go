package arm_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"vmscope/arch"
	"vmscope/arch/arm"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// modes are all that TTBCR can say, with and without the access flag, and with
// either half not walked now and then.
func modes(rng *rand.Rand) (out []arm.Mode) {
	for n := range uint8(8) {
		for _, access := range []bool{false, true} {
			out = append(out, arm.Mode{Low: n, Access: access})
		}
		for h := range uint8(8) {
			out = append(out, arm.Mode{Long: true, Low: n, High: h})
		}
		out = append(out, arm.Mode{Low: n, NoLow: rng.IntN(2) == 0, NoHigh: rng.IntN(2) == 0},
			arm.Mode{Long: true, Low: n, High: uint8(rng.IntN(8)), NoLow: rng.IntN(2) == 0, NoHigh: rng.IntN(2) == 0})
	}
	return out
}

const (
	ramBytes = 1 << 18
	ttbr1    = 1 << 17
)

// randomRAM is memory of random descriptors of which many lead to others in it.
func randomRAM(rng *rand.Rand, m arm.Mode) []byte {
	b := make([]byte, ramBytes)
	for i := 0; i < len(b); i += 4 {
		d := rng.Uint32()
		if rng.IntN(4) > 0 {
			d = d&(1<<12-1) | rng.Uint32N(ramBytes)&^(1<<12-1)
		}
		if rng.IntN(6) > 0 {
			d |= 1
		}
		if m.Long && i%8 == 4 && rng.IntN(4) > 0 {
			d &^= 0xff // bits 32 to 39 of the address
		}
		binary.LittleEndian.PutUint32(b[i:], d)
	}
	return b
}

// address is one that is likely near where something begins or ends.
func address(rng *rand.Rand) uint64 {
	va := uint64(rng.Uint32())
	switch rng.IntN(8) {
	case 0:
		va |= ^uint64(0) << (24 + rng.IntN(8)) & (1<<32 - 1)
	case 1:
		va >>= rng.IntN(9)
	case 2:
		va = (1<<rng.IntN(33) + uint64(rng.IntN(3)) - 1) & (1<<32 - 1)
	case 3:
		va = (1<<32 - 1<<rng.IntN(32) + uint64(rng.IntN(3)) - 1) & (1<<32 - 1)
	case 4:
		if rng.IntN(4) == 0 {
			va |= 1 << (32 + rng.IntN(32))
		}
	}
	return va
}

// Each mode, walked beside the slow walker: the same address, size, level and
// permissions, or an absence at the same level. Steps say the same.
func TestTranslateBrute(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pages := make(map[[2]uint64]int) // by size and whether the descriptors are long
	absent := 0
	for _, mode := range modes(rng) {
		data := randomRAM(rng, mode)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		top := 2
		if mode.Long {
			top = 3
		}
		for _, phys := range []mem.PhysReader{ram, &memtest.Bytes{Data: data}} {
			// Bits that are no address: attributes, and ASID.
			p := arm.NewPaging(phys, mode, 0x6a, ttbr1|0x6a)
			s := slow{data: data, mode: mode, ttbr: [2]uint64{0x6a, ttbr1 | 0x6a}}
			if mode.Long {
				p = arm.NewPaging(phys, mode, 0xff<<48, ttbr1|0xff<<48)
				s.ttbr = [2]uint64{0xff << 48, ttbr1 | 0xff<<48}
			}
			for range 1000 {
				va := address(rng)
				want, ok := s.walk(va)
				m, err := p.Translate(mem.VA(va))
				checkSteps(t, p, mem.VA(va), m, err)
				if ok != (err == nil) {
					t.Fatalf("%+v va %#x: %+v, %v; the slow walker: %+v, %v", mode, va, m, err, want, ok)
				}
				if !ok {
					absent++
					level := 0
					if s.fault > 0 {
						level = top + 1 - s.fault
					}
					var f *mem.FaultError
					if !errors.As(err, &f) || f.Level != level {
						t.Fatalf("%+v va %#x: %v, the slow walker ends at level %d", mode, va, err, s.fault)
					}
					continue
				}
				if uint64(m.PA) != want.pa || int(m.Level) != top+1-want.level || m.Perm != want.perm {
					t.Fatalf("%+v va %#x: %+v, the slow walker says %+v", mode, va, m, want)
				}
				if m.Size != want.size && !cut(&s, va, m.Size, want) {
					t.Fatalf("%+v va %#x: %d bytes, the slow walker says %d", mode, va, m.Size, want.size)
				}
				pages[[2]uint64{want.size, uint64(top)}]++
			}
		}
	}
	if absent < 1000 || len(pages) != 7 {
		t.Errorf("%d absent, pages %v: too few to tell", absent, pages)
	}
	for page, n := range pages {
		if n < 100 {
			t.Errorf("%d of pages %v: too few to tell", n, page)
		}
	}
}

// cut reports whether a block of 1 GiB is rightly cut to size around va: all of
// that is mapped by it, and more is not.
func cut(s *slow, va, size uint64, block found) bool {
	same := func(at uint64) bool {
		f, ok := s.walk(at)
		return ok && f.size == block.size && f.pa-at == block.pa-va
	}
	from, twice := va&^(size-1), va&^(2*size-1)
	return block.size == 1<<30 && same(from) && same(from+size-1) && !(same(twice) && same(twice+2*size-1))
}

// checkSteps holds Steps to what Translate says of the same address.
func checkSteps(t *testing.T, p arch.Paging, va mem.VA, m mem.Mapping, err error) {
	t.Helper()
	steps, serr := p.Steps(va)
	if (err == nil) != (serr == nil) || err != nil && err.Error() != serr.Error() {
		t.Fatalf("%#x: Translate %v, Steps %v", uint64(va), err, serr)
	}
	if err != nil {
		return
	}
	last := steps[len(steps)-1]
	perm := mem.Exec | mem.Write | mem.User
	for i, s := range steps {
		perm &= s.Perm
		if !s.Present || i > 0 && s.Level != steps[i-1].Level-1 {
			t.Fatalf("%#x: %+v", uint64(va), steps)
		}
	}
	if last.Entry != m.Entry || last.Level != m.Level || m.Perm&^perm != 0 {
		t.Fatalf("%#x: %+v, but %+v", uint64(va), m, steps)
	}
}

// What Mappings lists is what Translate finds, page by page; what lies between
// is not mapped.
func TestMappingsBrute(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	regions := 0
	for _, mode := range modes(rng) {
		data := randomRAM(rng, mode)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := arm.NewPaging(ram, mode, 0, ttbr1)
		for range 6 {
			first := mem.VA(address(rng) & (1<<32 - mem.PageSize))
			last := first + mem.VA(1)<<(12+rng.IntN(12)) - 1
			tables, next := 64, first
			for r, err := range p.MappingsWithin(&tables, first, last) {
				if errors.Is(err, mem.ErrInconsistent) {
					break
				}
				if err == nil {
					regions++
				}
				if r.VA < next && r.VA >= first {
					t.Fatalf("%+v: %+v, after %#x", mode, r, uint64(next))
				}
				for ; next < r.VA && next <= last; next += mem.PageSize {
					if m, err := p.Translate(next); err == nil {
						t.Fatalf("%+v: %#x is not listed, but %+v", mode, uint64(next), m)
					}
				}
				for at := max(r.VA, first); at < r.VA+mem.VA(r.Size) && at <= last; at += mem.PageSize {
					m, terr := p.Translate(at)
					if (err == nil) != (terr == nil) || err == nil && (m.PA != r.PA+mem.PA(at-r.VA) || m.Size != r.Page || m.Perm != r.Perm) {
						t.Fatalf("%+v: %+v, %v at %#x, but %+v, %v", mode, r, err, uint64(at), m, terr)
					}
				}
				next = max(next, r.VA+mem.VA(r.Size))
			}
		}
	}
	if regions < 1000 {
		t.Errorf("%d regions: too few to tell", regions)
	}
}
