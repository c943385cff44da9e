package ksym

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strings"

	"vmscope/mem"
)

// spec says how to write a table: what scripts/kallsyms.c does, for tests.
type spec struct {
	layout Layout
	scheme Scheme
	ptr    uint64 // pointer size
	al     uint64 // alignment of blocks
	seqs   bool
	base   mem.VA // of the run of blocks
	syms   []Symbol
}

// encoded is a table as it lies in memory.
type encoded struct {
	spec
	bytes []byte
	p     Places
	marks int // offset of the markers in bytes
	seqs  int // offset of the seqs
}

// dictionary is a token table: single characters at their own place, as the
// kernel has them, and some longer tokens elsewhere.
func dictionary() (tok [256]string) {
	for c := '!'; c < 0x7f; c++ {
		tok[c] = string(c)
	}
	for i, s := range []string{"T", "__x64_sys_", "func_", "_stext", "data_", "kallsyms_", "Tfunc_", "a_token_longer_than_eight", "00", "_"} {
		tok[0x80+i] = s
	}
	return tok
}

// compress cuts s into tokens, the longest first.
func compress(tok *[256]string, s string) (out []byte) {
	for s != "" {
		best, n := -1, 0
		for i, t := range tok {
			if len(t) > n && strings.HasPrefix(s, t) {
				best, n = i, len(t)
			}
		}
		if best < 0 {
			panic("no token for " + s)
		}
		out, s = append(out, byte(best)), s[n:]
	}
	return out
}

func (s spec) encode() encoded {
	e := encoded{spec: s}
	le := binary.LittleEndian
	tok := dictionary()
	n := len(s.syms)

	var names, marks, seqs, table, index []byte
	for i, y := range s.syms {
		if i%markEvery == 0 {
			marks = le.AppendUint32(marks, uint32(len(names)))
		}
		r := compress(&tok, string(y.Type)+y.Name)
		if len(r) < 0x80 {
			names = append(names, byte(len(r)))
		} else {
			names = append(names, byte(len(r)&0x7f|0x80), byte(len(r)>>7))
		}
		names = append(names, r...)
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return s.syms[order[a]].Name < s.syms[order[b]].Name })
	for _, i := range order {
		seqs = append(seqs, byte(i>>16), byte(i>>8), byte(i))
	}
	for _, t := range tok {
		index = le.AppendUint16(index, uint16(len(table)))
		table = append(append(table, t...), 0)
	}

	relative := uint64(0)
	for _, y := range s.syms {
		if !y.Absolute {
			relative = uint64(y.Addr)
			break
		}
	}
	here := func() mem.VA { return s.base + mem.VA(len(e.bytes)) }
	begin := func(al uint64) mem.VA {
		for uint64(here())%al != 0 {
			e.bytes = append(e.bytes, 0)
		}
		return here()
	}
	offsets := func(al uint64) {
		e.p.Offsets = begin(al)
		for _, y := range s.syms {
			v := uint64(y.Addr) - relative
			switch {
			case s.scheme == OwnPlace:
				v = uint64(y.Addr - here())
			case s.scheme == AbsolutePerCPU && y.Absolute:
				v = uint64(y.Addr)
			case s.scheme == AbsolutePerCPU:
				v = relative - 1 - uint64(y.Addr)
			}
			e.bytes = le.AppendUint32(e.bytes, uint32(v))
		}
	}
	base := func() {
		e.p.RelativeBase = begin(s.ptr)
		e.bytes = append(e.bytes, le.AppendUint64(nil, relative)[:s.ptr]...)
	}

	if s.layout == BaseFirst {
		offsets(s.ptr)
		base()
	}
	e.p.NumSyms = begin(s.al)
	e.bytes = le.AppendUint32(e.bytes, uint32(n))
	e.p.Names = begin(s.al)
	e.bytes = append(e.bytes, names...)
	e.marks = int(begin(s.al) - s.base)
	e.bytes = append(e.bytes, marks...)
	if s.layout == BaseFirst && s.seqs {
		e.seqs = int(begin(s.al) - s.base)
		e.bytes = append(e.bytes, seqs...)
	}
	e.p.TokenTable = begin(s.al)
	e.bytes = append(e.bytes, table...)
	e.p.TokenIndex = begin(s.al)
	e.bytes = append(e.bytes, index...)
	if s.layout != BaseFirst {
		offsets(s.al)
		if s.layout == BaseLast {
			base()
		}
		e.seqs = int(begin(s.al) - s.base)
		if s.seqs {
			e.bytes = append(e.bytes, seqs...)
		}
	}
	// A table that lists its own token table must list it where it is, which
	// only now is known.
	for i, y := range s.syms {
		if y.Name == "kallsyms_token_table" && y.Addr != e.p.TokenTable {
			t := s
			t.syms = slices.Clone(s.syms)
			t.syms[i].Addr = e.p.TokenTable
			return t.encode()
		}
	}
	return e
}

// read gives the bytes at virtual addresses.
func (e encoded) read(p []byte, va mem.VA) (int, error) {
	off := uint64(va - e.base)
	if off > uint64(len(e.bytes)) {
		return 0, &mem.FaultError{Op: "read", Space: "test", Addr: uint64(va), Err: mem.ErrNotMapped}
	}
	n := copy(p, e.bytes[off:])
	if n < len(p) {
		return n, &mem.FaultError{Op: "read", Space: "test", Addr: uint64(va) + uint64(n), Err: mem.ErrNotMapped}
	}
	return n, nil
}

// ramBase is where the physical memory of the tests begins: high enough for the
// symbols, which are below their table.
const ramBase = mem.PA(16 << 20)

// ram puts the table into 4 MiB of physical memory, at bytes from its start and
// as far into its page as it is virtually, and returns the distance to the
// virtual addresses.
func (e encoded) ram(at mem.PA) (*mem.RAM, uint64) {
	at = at&^(mem.PageSize-1) + mem.PA(e.base%mem.PageSize)
	data := make([]byte, 4<<20)
	copy(data[at:], e.bytes)
	r, err := mem.NewRAM(mem.Segment{PA: ramBase, Data: data})
	if err != nil {
		panic(err)
	}
	return r, uint64(e.base) - uint64(ramBase+at)
}

// kernel64 is where a 64-bit kernel of the tests begins; its table comes behind
// its symbols.
const kernel64 = mem.VA(0xffffffff_9a000000)

// symbols makes n symbols of a kernel at base: per-CPU ones if asked for, then
// functions with the names that a table must have, aliases, names that occur
// more than once, and one of the longest names.
func symbols(base mem.VA, n int, percpu, own bool, sys string) []Symbol {
	var out []Symbol
	if percpu {
		out = append(out, Symbol{Name: "fixed_percpu_data", Type: 'A', Absolute: true, PerCPU: true},
			Symbol{Name: "__per_cpu_start", Type: 'D', Absolute: true, PerCPU: true},
			Symbol{Name: "cpu_number", Addr: 0x1f000, Type: 'D', Absolute: true, PerCPU: true},
			Symbol{Name: "__per_cpu_end", Addr: 0x30000, Type: 'D', Absolute: true})
	}
	at := base
	put := func(name string, typ byte, size mem.VA) {
		out = append(out, Symbol{Name: name, Addr: at, Type: typ})
		at += size
	}
	put("_text", 'T', 0)
	put("startup_64", 'T', mem.PageSize)
	put("_stext", 'T', 0)
	put("func_first_alias", 't', 0)
	put("func_second_alias", 'T', 64)
	put(sys+"read", 'T', 32)
	put("z"+strings.Repeat("q!", 150), 't', 16)
	for i := len(out); i < n-4; i++ {
		name := fmt.Sprintf("func_%d", i*7919%10007)
		if i%100 == 0 {
			name = "func_again"
		}
		put(name, "tTdDrRbB"[i%8], mem.VA(16+i%5*4))
	}
	put("a_token_longer_than_eight_00", 'V', 8)
	if own {
		put("kallsyms_token_table", 'r', 1<<20)
	}
	for len(out) < n-1 {
		put(fmt.Sprintf("data_%d", len(out)), 'd', 4)
	}
	at += 2 << 20
	put("_end", 'B', 0)
	return out
}

// layouts are the tables of real kernels, in small, and their neighbours.
var layouts = []struct {
	name string
	spec
	own bool
	sys string
}{
	{"5.10 amd64", spec{BaseFirst, AbsolutePerCPU, 8, 8, false, 0, nil}, false, "__x64_sys_"},
	{"6.1 amd64", spec{BaseFirst, AbsolutePerCPU, 8, 8, true, 0, nil}, false, "__x64_sys_"},
	{"6.1 arm64", spec{BaseFirst, Plain, 8, 8, true, 0, nil}, false, "__arm64_sys_"},
	{"6.1 i386", spec{BaseFirst, Plain, 4, 4, true, 0, nil}, false, "__ia32_sys_"},
	{"5.10 i386", spec{BaseFirst, Plain, 4, 4, false, 0, nil}, false, "__ia32_sys_"},
	{"6.12 amd64", spec{BaseLast, AbsolutePerCPU, 8, 8, true, 0, nil}, true, "__x64_sys_"},
	{"6.12 arm64", spec{BaseLast, Plain, 8, 8, true, 0, nil}, true, "__arm64_sys_"},
	{"6.12 i386", spec{BaseLast, Plain, 4, 4, true, 0, nil}, true, "__ia32_sys_"},
	{"7.2 amd64", spec{PlaceRelative, OwnPlace, 8, 4, true, 0, nil}, true, "__x64_sys_"},
	{"7.2 arm64 without data symbols", spec{PlaceRelative, OwnPlace, 8, 4, true, 0, nil}, false, "__arm64_sys_"},
	{"7.2 i386", spec{PlaceRelative, OwnPlace, 4, 4, true, 0, nil}, true, "__ia32_sys_"},
}

// layoutSpec fills in the symbols of layouts[i]: n of them, the blocks shift
// bytes into a page.
func layoutSpec(i, n int, shift mem.VA) spec {
	l := layouts[i]
	s := l.spec
	k := kernel64
	if s.ptr == 4 {
		k = 0xc8000000
	}
	s.base = k + 1<<20 + shift
	s.syms = symbols(k, n, s.scheme == AbsolutePerCPU, l.own, l.sys)
	return s
}
