package xen

import (
	"context"
	"errors"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/xenguest"
	"vmscope/mem"
)

// bendable are the pages of the fake PV guest that say where its memory is: its p2m, the tables that lead there, and the
// two pages of an older kernel's tree. Of number 0 in their place its shared_info is meant.
var bendable = []uint64{0, 10, 11, 20, 21, 22, 23, 24, 25, 26, 50, 51}

// bend has a PV guest write words where it tells of its frames. Each is 11 bytes of how: the page, the word in it, the value.
func (f *fake) bend(how []byte) {
	for ; len(how) >= 11; how = how[11:] {
		frame := uint64(pvShared)
		if page := bendable[int(how[0])%len(bendable)]; page != 0 {
			frame = pvFrame(page)
		}
		at := uint64(le.Uint16(how[1:])) % (mem.PageSize / 8)
		le.PutUint64(f.machine[frame*mem.PageSize+at*8:], le.Uint64(how[3:]))
	}
}

func bent(page byte, word uint16, value uint64) []byte {
	return le.AppendUint64(le.AppendUint16([]byte{page}, word), value)
}

// FuzzPV reads a PV guest that tells lies about where its memory is: its shared_info, its p2m by address or as a tree, its
// page tables. Whatever it says, only its own frames are read, each as the page that Xen says it is.
func FuzzPV(f *testing.F) {
	f.Add([]byte{})
	f.Add(bent(0, sharedMaxPFN/8, 1<<20))
	f.Add(bent(0, sharedP2MAddr/8, 1<<63))
	f.Add(append(bent(0, sharedP2MAddr/8, 0), bent(0, sharedFrames/8, pvFrame(50))...))
	f.Add(append(bent(1, 200, pvFrame(204)), bent(1, 201, grantedFrame|9)...))
	f.Add(append(bent(2, 7, 2998), bent(1, 4, noFrame)...))
	f.Add(bent(5, 0, pvFrame(22)<<12|1<<7|3)) // a large page
	f.Add(bent(4, 511, pvFrame(21)<<12|3))    // a table in itself
	f.Fuzz(func(t *testing.T, how []byte) {
		f := pvFake()
		for page := range uint64(pvPages) {
			if page < 10 || page > 26 && page != 50 && page != 51 {
				le.PutUint64(f.machine[pvFrame(page)*mem.PageSize:], page)
			}
		}
		f.bend(how)
		m, err := attachTo(t, f, testDomain, options{})
		if err != nil {
			if f.maps != 0 {
				t.Fatalf("%d mappings left behind %v", f.maps, err)
			}
			return
		}
		ram := m.Ranges()
		if n := pages(ram); n > pvPages {
			t.Fatalf("%d pages of %d", n, pvPages)
		}
		var b [mem.PageSize]byte
		for _, r := range ram {
			for pa := r.Start; pa < r.End(); pa += mem.PageSize {
				page := uint64(pa) / mem.PageSize
				_, err := m.ReadPhys(b[:], pa)
				if page >= pvPages {
					t.Fatalf("page %#x is RAM", page)
				}
				if first := le.Uint64(b[:]); err == nil && (page < 10 || page > 51) && first != page {
					t.Fatalf("page %#x was read as %#x", page, first)
				}
			}
		}
		if _, _, err := m.Disputed(3); err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNotMapped) && !errors.Is(err, mem.ErrNoRAM) {
			t.Fatal(err)
		}
		if cpus, err := m.CPUs(context.Background()); err == nil {
			p := x86.NewPaging(m, mem.PA(cpus[0].CR3), x86.Level4)
			n := 0
			for range p.Mappings(0, ^mem.VA(0)) {
				if n++; n > 1000 {
					break
				}
			}
			s := mem.NewSpace("kernel", m, p)
			s.Read(b[:64], pvText)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRecords decodes what Xen tells of domains and vCPUs.
func FuzzRecords(f *testing.F) {
	f.Add(make([]byte, xenguest.ContextSize), uint32(0x15))
	f.Add(make([]byte, 1000), uint32(0x10))
	f.Add(make([]byte, 100), uint32(0x13))
	f.Fuzz(func(t *testing.T, b []byte, version uint32) {
		if d, err := parseInfo(b, version); err == nil && (d.Kind != PV && d.Kind != PVH && d.Kind != HVM || d.RAM%mem.PageSize != 0) {
			t.Errorf("%+v", d)
		}
		for _, pv := range []bool{true, false} {
			if r, err := xenguest.Registers(b, pv); err == nil && !r.Valid {
				t.Errorf("%+v", r)
			}
		}
		if r, err := parseHVMCPU(b); err == nil && !r.Valid {
			t.Errorf("%+v", r)
		}
	})
}
