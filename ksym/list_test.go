package ksym

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
)

func TestSystemMap(t *testing.T) {
	l, err := ParseSystemMap(strings.NewReader(`0000000000000000 A fixed_percpu_data
0000000000000000 D __per_cpu_start
000000000001f000 D cpu_number
0000000000030000 D __per_cpu_end

ffffffff81001000 t twice
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000040 t twice
ffffffff82000000 B _end
`))
	if err != nil || l.Len() != 9 {
		t.Fatalf("%v, %v", l, err)
	}
	if s, err := l.Lookup("twice"); err != nil || s != (Symbol{Name: "twice", Addr: 0xffffffff81000040, Size: 0xfc0, Type: 't'}) {
		t.Errorf("twice: %+v, %v", s, err)
	}
	if s := l.LookupAll("twice"); len(s) != 2 || s[1].Addr != 0xffffffff81001000 {
		t.Errorf("twice: %+v", s)
	}
	for name, want := range map[string]string{
		"twice": `look up symbol "twice": it is at 0xffffffff81000040, 0xffffffff81001000: which is meant is not known`,
		"_text": "", "none": `look up symbol "none": no such symbol`,
	} {
		s, err := Only(name, l.LookupAll(name))
		if (err == nil) != (want == "") || err != nil && err.Error() != want || err == nil && s.Name != name {
			t.Errorf("only %s: %+v, %v", name, s, err)
		}
		if errors.Is(err, errors.ErrUnsupported) != (name == "twice") {
			t.Errorf("only %s: %v", name, err)
		}
	}
	if _, err := Only("x", make([]Symbol, 1000)); err != nil {
		t.Error(err) // all in one place
	}
	if s, err := l.Lookup("cpu_number"); err != nil || !s.PerCPU || !s.Absolute || s.Size != 0x11000 {
		t.Errorf("cpu_number: %+v, %v", s, err)
	}
	if s, err := l.Lookup("__per_cpu_end"); err != nil || s.PerCPU || s.Size != 0 {
		t.Errorf("__per_cpu_end: %+v, %v", s, err)
	}
	if s, err := l.Lookup("none"); !errors.Is(err, ErrNoSymbol) {
		t.Errorf("none: %+v, %v", s, err)
	}
	for va, want := range map[mem.VA]string{
		0: "", 0x20000: "", 0x40000: "", 0xffffffff80ffffff: "",
		0xffffffff81000000: "_text", 0xffffffff8100003f: "_text", 0xffffffff81000041: "twice",
		0xffffffff82000000: "_end", 0xffffffff82000001: "", ^mem.VA(0): "",
	} {
		s, off, err := l.Nearest(va)
		if want == "" && !errors.Is(err, ErrNoSymbol) || want != "" && (err != nil || s.Name != want || s.Addr+mem.VA(off) != va) {
			t.Errorf("Nearest(%#x) = %+v, %#x, %v, want %q", uint64(va), s, off, err, want)
		}
	}
	for _, bad := range []string{"", "\n", "ld.so: The real System.map is in the -dbg package\n", "81000000 T\n",
		"zz T _stext\n", "81000000 TT _stext\n", "11112222333344445 T x\n", strings.Repeat("x", 1<<20)} {
		if l, err := ParseSystemMap(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q: %v", bad, l)
		}
	}
}

// moduleTable is the symbol table of a small module.
func moduleTable(entry int) (sym, str, typ []byte) {
	str = []byte("\x00init_module\x00counter\x00abs\x00undef\x00")
	le := binary.LittleEndian
	put := func(name uint32, info byte, shndx uint16, value, size uint64, letter byte) {
		if entry == 24 {
			sym = le.AppendUint32(sym, name)
			sym = append(sym, info, 0)
			sym = le.AppendUint16(sym, shndx)
			sym = le.AppendUint64(le.AppendUint64(sym, value), size)
		} else {
			sym = le.AppendUint32(sym, name)
			sym = le.AppendUint32(le.AppendUint32(sym, uint32(value)), uint32(size))
			sym = le.AppendUint16(append(sym, info, 0), shndx)
		}
		typ = append(typ, letter)
	}
	put(0, 0, 0, 0, 0, 0)
	put(1, 1<<4|2, 2, 0xc0001000, 0x20, 't')
	put(13, 1, 5, 0xc0003000, 8, 'b')
	put(21, 1<<4, 0xfff1, 0x42, 0, 'a')
	put(25, 1<<4, 0, 0, 0, 'U')
	put(0, 3, 2, 0xc0001000, 0, 't') // a section
	return sym, str, typ
}

func TestModuleSymbols(t *testing.T) {
	for entry, ptr := range map[int]int{24: 8, 16: 4} {
		sym, str, typ := moduleTable(entry)
		got, err := ParseModuleSymbols(sym, str, typ, ptr)
		want := []Symbol{
			{Name: "init_module", Addr: 0xc0001000, Size: 0x20, Type: 't'},
			{Name: "counter", Addr: 0xc0003000, Size: 8, Type: 'b'},
			{Name: "abs", Addr: 0x42, Type: 'a', Absolute: true},
		}
		if err != nil || len(got) != len(want) {
			t.Fatalf("%+v, %v", got, err)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%+v, want %+v", got[i], want[i])
			}
		}
		// Without typetab the letters come from ELF.
		got, err = ParseModuleSymbols(sym, str, nil, ptr)
		if err != nil || string([]byte{got[0].Type, got[1].Type, got[2].Type}) != "TdA" {
			t.Errorf("%+v, %v", got, err)
		}
		// Cut: what can be read is.
		got, err = ParseModuleSymbols(sym, str[:20], typ, ptr)
		if !errors.Is(err, mem.ErrInconsistent) || len(got) != 1 {
			t.Errorf("cut names: %+v, %v", got, err)
		}
		if got, err := ParseModuleSymbols(sym[:2*entry+1], str, typ, ptr); err != nil || len(got) != 1 {
			t.Errorf("cut symbols: %+v, %v", got, err)
		}
	}
	if _, err := ParseModuleSymbols(make([]byte, 24*(maxModuleSyms+1)), nil, nil, 8); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("too many: %v", err)
	}
}
