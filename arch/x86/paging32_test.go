package x86_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

func put32(b []byte, at uint64, e uint32) { binary.LittleEndian.PutUint32(b[at:], e) }

// Two levels of 4-byte entries: as a 32-bit kernel without PAE maps its image by
// pages of 4 MiB, and a process by those of 4 KiB.
func TestMappings32(t *testing.T) {
	data := make([]byte, ramSize)
	put32(data, 0x20*4, base+0x1000|7)          // a table
	put32(data, 0x1000+0x48*4, 0x5000|5)        // 0x08048000, program
	put32(data, 0x1000+0x49*4, 0x6000|7)        // its data
	put32(data, 0x1000+0x4a*4, 0x7000|7)        // and more
	put32(data, 0x300*4, 0x00400000|0x83)       // 0xc0000000: 4 MiB
	put32(data, 0x301*4, 0x00800000|0x83)       // and 4 more
	put32(data, 0x302*4, 0x00c00000|5<<13|0x83) // PSE-36: above 4 GiB
	put32(data, 0x3ff*4, base+0x2000|3)         // the last table
	put32(data, 0x2000+0x3ff*4, 0x9000|3)       // the last page
	want := []arch.Region{
		{VA: 0x08048000, PA: 0x5000, Size: 0x1000, Page: 4096, Perm: mem.User | mem.Exec},
		{VA: 0x08049000, PA: 0x6000, Size: 0x2000, Page: 4096, Perm: mem.User | mem.Write | mem.Exec},
		{VA: 0xc0000000, PA: 0x00400000, Size: 8 << 20, Page: 4 << 20, Perm: mem.Write | mem.Exec},
		{VA: 0xc0800000, PA: 5<<32 | 0x00c00000, Size: 4 << 20, Page: 4 << 20, Perm: mem.Write | mem.Exec},
		{VA: 0xfffff000, PA: 0x9000, Size: 0x1000, Page: 4096, Perm: mem.Write | mem.Exec},
	}
	both(t, data, func(t *testing.T, phys mem.PhysReader) {
		p := x86.NewPaging(phys, base, x86.Bits32)
		list := func(first, last mem.VA) (out []arch.Region) {
			for r, err := range p.Mappings(first, last) {
				if err != nil {
					t.Errorf("%+v: %v", r, err)
				}
				out = append(out, r)
			}
			return out
		}
		if got := list(0, ^mem.VA(0)); !slices.Equal(got, want) {
			t.Errorf("%+v", got)
		}
		if got := list(0x08049000, 0xbfffffff); !slices.Equal(got, want[1:2]) {
			t.Errorf("%+v", got)
		}
		steps, err := p.Steps(0x08048123)
		if err != nil || len(steps) != 2 || steps[1] != (arch.Step{Level: 1, At: base + 0x1000 + 0x48*4, Entry: 0x5005, Present: true, Perm: mem.User | mem.Exec}) {
			t.Errorf("%+v, %v", steps, err)
		}
	})
}

// slow32 walks 32-bit tables on its own, by the figures of SDM 4.3 and 4.4.
func slow32(data []byte, mode x86.Mode, va uint32) (pa, size uint64, perm mem.Perm, ok bool) {
	get := func(at, n uint64) uint64 {
		if at+n > uint64(len(data)) {
			return 0
		}
		if n == 4 {
			return uint64(binary.LittleEndian.Uint32(data[at:]))
		}
		return binary.LittleEndian.Uint64(data[at:])
	}
	v := uint64(va)
	rw, us, nx := true, true, false
	take := func(e uint64) { rw, us, nx = rw && e&2 != 0, us && e&4 != 0, nx || e>>63 != 0 }
	if mode == x86.Bits32 {
		pde := get(v/(4<<20)*4, 4)
		take(pde)
		switch {
		case pde&1 == 0:
			return
		case pde&0x80 != 0:
			pa, size = pde&0xffc00000+(pde/(1<<13)%256)<<32+v%(4<<20), 4<<20
		default:
			pte := get(pde&0xfffff000+v/4096%1024*4, 4)
			take(pte)
			if pte&1 == 0 {
				return
			}
			pa, size = pte&0xfffff000+v%4096, 4096
		}
	} else {
		const addr = 0x000ffffffffff000
		pdpte := get(v/(1<<30)*8, 8)
		if pdpte&1 == 0 {
			return
		}
		pde := get(pdpte&addr+v/(2<<20)%512*8, 8)
		take(pde)
		switch {
		case pde&1 == 0:
			return
		case pde&0x80 != 0:
			pa, size = pde&addr&^(2<<20-1)+v%(2<<20), 2<<20
		default:
			pte := get(pde&addr+v/4096%512*8, 8)
			take(pte)
			if pte&1 == 0 {
				return
			}
			pa, size = pte&addr+v%4096, 4096
		}
	}
	if rw {
		perm |= mem.Write
	}
	if us {
		perm |= mem.User
	}
	if !nx {
		perm |= mem.Exec
	}
	return pa, size, perm, true
}

// Random tables that refer to each other, walked beside the slow walker; what
// Mappings lists is what Translate finds.
func TestTranslate32Brute(t *testing.T) {
	const size = 16 * mem.PageSize
	rng := rand.New(rand.NewPCG(5, 6))
	mapped := 0
	for _, mode := range []x86.Mode{x86.Bits32, x86.PAE} {
		for range 20 {
			data := make([]byte, size)
			for i := 0; i < size; i += 8 {
				e := rng.Uint64() &^ (0xfffff000<<32 | 0xfffff000)
				e |= rng.Uint64N(size)&^0xfff | rng.Uint64N(size)&^0xfff<<32
				if mode == x86.PAE {
					e &^= 0xf_ffff << 32
				}
				binary.LittleEndian.PutUint64(data[i:], e|1)
			}
			ram, err := mem.NewRAM(mem.Segment{Data: data})
			if err != nil {
				t.Fatal(err)
			}
			for _, phys := range []mem.PhysReader{ram, &memtest.Bytes{Data: data}} {
				p := x86.NewPaging(phys, 0, mode)
				for range 300 {
					va := rng.Uint32()
					pa, n, perm, ok := slow32(data, mode, va)
					m, err := p.Translate(mem.VA(va))
					if ok != (err == nil) || ok && (uint64(m.PA) != pa || m.Size != n || m.Perm != perm) {
						t.Fatalf("%v %#x: %+v, %v; the slow walker: %#x, %#x bytes, %v, %v", mode, va, m, err, pa, n, perm, ok)
					}
					checkSteps(t, p, mem.VA(va), m, err)
					if ok {
						mapped++
						for r, err := range p.Mappings(mem.VA(va), mem.VA(va)) {
							off := mem.VA(va) - r.VA
							if err != nil || r.PA+mem.PA(off) != m.PA || r.Perm != m.Perm || r.Page != m.Size {
								t.Fatalf("%v %#x: %+v, %v, but %+v", mode, va, r, err, m)
							}
						}
					}
				}
			}
		}
	}
	if mapped < 1000 {
		t.Errorf("%d mapped: too few to tell", mapped)
	}
}
