package ksym

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/internal/ramfile"
	"vmscope/mem"
)

var update = flag.Bool("update", false, "record the fixtures anew from real guests")

// openRAM maps the RAM of a guest that is too small for its RAM to be split.
func openRAM(t testing.TB, path string) *ramfile.Memory {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ramfile.Map(f, false)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ramfile.New([]ramfile.Place{{File: file, Size: file.Size()}})
	if err != nil {
		file.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(); file.Close() })
	return m
}

// TestGuest compares every symbol of a stock kernel with what the guest prints
// of itself: found by searching its RAM, and read where VMCOREINFO says.
func TestGuest(t *testing.T) {
	kernels := guestlab.TestKernels(t)
	if *update {
		kernels = fixtures
	}
	for _, kernel := range kernels {
		t.Run(kernel, func(t *testing.T) {
			g := guestlab.Boot(t, guestlab.Config{Kernel: kernel, RAM: guestlab.SharedFile})
			out, err := g.Run(context.Background(), "cat /proc/kallsyms")
			if err != nil {
				t.Fatal(err)
			}
			// Lines with a fourth field are of modules and BPF programs.
			var own strings.Builder
			for line := range strings.Lines(out) {
				if !strings.Contains(line, "\t") {
					own.WriteString(line)
				}
			}
			ram := openRAM(t, g.RAMFile())
			extents, err := ram.Extents()
			if err != nil {
				t.Fatal(err)
			}

			infos, err := FindVMCoreInfo(t.Context(), ram, extents)
			if err != nil || len(infos) != 1 {
				t.Fatalf("%d VMCOREINFO texts, %v, want 1", len(infos), err)
			}
			info := infos[0]
			if info.OSRelease() != g.Kernel().Release || len(info.Places) != 2 {
				t.Errorf("VMCOREINFO of %q at %#x, want two of %q", info.OSRelease(), info.Places, g.Kernel().Release)
			}
			base, ok := info.Number("phys_base")
			if !ok {
				t.Fatal("no phys_base")
			}
			delta := 0xffffffff80000000 - uint64(base)
			read := func(p []byte, va mem.VA) (int, error) { return ram.ReadPhys(p, mem.PA(uint64(va)-delta)) }

			found, err := Find(t.Context(), ram, extents)
			if err != nil || len(found) != 1 {
				t.Fatalf("%d tables, %v, want 1", len(found), err)
			}
			f := found[0]
			t.Logf("%s: token table at %#x, %+v", info.OSRelease(), uint64(f.TokenTable), f.Proof())
			tab := f.Table
			if tab.Proof().Physical {
				tab = tab.Rebase(delta)
			}
			compare(t, tab, own.String())

			places, ok := info.Kallsyms()
			if ok != (kernel != "bullseye-cloud") {
				t.Errorf("VMCOREINFO tells where kallsyms is: %v", ok)
			}
			if ok {
				if uint64(places.TokenTable)-delta != uint64(f.TokenTable) {
					t.Errorf("token table found at %#x, VMCOREINFO says %#x", uint64(f.TokenTable), uint64(places.TokenTable))
				}
				tab, err := At(read, places)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, tab, own.String())
			}
			if *update {
				recordFixture(t, kernel, ram, f, info, delta, own.String())
			}
		})
	}
}

// compare demands that a table prints as the guest's /proc/kallsyms.
func compare(t *testing.T, tab *Table, want string) {
	t.Helper()
	var got bytes.Buffer
	printKallsyms(&got, tab)
	if got.String() == want {
		checkLookups(t, tab)
		return
	}
	g, w := strings.Split(got.String(), "\n"), strings.Split(want, "\n")
	if len(g) != len(w) {
		t.Errorf("%d symbols, want %d", len(g)-1, len(w)-1)
	}
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("symbol %d: %q, the guest says %q", i, g[i], w[i])
		}
	}
}

// recordFixture writes the fixture of a kernel.
func recordFixture(t *testing.T, kernel string, ram *ramfile.Memory, found Found, info *CoreInfo, delta uint64, kallsyms string) {
	n := found.Len()
	p := Places{TokenTable: mem.VA(uint64(found.TokenTable) + delta)}
	layout := found.Proof().Layout
	if layout == BaseFirst {
		// Before 6.0 nothing tells but the search: num_syms stands before the
		// first name.
		back := make([]byte, 4<<20)
		if _, err := ram.ReadPhys(back, found.TokenTable-4<<20); err != nil {
			t.Fatal(err)
		}
		at := bytes.LastIndex(back, append(binary.LittleEndian.AppendUint32(nil, uint32(n)), 0, 0, 0, 0))
		p.NumSyms = p.TokenTable - mem.VA(len(back)-at)
		p.Names, p.RelativeBase = p.NumSyms+8, p.NumSyms-8
		p.Offsets = p.RelativeBase - mem.VA(align(4*uint64(n), 8))
		p.TokenIndex = mem.VA(align(uint64(p.TokenTable)+uint64(len(found.tok.text)), 8))
	} else {
		p, _ = info.Kallsyms()
	}
	lo, hi := min(p.Offsets, p.NumSyms), max(p.TokenIndex+indexSize, p.Offsets+mem.VA(4*n))
	f := &fixture{Release: info.OSRelease(), Layout: layout, Delta: delta, N: n, CoreInfo: info.Text()}
	if found.Proof().Seqs {
		if layout != PlaceRelative {
			t.Fatal("where the index by name is, is not told for this layout")
		}
		f.Seqs = int(hi - lo)
		hi += mem.VA(3 * n)
	}
	for i, va := range []mem.VA{p.NumSyms, p.Names, p.TokenTable, p.TokenIndex, p.Offsets, p.RelativeBase} {
		f.Blocks[i] = uint64(va)
	}
	f.Start = uint64(lo) - delta
	f.bytes = make([]byte, hi-lo)
	if _, err := ram.ReadPhys(f.bytes, mem.PA(f.Start)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(kallsyms))
	f.Kallsyms = slices.Clone(sum[:])
	if err := f.write(fixturePath(kernel)); err != nil {
		t.Fatal(err)
	}
}
