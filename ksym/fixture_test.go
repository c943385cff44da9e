package ksym

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"

	"vmscope/mem"
)

// fixture is the kallsyms of a real kernel as it lay in a guest's RAM, recorded
// by TestGuest with -update, and what the guest itself printed of it.
//
// Two blocks are not stored as they are but remade, since they hardly compress:
// offsets are stored as differences, and the index by name is sorted anew. Sum
// proves that the bytes are those that were recorded.
type fixture struct {
	Release  string
	Layout   Layout
	Blocks   [6]uint64 // Places, virtual
	Start    uint64    // of the bytes, physical
	Delta    uint64    // from physical to virtual addresses
	N        int
	Seqs     int // offset of the index by name, 0: none
	Sum      []byte
	Kallsyms []byte // SHA-256 of the guest's own /proc/kallsyms, without modules
	CoreInfo string

	bytes []byte
}

func (f *fixture) places() Places {
	at := func(i int) mem.VA { return mem.VA(f.Blocks[i]) }
	return Places{at(0), at(1), at(2), at(3), at(4), at(5)}
}

func (f *fixture) offsets() []byte {
	at := uint64(f.places().Offsets) - f.Delta - f.Start
	return f.bytes[at : at+4*uint64(f.N)]
}

func (f *fixture) write(path string) error {
	sum := sha256.Sum256(f.bytes)
	f.Sum = sum[:]
	head, err := json.Marshal(f)
	if err != nil {
		return err
	}
	var diffs []byte
	prev := uint32(0)
	for o := f.offsets(); len(o) > 0; o = o[4:] {
		v := binary.LittleEndian.Uint32(o)
		diffs = binary.AppendUvarint(diffs, uint64(v-prev))
		prev = v
	}
	raw := f.bytes
	f.bytes = slices.Clone(raw)
	clear(f.offsets())
	if f.Seqs != 0 {
		clear(f.bytes[f.Seqs : f.Seqs+3*f.N])
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	for _, b := range [][]byte{head, []byte("\n"), binary.AppendUvarint(nil, uint64(len(diffs))), diffs, f.bytes} {
		z.Write(b)
	}
	f.bytes = raw
	if err := z.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

func readFixture(t testing.TB, path string) *fixture {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{}
	head, rest, _ := bytes.Cut(all, []byte("\n"))
	if err := json.Unmarshal(head, f); err != nil {
		t.Fatal(err)
	}
	n, k := binary.Uvarint(rest)
	diffs := rest[k:]
	f.bytes = diffs[n:]
	prev := uint32(0)
	for o := f.offsets(); len(o) > 0; o = o[4:] {
		d, k := binary.Uvarint(diffs)
		diffs, prev = diffs[k:], prev+uint32(d)
		binary.LittleEndian.PutUint32(o, prev)
	}
	if f.Seqs != 0 {
		f.sortNames(t)
	}
	if sum := sha256.Sum256(f.bytes); !bytes.Equal(sum[:], f.Sum) {
		t.Fatalf("%s is not what was recorded", path)
	}
	return f
}

// sortNames remakes the index by name.
func (f *fixture) sortNames(t testing.TB) {
	tab, err := At(f.read, f.places())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var order []int
	for s := range tab.All() {
		order = append(order, len(names))
		names = append(names, s.Name)
	}
	sort.SliceStable(order, func(a, b int) bool { return names[order[a]] < names[order[b]] })
	for k, i := range order {
		b := f.bytes[f.Seqs+3*k:]
		b[0], b[1], b[2] = byte(i>>16), byte(i>>8), byte(i)
	}
}

// read reads at virtual addresses.
func (f *fixture) read(p []byte, va mem.VA) (int, error) {
	at := uint64(va) - f.Delta - f.Start
	if at > uint64(len(f.bytes)) || copy(p, f.bytes[at:]) < len(p) {
		return 0, &mem.FaultError{Op: "read", Space: f.Release, Addr: uint64(va), Err: mem.ErrNotMapped}
	}
	return len(p), nil
}

// ram is the recorded memory, zeros around it.
func (f *fixture) ram(t testing.TB) *mem.RAM {
	t.Helper()
	start := f.Start &^ (mem.PageSize - 1)
	data := make([]byte, align(f.Start-start+uint64(len(f.bytes)), mem.PageSize))
	copy(data[f.Start-start:], f.bytes)
	note := make([]byte, mem.PageSize)
	copy(note, f.CoreInfo)
	r, err := mem.NewRAM(mem.Segment{PA: mem.PA(start), Data: data}, mem.Segment{PA: mem.PageSize, Data: note})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// printKallsyms prints a table as the kernel prints /proc/kallsyms.
func printKallsyms(w io.Writer, t *Table) {
	for s := range t.All() {
		fmt.Fprintf(w, "%016x %c %s\n", uint64(s.Addr), s.Type, s.Name)
	}
}

func sumKallsyms(t *Table) []byte {
	var h hash.Hash = sha256.New()
	printKallsyms(h, t)
	return h.Sum(nil)
}

var fixtures = []string{"bullseye-cloud", "sid-cloud"}

func fixturePath(kernel string) string { return filepath.Join("testdata", kernel+".kallsyms.gz") }

// TestReplay finds the tables of real kernels without them: every name, type
// and address is what the kernel itself printed.
func TestReplay(t *testing.T) {
	for _, kernel := range fixtures {
		t.Run(kernel, func(t *testing.T) {
			f := readFixture(t, fixturePath(kernel))
			ram := f.ram(t)

			found, err := Find(t.Context(), ram, ram.Ranges())
			if err != nil || len(found) != 1 {
				t.Fatalf("%d tables, %v, want 1", len(found), err)
			}
			if d, ok := found[0].Delta(); ok && d != f.Delta {
				t.Errorf("delta %#x, want %#x", d, f.Delta)
			}
			tab := found[0].Table
			if tab.Proof().Physical {
				tab = tab.Rebase(f.Delta)
			}
			f.check(t, tab)

			infos, err := FindVMCoreInfo(t.Context(), ram, ram.Ranges())
			if err != nil || len(infos) != 1 {
				t.Fatalf("%d VMCOREINFO texts, %v, want 1", len(infos), err)
			}
			if infos[0].OSRelease() != f.Release || infos[0].Text() != f.CoreInfo {
				t.Errorf("VMCOREINFO of %q, want %q", infos[0].OSRelease(), f.Release)
			}
			p, ok := infos[0].Kallsyms()
			if ok != (kernel != "bullseye-cloud") || ok && p != f.places() {
				t.Errorf("kallsyms at %#x, %v, want %#x", p, ok, f.places())
			}
			tab, err = At(f.read, f.places())
			if err != nil {
				t.Fatal(err)
			}
			f.check(t, tab)
			if s, err := tab.Lookup("_stext"); err != nil {
				t.Error(err)
			} else if a, ok := infos[0].Symbol("_stext"); !ok || a != s.Addr {
				t.Errorf("_stext at %#x, VMCOREINFO says %#x", uint64(s.Addr), uint64(a))
			}
		})
	}
}

func (f *fixture) check(t *testing.T, tab *Table) {
	t.Helper()
	if p := tab.Proof(); p.Layout != f.Layout || p.Symbols != f.N || p.Seqs != (f.Seqs != 0) || p.Unsorted != 0 {
		t.Errorf("proof %+v", p)
	}
	if err := tab.Verify(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(sumKallsyms(tab), f.Kallsyms) {
		t.Error("the table is not what the guest printed")
	}
	if a := tab.Arch(); a != "amd64" {
		t.Errorf("arch %q", a)
	}
	checkLookups(t, tab)
}

// checkLookups looks up each symbol by name and by address.
func checkLookups(t *testing.T, tab *Table) {
	t.Helper()
	var first mem.VA
	bad := 0
	for s := range tab.All() {
		got, err := tab.Lookup(s.Name)
		if err == nil && got.Addr != s.Addr {
			all := tab.LookupAll(s.Name)
			if !slices.ContainsFunc(all, func(a Symbol) bool { return a.Addr == s.Addr && a.Type == s.Type }) {
				t.Errorf("LookupAll(%q) lacks %#x", s.Name, uint64(s.Addr))
			}
		} else if err != nil {
			t.Error(err)
			bad++
		}
		if !s.Absolute {
			if got, off, err := tab.Nearest(s.Addr); err != nil || got.Addr != s.Addr || off != 0 {
				t.Errorf("Nearest(%#x) = %+v, %d, %v", uint64(s.Addr), got, off, err)
				bad++
			}
		}
		if s.Addr < first && !s.Absolute {
			t.Errorf("%s out of order", s.Name)
		}
		if first = s.Addr; bad > 5 {
			return
		}
	}
}
