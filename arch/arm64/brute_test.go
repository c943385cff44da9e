package arm64_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"vmscope/arch"
	"vmscope/arch/arm64"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// halves are the shapes of tables that the architecture has: each granule with
// roots of few entries and of many, narrow and wide.
func halves() []arm64.Half {
	var out []arm64.Half
	for _, g := range []arm64.Granule{arm64.Granule4K, arm64.Granule16K, arm64.Granule64K} {
		for _, bits := range []uint8{17, 21, 22, 25, 30, 31, 36, 39, 42, 43, 47, 48, 49, 51, 52} {
			for _, wide := range []bool{false, true} {
				if bits > 48 && !wide && g != arm64.Granule64K {
					continue // FEAT_LPA2 only
				}
				out = append(out, arm64.Half{Granule: g, Bits: bits, Wide: wide})
			}
		}
	}
	return out
}

// ram is memory of random words of which many lead somewhere: tables refer to
// each other.
const ramBytes = 4 << 16

func randomRAM(rng *rand.Rand, h *arm64.Half) []byte {
	b := make([]byte, ramBytes)
	for i := 0; i < len(b); i += 8 {
		d := rng.Uint64()
		if rng.IntN(4) > 0 { // to a table in this memory
			d &^= 1<<50 - 1<<12 | 3<<8
			d |= rng.Uint64N(ramBytes) &^ (1<<h.Granule - 1)
		}
		if rng.IntN(8) > 0 {
			d |= 1
		}
		if rng.IntN(4) > 0 {
			d |= 2
		}
		binary.LittleEndian.PutUint64(b[i:], d)
	}
	return b
}

// Each shape of tables, walked beside the slow walker: the same address, size,
// level and permissions, or an absence at the same level. Steps say the same.
func TestTranslateBrute(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	mapped, absent := 0, 0
	for _, h := range halves() {
		h.TopIgnored, h.Flat, h.Dirty = rng.IntN(2) == 0, rng.IntN(2) == 0, rng.IntN(2) == 0
		data := randomRAM(rng, &h)
		get := func(pa uint64) (uint64, bool) {
			if pa > uint64(len(data)-8) {
				return 0, false
			}
			return binary.LittleEndian.Uint64(data[pa:]), true
		}
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		for _, phys := range []mem.PhysReader{ram, &memtest.Bytes{Data: data}} {
			p := arm64.NewPaging(phys, arm64.Alike(h), 0, 1<<16)
			for range 400 {
				va, high := rng.Uint64()&(1<<h.Bits-1), rng.IntN(2) == 0
				root := uint64(0)
				if high {
					va, root = va|^uint64(0)<<h.Bits, 1<<16
				}
				if rng.IntN(8) == 0 {
					va ^= 1 << rng.IntN(64)
					if va>>55&1 != 0 {
						high, root = true, 1<<16
					} else {
						high, root = false, 0
					}
				}
				pa, size, level, perm, ok := slowWalk(get, h, high, root, va)
				m, err := p.Translate(mem.VA(va))
				checkSteps(t, p, mem.VA(va), m, err)
				if ok != (err == nil) {
					t.Fatalf("%+v va %#x: %+v, %v; the slow walker: %#x %v", h, va, m, err, pa, ok)
				}
				if !ok {
					absent++
					var f *mem.FaultError
					if !errors.As(err, &f) || level == 9 && f.Level != 0 || level < 9 && f.Level != 4-level {
						t.Fatalf("%+v va %#x: %v, the slow walker ends at level %d", h, va, err, level)
					}
					continue
				}
				mapped++
				if uint64(m.PA) != pa || m.Size != size || int(m.Level) != 4-level || m.Perm != perm {
					t.Fatalf("%+v va %#x: %+v, the slow walker says %#x, %#x bytes, level %d, %v", h, va, m, pa, size, level, perm)
				}
			}
		}
	}
	if mapped < 1000 || absent < 1000 {
		t.Errorf("%d mapped, %d absent: too few to tell", mapped, absent)
	}
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
	for _, s := range steps {
		perm &= s.Perm
	}
	if last.Entry != m.Entry || last.Level != m.Level || !last.Present || m.Perm&^mem.Exec&^perm&mem.Write != 0 {
		t.Fatalf("%#x: %+v, but %+v", uint64(va), m, steps)
	}
}

// What Mappings lists is what Translate finds, page by page; what lies between
// is not mapped.
func TestMappingsBrute(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	regions := 0
	for _, h := range halves() {
		data := randomRAM(rng, &h)
		ram, err := mem.NewRAM(mem.Segment{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		p := arm64.NewPaging(ram, arm64.Alike(h), 0, 1<<16)
		for _, from := range []uint64{rng.Uint64() & (1<<h.Bits - 1), rng.Uint64() | ^uint64(0)<<h.Bits} {
			first := mem.VA(from)
			last := first + min(64<<h.Granule, ^first)
			tables := 64
			next := first
			for r, err := range p.MappingsWithin(&tables, first, last) {
				if errors.Is(err, mem.ErrInconsistent) {
					break
				}
				if err == nil {
					regions++
				}
				for ; next < r.VA; next += 1 << h.Granule {
					if m, err := p.Translate(next); err == nil {
						t.Fatalf("%+v: %#x is not listed, but %+v", h, uint64(next), m)
					}
				}
				for at := max(r.VA, first); at < r.VA+mem.VA(r.Size) && at <= last; at += 1 << h.Granule {
					m, terr := p.Translate(at)
					if (err == nil) != (terr == nil) || err == nil && (m.PA != r.PA+mem.PA(at-r.VA) || m.Size != r.Page || m.Perm != r.Perm) {
						t.Fatalf("%+v: %+v, %v at %#x, but %+v, %v", h, r, err, uint64(at), m, terr)
					}
				}
				next = max(next, r.VA+mem.VA(r.Size))
			}
		}
	}
	if regions < 100 {
		t.Errorf("%d regions: too few to tell", regions)
	}
}
