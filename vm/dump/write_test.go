package dump

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
)

// ram is a segment over bytes; its runs are those of the pages that are not
// all zeros.
func ram(pa mem.PA, b []byte) Segment {
	s := Segment{VA: 0xffff888000000000 + mem.VA(pa), PA: pa, Size: uint64(len(b)), Flags: 7, Data: []Run{}}
	for off := 0; off < len(b); off += mem.PageSize {
		p := b[off:min(off+mem.PageSize, len(b))]
		if len(bytes.Trim(p, "\x00")) > 0 {
			s.Data = append(s.Data, Run{uint64(off), uint64(len(p))})
		}
	}
	s.Read = func(p []byte, off uint64) error {
		if uint64(len(b)) < off+uint64(len(p)) {
			return errors.New("read past the end")
		}
		copy(p, b[off:])
		return nil
	}
	return s
}

// write writes a core to a new file.
func write(t testing.TB, notes []Note, segs ...Segment) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteCore(t.Context(), f, elf.EM_X86_64, notes, segs, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

// onlyWriter hides that a file is one: what WriteCore sees of a pipe.
type onlyWriter struct{ io.Writer }

// testSegments are two ranges of RAM with holes at the start, in the middle and
// at the end, and a window into the second.
func testSegments() (segs []Segment, low, high []byte) {
	low, high = make([]byte, 4<<20), make([]byte, 3<<20+512)
	copy(low[1<<20:], pattern(1, 3*4096))
	copy(high, pattern(2, 8192))
	copy(high[2<<20:], pattern(3, 1<<16))
	window := Segment{VA: 0xffffffff81000000, PA: 4<<30 + 2<<20, Size: 1 << 16, Flags: 5, Of: 1, Off: 2 << 20}
	return []Segment{ram(0, low), ram(4<<30, high), window}, low, high
}

func TestWriteCore(t *testing.T) {
	segs, low, high := testSegments()
	var last, total uint64
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = WriteCore(t.Context(), f, elf.EM_X86_64, []Note{CoreInfoNote("OSRELEASE=x\n")}, segs, func(done, all uint64) {
		if done < last || done > all {
			t.Errorf("progress %d of %d after %d", done, all, last)
		}
		last, total = done, all
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(len(low) + len(high)); last != want || total != want {
		t.Errorf("progress ended at %d of %d, want %d", last, total, want)
	}

	m := open(t, path)
	defer m.Close()
	if got, want := m.(mem.Ranger).Ranges(), []mem.Range{{Start: 0, Size: 4 << 20}, {Start: 4 << 30, Size: 3<<20 + 512}}; !slices.Equal(got, want) {
		t.Errorf("ranges %#x, want %#x", got, want)
	}
	same(t, m, 0, low)
	same(t, m, 4<<30, high)

	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if disk := st.Sys().(*syscall.Stat_t).Blocks * 512; disk > 256<<10 {
		t.Errorf("%d bytes on disk for 84 KiB of data", disk)
	}
	e, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if len(e.Progs) != 4 || e.Progs[0].Type != elf.PT_NOTE {
		t.Fatalf("%d program headers, the first is %v", len(e.Progs), e.Progs[0].Type)
	}
	first := e.Progs[1]
	for i, p := range e.Progs[1:] {
		s := segs[i]
		if p.Type != elf.PT_LOAD || p.Vaddr != uint64(s.VA) || p.Paddr != uint64(s.PA) || p.Filesz != s.Size || p.Memsz != s.Size || uint32(p.Flags) != s.Flags {
			t.Errorf("program header %d: %+v", i+1, p.ProgHeader)
		}
		// What crash wants of a kernel's core.
		if p.Align != 0 || p.Off < first.Off || p.Off%mem.PageSize != 0 {
			t.Errorf("program header %d: alignment %d, offset %#x; the first has %#x", i+1, p.Align, p.Off, first.Off)
		}
	}
	window, err := io.ReadAll(e.Progs[3].Open())
	if err != nil || !bytes.Equal(window, high[2<<20:2<<20+1<<16]) {
		t.Errorf("the window's bytes: %v", err)
	}
}

// same checks what m has at pa.
func same(t testing.TB, m mem.PhysReader, pa mem.PA, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := m.ReadPhys(got, pa); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("other bytes at %#x", uint64(pa))
	}
}

// TestWriteCoreAnywhere writes one core to all that can be written to.
func TestWriteCoreAnywhere(t *testing.T) {
	segs, _, _ := testSegments()
	want, err := os.ReadFile(write(t, nil, segs...))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		flags  int
		before string // what is in the file
		at     int64
	}{
		{"a file to append to", os.O_RDWR | os.O_APPEND, "", 0},
		{"behind what is there", os.O_RDWR, "before", 6},
		{"behind what is there, to append to", os.O_RDWR | os.O_APPEND, "before", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "f")
			if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, c.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Seek(c.at, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if err := WriteCore(t.Context(), f, elf.EM_X86_64, nil, segs, nil); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != c.before+string(want) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(c.before)+len(want))
			}
		})
	}
	t.Run("over what is there", func(t *testing.T) {
		path := filepath.Join(dir, "old")
		if err := os.WriteFile(path, bytes.Repeat([]byte("old"), len(want)), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := WriteCore(t.Context(), f, elf.EM_X86_64, nil, segs, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got[:len(want)], want) {
			t.Errorf("what was there shows through the holes (%v)", err)
		}
	})
	t.Run("a pipe", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer w.Close()
			if err := WriteCore(t.Context(), w, elf.EM_X86_64, nil, segs, nil); err != nil {
				t.Error(err)
			}
		}()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	})
}

func TestWriteCoreRefuses(t *testing.T) {
	whole := ram(0, make([]byte, 4*4096))
	runs := func(r ...Run) []Segment {
		s := whole
		s.Data = r
		return []Segment{s}
	}
	for _, c := range []struct {
		name string
		segs []Segment
		want string
	}{
		{"a run behind the end", runs(Run{3 * 4096, 4097}), "out of place"},
		{"a run that starts behind the end", runs(Run{5 * 4096, 0}), "out of place"},
		{"a run that wraps around", runs(Run{4096, 1<<64 - 4096}), "out of place"},
		{"runs in the wrong order", runs(Run{8192, 4096}, Run{0, 4096}), "out of place"},
		{"runs that overlap", runs(Run{0, 8192}, Run{4096, 4096}), "out of place"},
		{"bytes of no segment", []Segment{whole, {Size: 1, Of: 7}}, "segment 7"},
		{"bytes of a negative segment", []Segment{whole, {Size: 1, Of: -1}}, "segment -1"},
		{"bytes of itself", []Segment{whole, {Size: 1, Of: 1}}, "segment 1"},
		{"bytes of a later segment", []Segment{{Size: 1, Of: 1}, whole}, "none before it"},
		{"bytes of a segment without", []Segment{whole, {Size: 1}, {Size: 1, Of: 1}}, "none before it"},
		{"bytes behind another's end", []Segment{whole, {Size: 4096, Off: 4*4096 - 4095}}, "outside"},
		{"bytes that wrap around", []Segment{whole, {Size: 2, Off: 1<<64 - 1}}, "outside"},
		{"no machine's memory", []Segment{{Size: 1 << 60, Read: whole.Read}}, "any machine"},
		{"too many", make([]Segment, maxSegs), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			err := WriteCore(t.Context(), &out, elf.EM_X86_64, nil, c.segs, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || out.Len() > 0 {
				t.Errorf("%v after %d bytes", err, out.Len())
			}
		})
	}
}

// TestWriteCoreStops checks that errors end the work at once.
func TestWriteCoreStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	s := Segment{Size: 1 << 40, Read: func([]byte, uint64) error {
		if reads++; reads == 3 {
			cancel()
		}
		return nil
	}}
	if err := WriteCore(ctx, io.Discard, elf.EM_X86_64, nil, []Segment{s}, nil); !errors.Is(err, context.Canceled) || reads != 3 {
		t.Errorf("%v after %d reads", err, reads)
	}
	// In a hole too.
	ctx, cancel = context.WithCancel(t.Context())
	s.Data = []Run{{0, 1}}
	s.Read = func([]byte, uint64) error { cancel(); return nil }
	if err := WriteCore(ctx, io.Discard, elf.EM_X86_64, nil, []Segment{s}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	gone := errors.New("the guest is gone")
	s.Read = func([]byte, uint64) error { return gone }
	if err := WriteCore(t.Context(), io.Discard, elf.EM_X86_64, nil, []Segment{s}, nil); !errors.Is(err, gone) {
		t.Error(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	if err := WriteCore(t.Context(), full, elf.EM_X86_64, nil, []Segment{ram(0, pattern(1, 4096))}, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

func TestCPUNotes(t *testing.T) {
	want := make([]vm.Registers, 2)
	n := uint64(1)
	for i := range want {
		r := reflect.ValueOf(&want[i]).Elem()
		for j := range r.NumField() {
			switch f := r.Field(j); f.Kind() {
			case reflect.Uint64, reflect.Uint16:
				f.SetUint(n)
				n++
			}
		}
		for j := range want[i].General {
			want[i].General[j] = n
			n++
		}
		want[i].General[4] = want[i].RSP
		want[i].Valid = true
	}
	check := func(want []vm.Registers) {
		m := open(t, write(t, CPUNotes(want), ram(0, pattern(1, 4096))))
		defer m.Close()
		if got, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v, %v\nwant %+v", got, err, want)
		}
	}
	check(want)
	for i := range want {
		want[i].EFER, want[i].LSTAR, want[i].CSTAR, want[i].SysenterEIP = 0, 0, 0, 0 // where the source does not tell LSTAR
	}
	check(want)
	for i, r := range want { // what NT_PRSTATUS has
		want[i] = vm.Registers{RIP: r.RIP, RSP: r.RSP, RFLAGS: r.RFLAGS, GSBase: r.GSBase, CS: r.CS, SS: r.SS, General: r.General}
	}
	check(want)
	if CPUNotes(nil) != nil {
		t.Error("notes of no CPU")
	}
}

// TestProcessNotes checks the notes at the places that the kernel's headers
// give; gdb reads them in the guest tests.
func TestProcessNotes(t *testing.T) {
	var regs UserRegs
	regs[RegRIP], regs[26] = 0x401000, 0x2b
	info := ProcessInfo{PID: 7, PPID: 1, UID: 1000, GID: 100, State: 'S', Name: "longer than fifteen", Args: strings.Repeat("arg ", 50)}
	all := notes(encodeNotes([]Note{
		ThreadNote(7, 1, &regs), info.Note(), AuxVNote(make([]byte, 32)),
		FilesNote([]MappedFile{{0x1000, 0x3000, 0x2000, "/bin/x"}, {0x5000, 0x6000, 0, "/tmp/a b"}}),
	}))
	if len(all) != 4 {
		t.Fatalf("%d notes", len(all))
	}
	le := binary.LittleEndian
	for i, typ := range []uint32{1, 3, 6, 0x46494c45} {
		if all[i].typ != typ || all[i].name != "CORE" {
			t.Errorf("note %d is %q %#x", i, all[i].name, all[i].typ)
		}
	}
	b := all[0].desc
	if len(b) != 336 || le.Uint32(b[32:]) != 7 || le.Uint32(b[36:]) != 1 || le.Uint64(b[112+16*8:]) != 0x401000 || le.Uint64(b[112+26*8:]) != 0x2b {
		t.Errorf("NT_PRSTATUS % x", b)
	}
	b = all[1].desc
	if len(b) != 136 || b[1] != 'S' || le.Uint32(b[16:]) != 1000 || le.Uint32(b[20:]) != 100 || le.Uint32(b[24:]) != 7 || le.Uint32(b[28:]) != 1 ||
		string(b[40:56]) != "longer than fif\x00" || string(b[56:]) != info.Args[:79]+"\x00" {
		t.Errorf("NT_PRPSINFO %q", b)
	}
	b = all[3].desc
	var words [8]uint64
	for i := range words {
		words[i] = le.Uint64(b[8*i:])
	}
	if words != [8]uint64{2, 4096, 0x1000, 0x3000, 2, 0x5000, 0x6000, 0} || string(b[64:]) != "/bin/x\x00/tmp/a b\x00" {
		t.Errorf("NT_FILE %d %q", words, b)
	}
}

// FuzzWriteCore: what is written is what Open reads, whatever the layout, and a
// file with holes has the bytes of a pipe.
func FuzzWriteCore(f *testing.F) {
	f.Add(uint64(1), uint8(1), uint8(0), []byte("note"))
	f.Add(uint64(2), uint8(9), uint8(3), []byte{})
	f.Add(uint64(3), uint8(200), uint8(9), make([]byte, 5000))
	f.Fuzz(func(t *testing.T, seed uint64, pages, windows uint8, note []byte) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		pa := mem.PA(0)
		var segs []Segment
		data := map[mem.PA][]byte{}
		for left := int(pages) + 1; left > 0; {
			n := 1 + rnd.IntN(left)
			left -= n
			b := make([]byte, n*mem.PageSize)
			for i := range n {
				if rnd.IntN(3) > 0 {
					copy(b[i*mem.PageSize:], pattern(byte(seed)+byte(i), mem.PageSize))
				}
			}
			pa += mem.PA(rnd.IntN(3) * mem.PageSize)
			data[pa] = b
			s := ram(pa, b)
			if rnd.IntN(4) == 0 {
				s.Data = nil
			}
			segs = append(segs, s)
			pa += mem.PA(len(b))
		}
		whole := len(segs)
		for range windows {
			of := rnd.IntN(whole)
			off := uint64(rnd.Int64N(int64(segs[of].Size)))
			segs = append(segs, Segment{VA: 1 << 32, PA: segs[of].PA + mem.PA(off), Of: of, Off: off, Size: uint64(rnd.Int64N(int64(segs[of].Size-off) + 1))})
		}
		path := write(t, []Note{{"FUZZ", 1, note}}, segs...)
		var pipe bytes.Buffer
		if err := WriteCore(t.Context(), onlyWriter{&pipe}, elf.EM_X86_64, []Note{{"FUZZ", 1, note}}, segs, nil); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, pipe.Bytes()) {
			t.Fatalf("a file of %d bytes (%v), a pipe of %d", len(b), err, pipe.Len())
		}
		m := open(t, path)
		defer m.Close()
		for pa, b := range data {
			same(t, m, pa, b)
		}
		c, err := parseELF(m.(*machine).file)
		if err != nil || len(c.progs) != len(segs)+1 {
			t.Fatal(err)
		}
		for i, p := range c.progs[1:] {
			got := pipe.Bytes()[p.off : p.off+p.filesz]
			base := segs[i]
			if base.Read == nil {
				base = segs[base.Of]
			}
			want := data[base.PA][segs[i].Off:]
			if !bytes.Equal(got, want[:segs[i].Size]) {
				t.Errorf("segment %d has other bytes", i)
			}
		}
	})
}
