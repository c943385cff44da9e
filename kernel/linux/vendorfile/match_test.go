package vendorfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"vmscope/ksym"
	"vmscope/mem"
)

// code is bytes in hexadecimal, with spaces.
func code(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A kernel of a few bytes: text at 0x1000, replacements at 0x2000, pv_ops at
// 0x3000, thunks and functions at 0x4000.
func smallKernel(text, replacement []byte) *Kernel {
	k := &Kernel{branches: map[mem.VA]uint8{0x4000: 0, 0x4020: 9, 0x4040: 0}, returns: map[mem.VA]bool{0x4060: true}}
	k.tables = new(tables)
	k.symbols = ksym.NewList([]ksym.Symbol{{Name: "pv_ops", Addr: 0x3000, Size: 64}, {Name: "nop_func", Addr: 0x4080}})
	k.lookup = func(string) (mem.VA, bool) { return 0, false }
	k.Sections = []*Section{
		{Name: ".text", Addr: 0x1000, Size: uint64(len(text)), Data: text, Exec: true},
		{Name: ".altinstr_replacement", Addr: 0x2000, Size: uint64(len(replacement)), Data: replacement, Exec: true},
	}
	k.settle()
	return k
}

// rel is a branch of an opcode that lies at an address to another.
func rel(op byte, at, to mem.VA) string {
	return hex.EncodeToString(binary.LittleEndian.AppendUint32([]byte{op}, uint32(to-at-5)))
}

func TestMatch(t *testing.T) {
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	memory := map[mem.VA][]byte{
		0x3000: word(0x4444), 0x3008: word(0x4080), // slots of pv_ops
		0x5000: word(0x1122334455667788),       // a variable
		0x6000: {0xff, 0xe0, 0xcc, 0xcc},       // a thunk that the kernel made: jmp rax
		0x6010: {0x41, 0xff, 0xe1, 0xcc},       // jmp r9
		0x7000: {0x90, 0x90, 0x90, 0x90, 0x90}, // no code that counts
	}
	for _, c := range []struct {
		name string
		site Site
		was  string
		got  string
		want bool
	}{
		{"lock", Site{Kind: Lock, Len: 1}, "f0", "3e", true},
		{"no lock", Site{Kind: Lock, Len: 1}, "f0", "90", false},
		{"endbr", Site{Kind: Seal, Len: 4}, "f30f1efa", "0f1f40d6", true},
		{"no endbr", Site{Kind: Seal, Len: 4}, "f30f1efa", "0f1f40d7", false},
		{"return", Site{Kind: Return, Len: 5}, rel(0xe9, 0x1000, 0x4060), "c3cccccccc", true},
		{"return to another thunk", Site{Kind: Return, Len: 5}, rel(0xe9, 0x1000, 0x4060), rel(0xe9, 0x1000, 0x4061), false},
		{"return and more", Site{Kind: Return, Len: 5}, rel(0xe9, 0x1000, 0x4060), "c3cccccc90", false},
		{"retpoline", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", "ffd00f1f00", true},
		{"retpoline with a fence", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", "0faee8ffd0", true},
		{"retpoline of another register", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", "ffd10f1f00", false},
		{"retpoline, a jump", Site{Kind: Retpoline, Len: 6}, rel(0xe9, 0x1000, 0x4020) + "90", "41ffe1cccc", true},
		{"retpoline, a call that jumps", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", "ffe00f1f00", false},
		{"retpoline to the kernel's own thunk", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", rel(0xe8, 0x1000, 0x6000), true},
		{"retpoline to that of another register", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", rel(0xe8, 0x1000, 0x6010), false},
		{"retpoline to nowhere", Site{Kind: Retpoline, Len: 6}, rel(0xe8, 0x1000, 0x4000) + "90", rel(0xe8, 0x1000, 0x7000), false},
		{"retpoline, a condition", Site{Kind: Retpoline, Len: 6}, "0f84" + hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, 0x4000-0x1006)), "7504ffe0cccc", true},
		{"retpoline, the condition not turned", Site{Kind: Retpoline, Len: 6}, "0f84" + hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, 0x4000-0x1006)), "7404ffe0cccc", false},
		{"call", Site{Kind: Call, Len: 5}, rel(0xe8, 0x1000, 0x7000), rel(0xe8, 0x1000, 0x6ff7), false},
		{"ftrace, nothing", Site{Kind: Ftrace, Len: 5}, rel(0xe8, 0x1000, 0x7000), "0f1f440000", true},
		{"ftrace, a call", Site{Kind: Ftrace, Len: 5}, "0f1f440000", rel(0xe8, 0x1000, 0x8888), true},
		{"ftrace, a call astray", Site{Kind: Ftrace, Len: 5}, "0f1f440000", rel(0xe8, 0x1000, 0x7000), false},
		{"jump label", Site{Kind: JumpLabel, Len: 5, Target: 0x1234}, "0f1f440000", rel(0xe9, 0x1000, 0x1234), true},
		{"jump label, short", Site{Kind: JumpLabel, Len: 5, Target: 0x1012}, "6690000000", "eb10000000", true},
		{"jump label astray", Site{Kind: JumpLabel, Len: 5, Target: 0x1234}, "0f1f440000", rel(0xe9, 0x1000, 0x1235), false},
		{"static call", Site{Kind: StaticCall, Len: 6}, rel(0xe8, 0x1000, 0x7000) + "90", rel(0xe8, 0x1000, 0x8888), true},
		{"static call astray", Site{Kind: StaticCall, Len: 6}, rel(0xe8, 0x1000, 0x7000) + "90", rel(0xe8, 0x1000, 0x7000), false},
		{"static call of nothing", Site{Kind: StaticCall, Len: 6}, rel(0xe8, 0x1000, 0x7000) + "90", "2e2e2e31c0", true},
		{"static call of nothing, astray", Site{Kind: StaticCall, Len: 6, Target: 0x9999}, rel(0xe8, 0x1000, 0x7000) + "90", "2e2e2e31c0", false},
		{"pv_ops", Site{Kind: Paravirt, Len: 7}, "ff142500300000", rel(0xe8, 0x1000, 0x4444) + "6690", true},
		{"pv_ops astray", Site{Kind: Paravirt, Len: 7}, "ff142500300000", rel(0xe8, 0x1000, 0x4445) + "6690", false},
		{"pv_ops, nothing", Site{Kind: Paravirt, Len: 7}, "ff142508300000", "0f1f8000000000", true},
		{"pv_ops, not nothing", Site{Kind: Paravirt, Len: 7}, "ff142500300000", "0f1f8000000000", false},
		{"another slot", Site{Kind: Paravirt, Len: 7}, "ff142500400000", rel(0xe8, 0x1000, 0x4444) + "6690", false},
		{"constant", Site{Kind: Constant, Len: 8, Target: 0x5000}, "efcdab8967452301", "8877665544332211", true},
		{"another constant", Site{Kind: Constant, Len: 8, Target: 0x5000}, "efcdab8967452301", "8877665544332212", false},
	} {
		k := smallKernel(code(t, c.was), nil)
		m := Matcher{Kernel: k,
			Read:  func(b []byte, va mem.VA) bool { p, ok := memory[va]; return ok && copy(b, p) == len(b) },
			Leads: func(s Site, to mem.VA) bool { return to == 0x8888 || to == 0 && s.Target == 0 }}
		c.site.At = 0x1000
		got := append(code(t, c.got), make([]byte, 4)...)
		if n := m.Match(&k.Image, &Sites{list: []Site{c.site}}, c.site, got); (n > 0) != c.want || n > len(got) {
			t.Errorf("%s: %d bytes match", c.name, n)
		}
		if c.name == "another slot" || c.site.Kind == Paravirt || c.site.Kind == Constant || !c.want {
			continue
		}
		if n := m.Match(&k.Image, &Sites{}, c.site, append(code(t, c.was), make([]byte, 4)...)); n == 0 && c.site.Kind != Ftrace && c.site.Kind != StaticCall {
			t.Errorf("%s: what the file has does not match", c.name)
		}
	}
}

func TestAlternatives(t *testing.T) {
	const at, by = 0x1000, 0x2000
	for _, c := range []struct {
		name             string
		was, replacement string
		got              string
		inner            []Site
		want             bool
	}{
		{"as it is", "0f01ca 90 90", "0f01cb", "0f01ca 90 90", nil, true},
		{"with a longer nop", "0f01ca 90 90", "0f01cb", "0f01ca 66 90", nil, true},
		{"replaced", "0f01ca 90 90", "0f01cb", "0f01cb 66 90", nil, true},
		{"neither", "0f01ca 90 90", "0f01cb", "0f01cc 66 90", nil, false},
		{"replaced by nothing", "0f01ca 90 90", "", "0f1f440000", nil, true},
		{"more after nothing", "0f01ca 90 90", "", "0f1f00 f4 90", nil, false},
		{"a call, moved", "90 90 90 90 90", rel(0xe8, by, 0x4444), rel(0xe8, at, 0x4444), nil, true},
		{"a call, not moved", "90 90 90 90 90", rel(0xe8, by, 0x4444), rel(0xe8, by, 0x4444), nil, false},
		{"a jump, made short", "90 90 90 90 90", rel(0xe9, by, 0x1020), "eb1e cccccc", nil, true},
		{"a jump, made short, elsewhere", "90 90 90 90 90", rel(0xe9, by, 0x1020), "eb1d cccccc", nil, false},
		{"a jump within", "90 90 90 90", "eb01 f4 c3", "eb01 f4 c3", nil, true},
		{"rewritten within", rel(0xe8, at, 0x4000) + "90 90", "0f0b", "0faee8 ffd0 66 90", []Site{{At: at, Kind: Retpoline, Len: 6}}, true},
		{"rewritten in the replacement", "90 90 90 90 90", rel(0xe9, by, 0x4060), "c3cccccccc", []Site{{At: by, Kind: Return, Len: 5}}, true},
		{"rewritten, not listed", "90 90 90 90 90", rel(0xe9, by, 0x4060), "c3cccccccc", nil, false},
		{"jump over breakpoints", strings.Repeat("90", 14), "", "eb0c" + strings.Repeat("cc", 12), nil, true},
		{"jump over something", strings.Repeat("90", 14), "", "eb0c" + strings.Repeat("cc", 11) + "c3", nil, false},
	} {
		was, repl := code(t, c.was), code(t, c.replacement)
		k := smallKernel(was, append(repl, 0xcc))
		s := Site{At: at, Kind: Alternative, Len: uint8(len(was)), n: 1}
		sites := &Sites{list: append([]Site{s}, c.inner...), replacements: []replacement{{by, uint8(len(repl))}}}
		m := Matcher{Kernel: k, Read: func([]byte, mem.VA) bool { return false }, Leads: func(Site, mem.VA) bool { return false }}
		if n := m.Match(&k.Image, sites, s, code(t, c.got)); (n > 0) != c.want {
			t.Errorf("%s: %d bytes match", c.name, n)
		}
	}
}

// TestForeign puts a table into another order, marks an entry, and changes one.
func TestForeign(t *testing.T) {
	le := binary.LittleEndian
	table := func(at mem.VA, targets ...uint32) []byte {
		var b []byte
		for i, to := range targets {
			b = le.AppendUint32(b, to-uint32(at)-uint32(4*i))
		}
		return b
	}
	im := &Image{tables: new(tables), lookup: func(string) (mem.VA, bool) { return 0, false }}
	im.Sections = []*Section{{Name: ".orc_unwind_ip", Addr: 0x1000, Size: 12, Data: table(0x1000, 0x30, 0x10, 0x20)},
		{Name: ".orc_unwind", Addr: 0x2000, Size: 18, Data: []byte("ccccccaaaaaabbbbbb")}}
	im.settle()
	all := im.SortedTables()
	if len(all) != 1 || len(all[0].Parts()) != 2 {
		t.Fatalf("%+v", all)
	}
	for _, c := range []struct {
		ip, orc string
		want    []mem.VA
	}{
		{string(table(0x1000, 0x10, 0x20, 0x30)), "aaaaaabbbbbbcccccc", nil},
		{string(table(0x1000, 0x30, 0x10, 0x20)), "ccccccaaaaaabbbbbb", nil},
		{string(table(0x1000, 0x10, 0x21, 0x30)), "aaaaaabbbbbbcccccc", []mem.VA{0x1004}},
		{string(table(0x1000, 0x10, 0x20, 0x30)), "bbbbbbaaaaaacccccc", []mem.VA{0x1000, 0x1004}},
		{string(table(0x1000, 0x10, 0x10, 0x30)), "aaaaaaaaaaaacccccc", []mem.VA{0x1004}},
	} {
		at, each, ok := im.Foreign(all[0], func(va mem.VA, n uint64) []byte {
			if va == 0x1000 {
				return []byte(c.ip)
			}
			return []byte(c.orc)
		})
		if !ok || each != 4 || !bytes.Equal(vas(at), vas(c.want)) {
			t.Errorf("%x %s: %#x, %v, want %#x", c.ip, c.orc, at, ok, c.want)
		}
	}
}

func vas(list []mem.VA) (b []byte) {
	for _, va := range list {
		b = binary.LittleEndian.AppendUint64(b, uint64(va))
	}
	return b
}

func TestAmid(t *testing.T) {
	m := &Module{functions: []span{{0x1000, 0x20}, {0x1040, 0}, {0x1010, 4}}} // the last begins within the first
	for va, want := range map[mem.VA]bool{0xfff: false, 0x1000: false, 0x1001: true, 0x1010: false, 0x1011: true, 0x101f: true, 0x1020: false, 0x1040: false, 0x1041: false} {
		if m.Amid(va) != want {
			t.Errorf("%#x lies amid a function: %v", uint64(va), !want)
		}
	}
}
