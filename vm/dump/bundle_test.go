package dump

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// packed compresses b, with a window of so many bytes.
func packed(t testing.TB, b []byte, window int) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testBundle is a bundle of a guest with 1 MiB at 0 and 4 GiB of which it has
// four pages, the last all zeros.
func testBundle(t testing.TB, extra []byte) (b, first, second []byte) {
	first, second = pattern(1, mem.PageSize), append(pattern(2, 2*mem.PageSize), make([]byte, mem.PageSize)...)
	about := About{By: "a test", Time: time.Unix(1700000000, 0).UTC(), Target: "web1",
		RAM: []mem.Range{{Start: 0, Size: 1 << 20}, {Start: 4 << 30, Size: 1 << 20}}}
	var out bytes.Buffer
	notes := append([]Note{CoreInfoNote("OSRELEASE=x\n")}, CPUNotes([]vm.Registers{{CR3: 0x1000, Valid: true}})...)
	if err := WriteBundle(t.Context(), &out, about, extra, notes, []Segment{ram(0x3000, first), ram(4<<30+0x5000, second)}, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), first, second
}

func TestBundle(t *testing.T) {
	b, first, second := testBundle(t, []byte("beside"))
	m := open(t, file(t, b))
	defer m.Close()
	same(t, m, 0x3000, first)
	same(t, m, 4<<30+0x5000, second)
	for _, pa := range []mem.PA{0, 0x2fff, 0x4000, 4 << 30, 4<<30 + 1<<20 - 1} {
		n, err := m.ReadPhys(make([]byte, 1), pa)
		var f *mem.FaultError
		if n != 0 || !errors.As(err, &f) || f.Addr != uint64(pa) || !errors.Is(err, ErrNotKept) || !errors.Is(err, mem.ErrUnreachable) || errors.Is(err, mem.ErrNoRAM) || !strings.Contains(err.Error(), "bundle does not hold") {
			t.Errorf("a page that is not kept, at %#x: %d, %v", uint64(pa), n, err)
		}
	}
	if n, err := m.ReadPhys(make([]byte, 8192), 0x3800); n != 2048 || !errors.Is(err, ErrNotKept) {
		t.Errorf("over the end of a page that is kept: %d, %v", n, err)
	}
	if _, err := m.ReadPhys(make([]byte, 1), 2<<20); !errors.Is(err, mem.ErrNoRAM) || errors.Is(err, ErrNotKept) {
		t.Errorf("where the guest has no RAM: %v", err)
	}
	about := m.(Bundle).About()
	if about.By != "a test" || about.Target != "web1" || about.Time.Unix() != 1700000000 || string(m.(Bundle).Extra()) != "beside" {
		t.Errorf("%+v, %q", about, m.(Bundle).Extra())
	}
	if r := m.(mem.Ranger).Ranges(); !slices.Equal(r, []mem.Range{{Start: 0, Size: 1 << 20}, {Start: 4 << 30, Size: 1 << 20}}) {
		t.Errorf("ranges %#x", r)
	}
	if i := m.(vm.Describer).Info(); i.RAM != 2<<20 || i.Live || !strings.Contains(i.Route, `of "web1", by a test, 2023-11-14T22:13:20Z`) {
		t.Errorf("%+v", i)
	}
	if mem.RAMOf(m) != nil {
		t.Error("readers of mapped memory would not see what is not kept")
	}
	// Unpacked, it is an ELF core like others, and a bundle still.
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	core, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	u := open(t, file(t, core))
	defer u.Close()
	if u, ok := u.(Bundle); !ok || u.About().Target != "web1" {
		t.Errorf("unpacked: %+v", u)
	}
	same(t, u, 4<<30+0x5000, second)
}

// TestBundleContract: a bundle of all pages is a machine like others.
func TestBundleContract(t *testing.T) {
	low, high := pattern(1, 64<<10), pattern(2, 32<<10)
	var out bytes.Buffer
	about := About{RAM: []mem.Range{{Start: 0, Size: 64 << 10}, {Start: 4 << 30, Size: 32 << 10}}}
	if err := WriteBundle(t.Context(), &out, about, nil, CPUNotes([]vm.Registers{{Valid: true}}), []Segment{ram(0, low), ram(4<<30, high)}, nil); err != nil {
		t.Fatal(err)
	}
	path := file(t, out.Bytes())
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: about.RAM,
		Bytes:  map[mem.PA][]byte{0: low, 4 << 30: high},
		CPUs:   1,
	})
}

func TestPacked(t *testing.T) {
	core := makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}, nil, false)
	m := open(t, file(t, packed(t, core, 1<<20)))
	same(t, m, 0x1000, pattern(1, 4096))
	if _, ok := m.(Bundle); ok {
		t.Error("a core without the note is a bundle")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	whole, _, _ := testBundle(t, nil)
	broken := bytes.Clone(whole)
	broken[len(broken)/2] ^= 0x55
	for _, c := range []struct {
		name string
		file []byte
		is   error
		word string
	}{
		{"no core", packed(t, bytes.Repeat([]byte("text"), 5000), 1<<20), ErrFormat, "unzstd"},
		{"an end that is missing", whole[:len(whole)-20], ErrTruncated, "end is missing"},
		{"a bit", broken, ErrFormat, "broken"},
		{"only the magic number", []byte(zstdMagic), ErrTruncated, "end is missing"},
		{"a large window", packed(t, slices.Concat(core, make([]byte, 20<<20), pattern(1, 1<<20)), 16<<20), ErrFormat, "window"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", c.name, m, err)
		}
	}
}

func TestBundleRefuses(t *testing.T) {
	for name, c := range map[string]struct{ note, word string }{
		"no JSON":             {`{`, "note"},
		"a later format":      {`{"format":2}`, "format 2"},
		"pages outside":       {`{"format":1,"ram":[{"start":"0x0","size":4096}]}`, "where it says is no RAM"},
		"no RAM":              {`{"format":1}`, "where it says is no RAM"},
		"ranges that overlap": {`{"format":1,"ram":[{"start":"0x0","size":8192},{"start":"0x1000","size":4096}]}`, "cannot be"},
		"an empty range":      {`{"format":1,"ram":[{"start":"0x0","size":0}]}`, "cannot be"},
		"a range that wraps":  {`{"format":1,"ram":[{"start":"0x0","size":8192},{"start":"0xfffffffffffff000","size":8192}]}`, "cannot be"},
		"too much":            {`{"format":1,"ram":[{"start":"0x0","size":1125899906842624},{"start":"0x4000000000000","size":4096}]}`, "cannot be"},
	} {
		core := makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}, makeNote(noteBundle, ntAbout, []byte(c.note)), false)
		if m, err := Open(file(t, packed(t, core, 1<<20))); m != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// TestManySegments writes more segments than the header's 16 bits count.
func TestManySegments(t *testing.T) {
	page := pattern(1, mem.PageSize)
	segs := make([]Segment, pnXNum+2)
	for i := range segs {
		segs[i] = ram(mem.PA(2*i)*mem.PageSize, page)
	}
	m := open(t, write(t, []Note{CoreInfoNote("OSRELEASE=x\n")}, segs...))
	defer m.Close()
	last := segs[len(segs)-1].PA
	same(t, m, last, page)
	if _, err := m.ReadPhys(make([]byte, 1), last-1); !errors.Is(err, mem.ErrNoRAM) {
		t.Error(err)
	}
	if n := len(m.(mem.Ranger).Ranges()); n != len(segs) {
		t.Errorf("%d ranges of %d segments", n, len(segs))
	}
}

// sound checks what holds of each machine that Open gives, whoever wrote the
// file.
func sound(t *testing.T, path string) {
	m, err := Open(path)
	if (m == nil) == (err == nil) {
		t.Fatalf("%v, %v", m, err)
	}
	if m == nil {
		return
	}
	defer m.Close()
	x, err := mem.Extents(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range x {
		if n, err := m.ReadPhys(make([]byte, 1), e.End()-1); n != 1 || err != nil {
			t.Fatalf("extent %#x: %v", e, err)
		}
	}
	end := mem.PA(0)
	for _, r := range m.(mem.Ranger).Ranges() {
		if r.Size == 0 || r.Start < end || r.End() < r.Start {
			t.Fatalf("range %#x after %#x", r, uint64(end))
		}
		end = r.End()
		if n, err := m.ReadPhys(make([]byte, 1), r.Start); (n == 1) != (err == nil) || err != nil && !errors.Is(err, ErrNotKept) && !errors.Is(err, mem.ErrNoRAM) {
			t.Fatalf("%#x: %d, %v", uint64(r.Start), n, err)
		}
	}
}

// FuzzBundle opens bundles whose note and whose core are anybody's.
func FuzzBundle(f *testing.F) {
	good := `{"format":1,"by":"x","time":"2026-01-02T03:04:05Z","target":"t","ram":[{"start":"0x0","size":1048576},{"start":"0x100000000","size":4096}]}`
	body := makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}, nil, false)
	f.Add([]byte(good), body[:120], uint16(0))
	f.Add([]byte(good), []byte{}, uint16(1))
	f.Add([]byte(`{"format":1,"ram":[{"start":"0xffffffffffffffff","size":2}]}`), []byte{1, 2, 3}, uint16(7))
	f.Fuzz(func(t *testing.T, note, over []byte, at uint16) {
		core := makeELF([]load{
			{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}, {paddr: 0x3000, memsz: 8192, data: pattern(2, 4096)},
		}, append(makeNote(noteBundle, ntAbout, note), makeNote(noteBundle, ntExtra, note)...), false)
		copy(core[min(int(at), len(core)):], over)
		sound(t, file(t, packed(t, core, 1<<20)))
	})
}

// FuzzPacked opens files that begin as zstd does.
func FuzzPacked(f *testing.F) {
	b, _, _ := testBundle(f, []byte("beside"))
	f.Add(b[4:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 { // a bomb takes long; TestPackedBomb is for that
			return
		}
		sound(t, file(t, append([]byte(zstdMagic), in...)))
	})
}
