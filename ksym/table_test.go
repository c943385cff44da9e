package ksym

import (
	"encoding/binary"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"

	"vmscope/mem"
)

// check compares everything that a table can be asked with the symbols it was
// made of.
func check(t *testing.T, tab *Table, want []Symbol) {
	t.Helper()
	if tab.Len() != len(want) {
		t.Fatalf("%d symbols, want %d", tab.Len(), len(want))
	}
	if err := tab.Verify(); err != nil {
		t.Error(err)
	}
	i := 0
	for s := range tab.All() {
		if s != want[i] {
			t.Fatalf("symbol %d: %+v, want %+v", i, s, want[i])
		}
		i++
	}
	byName := make(map[string][]Symbol)
	for i, s := range want {
		for _, u := range want[i+1:] {
			if u.Addr > s.Addr {
				if u.Absolute == s.Absolute {
					s.Size = uint64(u.Addr - s.Addr)
				}
				break
			}
		}
		byName[s.Name] = append(byName[s.Name], s)
	}
	for name, all := range byName {
		if s, err := tab.Lookup(name); err != nil || s != all[0] {
			t.Fatalf("Lookup(%q) = %+v, %v, want %+v", name, s, err, all[0])
		}
		got := tab.LookupAll(name)
		if len(got) != len(all) {
			t.Fatalf("LookupAll(%q): %d, want %d", name, len(got), len(all))
		}
		for i := range got {
			if got[i] != all[i] {
				t.Fatalf("LookupAll(%q)[%d] = %+v, want %+v", name, i, got[i], all[i])
			}
		}
	}
	byAddr := make(map[mem.VA]map[string]bool)
	for _, s := range want {
		if s.Absolute {
			continue
		}
		if byAddr[s.Addr] == nil {
			byAddr[s.Addr] = make(map[string]bool)
		}
		byAddr[s.Addr][s.Name] = true
	}
	for va, names := range byAddr {
		got := make(map[string]bool)
		for name := range tab.At(va) {
			got[name] = true
		}
		if !maps.Equal(got, names) {
			t.Fatalf("At(%#x) = %v, want %v", uint64(va), got, names)
		}
		if byAddr[va+1] == nil {
			for name := range tab.At(va + 1) {
				t.Fatalf("At(%#x), where no symbol is: %q", uint64(va+1), name)
			}
		}
	}
	for _, name := range []string{"", "nope", "T_stext", "_stex", "_stext_", "_stext\x00", "\xff"} {
		if _, err := tab.Lookup(name); !errors.Is(err, ErrNoSymbol) {
			t.Errorf("Lookup(%q): %v, want ErrNoSymbol", name, err)
		}
		if got := tab.LookupAll(name); len(got) != 0 {
			t.Errorf("LookupAll(%q) = %v", name, got)
		}
	}
	first := ""
	for i, s := range want {
		if i == 0 || want[i-1].Addr != s.Addr {
			first = s.Name
		}
		for _, d := range []mem.VA{0, 3} {
			got, off, err := tab.Nearest(s.Addr + d)
			if s.Absolute || i == len(want)-1 && d > 0 {
				if !errors.Is(err, ErrNoSymbol) {
					t.Fatalf("Nearest(%#x) = %+v, %v, want ErrNoSymbol", uint64(s.Addr+d), got, err)
				}
			} else if err != nil || got.Name != first && d == 0 || got.Addr+mem.VA(off) != s.Addr+d || off >= got.Size && got.Size > 0 {
				t.Fatalf("Nearest(%#x) = %+v, %#x, %v, want %s", uint64(s.Addr+d), got, off, err, first)
			}
		}
	}
	for _, va := range []mem.VA{0x40000, 1 << 46, want[len(want)-1].Addr + 1} {
		if s, _, err := tab.Nearest(va); !errors.Is(err, ErrNoSymbol) {
			t.Errorf("Nearest(%#x) = %+v, %v, want ErrNoSymbol", uint64(va), s, err)
		}
	}
}

func TestAt(t *testing.T) {
	for i, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			// Odd and even numbers of symbols, so that alignment matters.
			for n := 2560; n < 2564; n++ {
				e := layoutSpec(i, n, 0).encode()
				tab, err := At(e.read, e.p)
				if err != nil {
					t.Fatal(err)
				}
				p := tab.Proof()
				if p.Layout != l.layout || p.Scheme != l.scheme || p.Symbols != n || p.Seqs != l.spec.seqs || p.Physical {
					t.Errorf("proof %+v", p)
				}
				if tab.PointerSize() != int(l.ptr) {
					t.Errorf("pointers of %d bytes, want %d", tab.PointerSize(), l.ptr)
				}
				if a := tab.Arch(); a != map[string]string{"__x64_sys_": "amd64", "__arm64_sys_": "arm64"}[l.sys] {
					t.Errorf("arch %q", a)
				}
				check(t, tab, e.syms)
			}
		})
	}
}

// edit returns e with one change.
func (e encoded) edit(f func(e *encoded)) encoded {
	e.bytes = append([]byte(nil), e.bytes...)
	f(&e)
	return e
}

func TestAtRejects(t *testing.T) {
	const last = 8 // 7.2 amd64: place-relative
	good := layoutSpec(last, 2561, 0).encode()
	unlisted := layoutSpec(last+1, 2561, 0).encode()
	misplaced := layoutSpec(last, 2561, 0)
	for i := range misplaced.syms {
		if misplaced.syms[i].Name == "_stext" {
			misplaced.syms[i].Name = "stext"
		}
	}
	tests := []struct {
		name string
		e    encoded
		want string
	}{
		{"offsets one entry late", good.edit(func(e *encoded) { e.p.Offsets += 4 }), "not in order"},
		{"offsets two entries late", good.edit(func(e *encoded) { e.p.Offsets += 8 }), "not in order"},
		{"offsets half an entry late", good.edit(func(e *encoded) { e.p.Offsets += 2 }), "not in order"},
		{"offsets one entry late, not listed", unlisted.edit(func(e *encoded) { e.p.Offsets += 4 }), "not in order"},
		{"not listed, no index by name", unlisted.edit(func(e *encoded) { clear(e.bytes[e.seqs:]) }), "nothing tells"},
		{"offsets one entry early, not listed", unlisted.edit(func(e *encoded) { e.p.Offsets -= 4 }), "blocks"},
		{"offsets far away", good.edit(func(e *encoded) { e.p.Offsets += 1 << 30 }), "not adjacent"},
		{"offsets wrap around", good.edit(func(e *encoded) { e.p.Offsets = 8 }), "blocks"},
		{"names before num_syms", good.edit(func(e *encoded) { e.p.Names = e.p.NumSyms }), "not adjacent"},
		{"token table elsewhere", good.edit(func(e *encoded) { e.p.TokenTable += 4 }), "disagree"},
		{"token index too far", good.edit(func(e *encoded) { e.p.TokenIndex += 1 << 40 }), "not adjacent"},
		{"token index wraps", good.edit(func(e *encoded) {
			e.p = Places{^mem.VA(0) - 64, ^mem.VA(0) - 60, ^mem.VA(0) - 40, ^mem.VA(0) - 20, 8, 0}
		}), "wrap"},
		{"more symbols than names", good.edit(func(e *encoded) { e.bytes[0]++ }), "name 2561"},
		{"less symbols than names", good.edit(func(e *encoded) { e.bytes[0]-- }), "markers"},
		{"four milliard symbols", good.edit(func(e *encoded) { copy(e.bytes, "\xff\xff\xff\xff") }), "4294967295"},
		{"no symbols", good.edit(func(e *encoded) { copy(e.bytes, "\x00\x00\x00\x00") }), "0 symbols"},
		{"marker wrong", good.edit(func(e *encoded) { e.bytes[e.marks+4*7]++ }), "markers"},
		{"name without end", good.edit(func(e *encoded) { copy(e.bytes[e.p.Names-e.base:], "\xff\xff") }), "name 0"},
		{"name without length", good.edit(func(e *encoded) { e.bytes[e.p.Names-e.base] = 0 }), "name 0"},
		{"index not rising", good.edit(func(e *encoded) { e.bytes[e.p.TokenIndex-e.base+200]++ }), "disagree"},
		{"unsorted", good.edit(func(e *encoded) {
			for i := mem.VA(0); i < 40; i++ {
				copy(e.bytes[e.p.Offsets-e.base+4*40*i:], "\xff\xff\xff\x7f")
			}
		}), "not in order"},
		{"kallsyms_token_table listed elsewhere", good.edit(func(e *encoded) {
			for i, s := range e.syms {
				if s.Name == "kallsyms_token_table" {
					e.bytes[e.p.Offsets-e.base+mem.VA(4*i)] += 4
				}
			}
		}), "kallsyms_token_table"},
		{"no _stext", misplaced.encode(), "_stext"},
		{"unreadable", good.edit(func(e *encoded) { e.bytes = e.bytes[:1000] }), "not mapped"},
		{"offsets unreadable", good.edit(func(e *encoded) { e.bytes = e.bytes[:e.p.Offsets-e.base+100] }), "not mapped"},
	}
	for _, tt := range tests {
		tab, err := At(tt.e.read, tt.e.p)
		if err == nil || tab != nil {
			t.Errorf("%s: accepted", tt.name)
		} else if !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNotMapped) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// A kernel with a base that claims none, and a base that is no kernel address.
func TestAtBase(t *testing.T) {
	e := layoutSpec(5, 2560, 0).encode()
	e.p.RelativeBase = 0
	if _, err := At(e.read, e.p); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("base-relative table read as place-relative: %v", err)
	}
	e = layoutSpec(5, 2560, 0).encode()
	binary.LittleEndian.PutUint64(e.bytes[e.p.RelativeBase-e.base:], 0x400000)
	if _, err := At(e.read, e.p); !errors.Is(err, mem.ErrInconsistent) || !strings.Contains(err.Error(), "0x400000") {
		t.Errorf("base in user space: %v", err)
	}
}

// An index by name that lies must not hide symbols.
func TestLyingSeqs(t *testing.T) {
	for _, i := range []int{1, 5, 8} {
		good := layoutSpec(i, 2560, 0).encode()
		for name, f := range map[string]func(e *encoded){
			"a symbol twice":    func(e *encoded) { copy(e.bytes[e.seqs:e.seqs+3], e.bytes[e.seqs+3:e.seqs+6]) },
			"no such symbol":    func(e *encoded) { e.bytes[e.seqs] = 0xff },
			"another order":     func(e *encoded) { reverse3(e.bytes[e.seqs : e.seqs+3*2560]) },
			"cut off":           func(e *encoded) { e.bytes = e.bytes[:max(e.seqs, int(e.p.TokenIndex-e.base)+indexSize)+64] },
			"overwritten by 0s": func(e *encoded) { clear(e.bytes[e.seqs : e.seqs+3*2560]) },
		} {
			e := good.edit(f)
			if name == "cut off" && i == 1 {
				continue // there the seqs lie in the middle
			}
			tab, err := At(e.read, e.p)
			if err != nil {
				t.Errorf("%s, %s: %v", layouts[i].name, name, err)
				continue
			}
			if tab.Proof().Seqs {
				t.Errorf("%s, %s: believed", layouts[i].name, name)
			}
			check(t, tab, e.syms)
		}
	}
}

func reverse3(b []byte) {
	for i, j := 0, len(b)-3; i < j; i, j = i+3, j-3 {
		for k := range 3 {
			b[i+k], b[j+k] = b[j+k], b[i+k]
		}
	}
}

// A few symbols out of order do not break searches by address.
func TestUnsorted(t *testing.T) {
	s := layoutSpec(2, 2560, 0)
	s.syms[100], s.syms[900] = s.syms[900], s.syms[100]
	e := s.encode()
	tab, err := At(e.read, e.p)
	if err != nil {
		t.Fatal(err)
	}
	if u := tab.Proof().Unsorted; u != 2 {
		t.Errorf("%d unsorted, want 2", u)
	}
	for i, y := range e.syms[:len(e.syms)-1] {
		got, off, err := tab.Nearest(y.Addr)
		if err != nil || got.Addr != y.Addr || off != 0 {
			t.Fatalf("symbol %d: Nearest(%#x) = %+v, %v", i, uint64(y.Addr), got, err)
		}
	}
}

func TestRebase(t *testing.T) {
	e := layoutSpec(8, 2560, 0).encode()
	tab, err := At(e.read, e.p)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tab.Rebase(0x1000).Lookup("_stext")
	if o, _ := tab.Lookup("_stext"); err != nil || s.Addr != o.Addr+0x1000 {
		t.Errorf("rebased %+v from %+v, %v", s, o, err)
	}
}

// Lookups at the same time, also while the index is built.
func TestConcurrent(t *testing.T) {
	s := layoutSpec(0, 2560, 0)
	s.syms[100], s.syms[900] = s.syms[900], s.syms[100]
	e := s.encode()
	tab, err := At(e.read, e.p)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, y := range e.syms {
				if _, err := tab.Lookup(y.Name); err != nil {
					t.Error(err)
				}
				if _, _, err := tab.Nearest(y.Addr); err != nil && !y.Absolute {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
