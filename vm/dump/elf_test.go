package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

func open(t testing.TB, path string, opts ...Option) vm.Machine {
	t.Helper()
	m, err := Open(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestELFContract(t *testing.T) {
	low, high := pattern(1, 64<<10), pattern(2, 32<<10)
	path := file(t, makeELF([]load{
		{paddr: 0, memsz: 64 << 10, data: low},
		{paddr: 4 << 30, memsz: 40 << 10, data: high},
	}, makeNote("QEMU", 0, cpuStateNote()), false))
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: 64 << 10}, {Start: 4 << 30, Size: 40 << 10}},
		Bytes:  map[mem.PA][]byte{0: low, 4 << 30: high, 4<<30 + 32<<10: make([]byte, 8<<10)},
		CPUs:   1,
	})
}

// TestELFSegments checks which physical memory comes out of which segments.
func TestELFSegments(t *testing.T) {
	a, b := pattern(1, 3*4096), pattern(2, 2*4096)
	for _, c := range []struct {
		name  string
		loads []load
		want  []mem.Range
		bytes map[mem.PA][]byte
	}{
		{
			"one page mapped twice (paging=true)",
			[]load{{vaddr: 0xffff888000001000, paddr: 0x1000, memsz: 4096 * 3, data: a}, {vaddr: 0x400000, paddr: 0x2000, memsz: 4096, off: 64 + 2*56 + 4096, filesz: 4096}},
			[]mem.Range{{Start: 0x1000, Size: 0x3000}},
			map[mem.PA][]byte{0x1000: a},
		},
		{
			"overlap, the later goes on",
			[]load{{paddr: 0x3000, memsz: 2 * 4096, data: b}, {paddr: 0x1000, memsz: 3 * 4096, data: a}},
			[]mem.Range{{Start: 0x1000, Size: 0x4000}},
			map[mem.PA][]byte{0x1000: a, 0x4000: b[4096:]},
		},
		{
			"zeros give way to bytes",
			[]load{{paddr: 0x1000, memsz: 0x8000}, {paddr: 0x3000, memsz: 3 * 4096, data: a}},
			[]mem.Range{{Start: 0x1000, Size: 0x8000}},
			map[mem.PA][]byte{0x1000: make([]byte, 0x2000), 0x3000: a, 0x6000: make([]byte, 0x3000)},
		},
		{
			"mapped device, not in the dump",
			[]load{{paddr: 0x1000, memsz: 3 * 4096, data: a}, {paddr: 0xfee00000, memsz: 4096, off: ^uint64(0)}},
			[]mem.Range{{Start: 0x1000, Size: 0x3000}},
			nil,
		},
		{
			"segments that start and end inside pages",
			[]load{{paddr: 0x1100, memsz: 0x300, data: a[:0x300]}, {paddr: 0x1800, memsz: 0x1800, data: b[:0x1800]}, {paddr: 0x3000, memsz: 0x10, data: b[:0x10]}},
			[]mem.Range{{Start: 0x1000, Size: 0x2010}},
			map[mem.PA][]byte{0x1100: a[:0x300], 0x1800: b[:0x1800], 0x3000: b[:0x10], 0x1400: make([]byte, 0x400)},
		},
		{
			"nothing at all between",
			[]load{{paddr: 0x8000, memsz: 2 * 4096, data: b}, {paddr: 0x1000, memsz: 3 * 4096, data: a}, {}},
			[]mem.Range{{Start: 0x1000, Size: 0x3000}, {Start: 0x8000, Size: 0x2000}},
			map[mem.PA][]byte{0x1000: a, 0x8000: b},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := open(t, file(t, makeELF(c.loads, nil, len(c.loads) == 3)))
			defer m.Close()
			if r := vmtest.Join(m.(mem.Ranger).Ranges()); !slices.Equal(r, c.want) {
				t.Fatalf("ranges %#x, want %#x", r, c.want)
			}
			for pa, want := range c.bytes {
				got := make([]byte, len(want))
				if n, err := m.ReadPhys(got, pa); n != len(want) || err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %#x: %d, %v", len(want), uint64(pa), n, err)
				}
			}
			if _, err := m.(vm.CPUs).CPUs(context.Background()); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("registers of a dump without: %v", err)
			}
		})
	}
}

func TestTruncatedELF(t *testing.T) {
	whole := makeELF([]load{{paddr: 0x1000, memsz: 3 * 4096, data: pattern(1, 3*4096)}, {paddr: 1 << 32, memsz: 4096, data: pattern(2, 4096)}}, nil, false)
	path := file(t, whole[:len(whole)-4096-5000])
	_, err := Open(path)
	if !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "16560") || !strings.Contains(err.Error(), "7464") {
		t.Errorf("Open of a truncated dump: %v", err)
	}
	m := open(t, path, AllowTruncated())
	defer m.Close()
	if r := m.(mem.Ranger).Ranges(); len(r) != 1 || r[0] != (mem.Range{Start: 0x1000, Size: 3*4096 - 5000}) {
		t.Errorf("ranges of what is left: %#x", r)
	}
	if _, err := Open(file(t, whole[:100])); !errors.Is(err, ErrTruncated) {
		t.Errorf("Open of a dump cut in its headers: %v", err)
	}
}

// cpuStateNote is a struct QEMUCPUState of 440 bytes whose fields tell their
// place.
func cpuStateNote() []byte {
	b := make([]byte, 440)
	binary.LittleEndian.PutUint32(b, 1)
	binary.LittleEndian.PutUint32(b[4:], 440)
	for i := 8; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(i))
	}
	return b
}

func TestRegisters(t *testing.T) {
	status := make([]byte, 336)
	for i := range 27 {
		binary.LittleEndian.PutUint64(status[112+8*i:], uint64(i))
	}
	general := []vm.Registers{{RIP: 16, CS: 17, RFLAGS: 18, RSP: 19, SS: 20, GSBase: 22,
		General: [16]uint64{10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0}}}
	mem1 := []load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}
	for _, c := range []struct {
		name  string
		notes []byte
		want  []vm.Registers
	}{
		{"both notes", append(makeNote("CORE", 1, status), makeNote("QEMU", 0, cpuStateNote())...), []vm.Registers{{
			RSP: 56, RIP: 136, RFLAGS: 144, GSBase: 152 + 4*24 + 16, GDTBase: 152 + 8*24 + 16, IDTBase: 152 + 9*24 + 16,
			CR0: 392, CR3: 416, CR4: 424, KernelGS: 432, Valid: true,
			CS: 152, SS: 152 + 5*24, General: [16]uint64{8, 24, 32, 16, 56, 64, 40, 48, 72, 80, 88, 96, 104, 112, 120, 128},
		}}},
		{"general ones only", makeNote("CORE", 1, status), general},
		{"a note that claims too much", append(makeNote("CORE", 1, status), 1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0), general},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := open(t, file(t, makeELF(mem1, c.notes, false)))
			defer m.Close()
			r, err := m.(vm.CPUs).CPUs(context.Background())
			if err != nil || !slices.Equal(r, c.want) {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestManyNotes: a million headers may all point to the same large note.
func TestManyNotes(t *testing.T) {
	const headers, at = 4, 4096
	b := makeELF([]load{{paddr: 0x1000, memsz: 4096, off: at, filesz: 4096}}, nil, false)
	for range headers {
		h := make([]byte, 56)
		binary.LittleEndian.PutUint32(h, ptNote)
		binary.LittleEndian.PutUint64(h[8:], at)
		binary.LittleEndian.PutUint64(h[32:], maxNotes*2/5)
		b = append(b, h...)
	}
	binary.LittleEndian.PutUint16(b[56:], headers+1)
	path := file(t, append(append(b, make([]byte, at-len(b))...), makeNote("QEMU", 0, cpuStateNote())...))
	if err := os.Truncate(path, maxNotes); err != nil {
		t.Fatal(err)
	}
	m := open(t, path)
	defer m.Close()
	if r, err := m.(vm.CPUs).CPUs(context.Background()); len(r) != 3 || err != nil {
		t.Errorf("%d register sets, %v: want those of the first 64 MiB", len(r), err)
	}
}

func TestRefusals(t *testing.T) {
	good := makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}, nil, false)
	with := func(off int, b ...byte) []byte {
		x := slices.Clone(good)
		copy(x[off:], b)
		return x
	}
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "empty"},
		{"less than a page", []byte("x"), "less than a page"},
		{"gzip", append([]byte("\x1f\x8b\x08"), make([]byte, 8192)...), "gunzip"},
		{"xz", append([]byte("\xfd7zXZ\x00"), make([]byte, 8192)...), "unxz"},
		{"qcow2", append([]byte("QFI\xfb"), make([]byte, 8192)...), "disk image"},
		{"a VMware disk", append([]byte("KDMV"), make([]byte, 8192)...), "a disk is not memory"},
		{"a VirtualBox disk", slices.Concat(make([]byte, 64), []byte("\x7f\x10\xda\xbe"), make([]byte, 8192)), "a disk is not memory"},
		{"a state of VirtualBox", append([]byte("\x7fVirtualBox SavedState V2.0"), make([]byte, 8192)...), "dumpvmcore"},
		{"program", with(16, 2), "is no core"},
		{"big endian", with(5, 2), "big-endian"},
		{"no segments", with(56, 0, 0), "no segments"},
		{"header size", with(54, 1, 0), "program headers of 1 bytes"},
		{"section 0 far outside", append(with(56, 0xff, 0xff)[:40:40], append(bytes.Repeat([]byte{0xff}, 8), with(56, 0xff, 0xff)[48:]...)...), "section 0"},
		{"huge address", with(64+24, 0, 0, 0, 0, 0, 0, 0, 0x80), "no machine has"},
		{"process core", makeELF([]load{{vaddr: 0x1000, memsz: 4096, data: good[:4096]}, {vaddr: 0x8000, memsz: 4096, data: good[:4096]}}, nil, false), "core of a process"},
		{"memory for nothing", makeELF([]load{{paddr: 0x1000, memsz: 1 << 45}}, nil, false), "without giving them"},
		{"no memory", makeELF(nil, makeNote("CORE", 1, nil), false), "without memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Open(file(t, c.in))
			if m != nil || err == nil {
				t.Fatalf("%v, %v", m, err)
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q does not say %q in one line", err, c.want)
			}
		})
	}
	if _, err := Open("/nonexistent/dump"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("Open of a directory succeeds")
	}
	// Raw RAM whose first bytes the guest made look like a dump: the operator
	// says what it is.
	m, err := Open(file(t, good), Layout("q35"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var b [4]byte
	if _, err := m.ReadPhys(b[:], 0); err != nil || string(b[:]) != "\x7fELF" {
		t.Errorf("raw RAM reads %q, %v", b, err)
	}
}

// FuzzELF: whatever the headers say, what is opened is sound: ranges are
// sorted, and all of them can be read.
func FuzzELF(f *testing.F) {
	f.Add(makeELF([]load{{paddr: 0x1000, memsz: 0x2000, data: pattern(1, 4096)}, {paddr: 0x800, memsz: 0x900, data: pattern(2, 0x900)}}, makeNote("QEMU", 0, cpuStateNote()), false))
	f.Add(makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}, {paddr: 0x5000, memsz: 0x123}, {paddr: 0x1000, memsz: 0x3000}}, nil, true))
	f.Add(makeVBox(0x10006, stateCPUs()[:1], map[mem.PA][]byte{0x1000: pattern(1, 4096)}, 0x1000))
	f.Add(makeXenCore(xenMagicHVM, []uint64{3, 1, 2}, pattern(1, 3<<12)))
	f.Add(makeXenCore(xenMagicPV, []uint64{3, 1, 2}, pattern(1, 3<<12)))
	f.Fuzz(func(t *testing.T, in []byte) {
		fd, err := unix.MemfdCreate("dump", unix.MFD_CLOEXEC)
		if err != nil {
			t.Skip(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, append([]byte("\x7fELF"), in[min(4, len(in)):]...)); err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/proc/self/fd/%d", fd)
		for _, o := range [][]Option{nil, {AllowTruncated()}} {
			m, err := Open(path, o...)
			if (m == nil) == (err == nil) {
				t.Fatalf("%v, %v", m, err)
			}
			if m == nil {
				continue
			}
			for _, r := range m.(mem.Ranger).Ranges() {
				var b [1]byte
				for _, pa := range []mem.PA{r.Start, r.End() - 1} {
					if _, err := m.ReadPhys(b[:], pa); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := mem.Extents(m); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
