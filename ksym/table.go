package ksym

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sort"
	"sync"

	"vmscope/mem"
)

// Table is a kernel's kallsyms, copied out of the guest once and kept
// compressed: about 20 bytes a symbol. Names are decoded when they are asked
// for.
//
// It is immutable and safe for concurrent use.
type Table struct {
	*names
	*offsets
	base  uint64 // relative_base, or the address of the offsets (OwnPlace)
	proof Proof

	percpu struct {
		sync.Once
		lo, hi uint64
	}
}

// offsets are the addresses of a table, still relative.
type offsets struct {
	raw    []byte // s32 each
	scheme Scheme
	word   word

	once  sync.Once
	order []uint32 // the symbols sorted by address; nil if the table is
	sound bool     // no symbol is below its predecessor
}

// Proof is what speaks for a table.
type Proof struct {
	Layout  Layout
	Scheme  Scheme
	Symbols int
	Seqs    bool // the kernel's own index by name was found sound and is used
	// Physical says that addresses of symbols are guest-physical until Rebase:
	// so it is in a place-relative table found in physical memory.
	Physical bool
	// Unsorted counts symbols that are below their predecessor.
	Unsorted int
	// Checks names each check that the table passed, in words.
	Checks []string
}

// Proof returns what speaks for the table.
func (t *Table) Proof() Proof {
	p := t.proof
	p.Checks = slices.Clone(p.Checks)
	return p
}

// Len is the number of symbols.
func (t *Table) Len() int { return t.n }

// PointerSize is the size of the kernel's pointers in bytes, 4 or 8.
func (t *Table) PointerSize() int { return int(t.word.size) }

// Rebase returns the same table with delta added to the address of each symbol
// that is not absolute. A place-relative table that was found in physical
// memory gives physical addresses until it gets the distance from them to the
// virtual ones.
func (t *Table) Rebase(delta uint64) *Table {
	u := &Table{names: t.names, offsets: t.offsets, base: t.base + delta, proof: t.Proof()}
	u.proof.Physical = false
	return u
}

// addr is the address of symbol i.
func (t *Table) addr(i int) uint64 {
	v := binary.LittleEndian.Uint32(t.raw[4*i:])
	switch t.scheme {
	case AbsolutePerCPU:
		if int32(v) >= 0 {
			return uint64(v)
		}
		return (t.base - 1 - uint64(int64(int32(v)))) & t.word.mask
	case OwnPlace:
		return (t.base + 4*uint64(i) + uint64(int64(int32(v)))) & t.word.mask
	}
	return (t.base + uint64(v)) & t.word.mask
}

// absolute reports whether the address of symbol i is a number.
func (t *Table) absolute(i int) bool {
	return t.scheme == AbsolutePerCPU && t.raw[4*i+3]&0x80 == 0
}

// at is the symbol at place k in the order of addresses.
func (t *Table) at(k int) int {
	if t.order != nil {
		return int(t.order[k])
	}
	return k
}

// sorted prepares searches by address. scripts/kallsyms.c sorts by address
// before linking; where relocation left a symbol below its predecessor, an index
// of the order is made.
func (t *Table) sorted() {
	if t.sound {
		return
	}
	t.offsets.once.Do(func() {
		order := make([]uint32, t.n)
		for i := range order {
			order[i] = uint32(i)
		}
		sort.SliceStable(order, func(a, b int) bool { return t.addr(int(order[a])) < t.addr(int(order[b])) })
		t.order = order
	})
}

// above is the first place in the order of addresses whose address is more than a.
func (t *Table) above(a uint64) int {
	return sort.Search(t.n, func(k int) bool { return t.addr(t.at(k)) > a })
}

// percpuRange is [__per_cpu_start, __per_cpu_end), empty where the table does
// not list them.
func (t *Table) percpuRange() (lo, hi uint64) {
	p := &t.percpu
	p.Do(func() {
		i, ok := t.find("__per_cpu_start")
		j, ok2 := t.find("__per_cpu_end")
		if ok && ok2 {
			p.lo, p.hi = t.addr(i), t.addr(j)
		}
	})
	return p.lo, p.hi
}

// symbol assembles symbol i, whose name and type are known.
func (t *Table) symbol(i int, typ byte, name string) Symbol {
	a := t.addr(i)
	s := Symbol{Name: name, Addr: mem.VA(a), Type: typ, Absolute: t.absolute(i)}
	t.sorted()
	if k := t.above(a); k < t.n && t.absolute(t.at(k)) == s.Absolute {
		s.Size = t.addr(t.at(k)) - a
	}
	lo, hi := t.percpuRange()
	s.PerCPU = lo <= a && a < hi
	return s
}

// Lookup finds a symbol by its exact name. Of several symbols of one name it
// returns the one with the lowest address.
func (t *Table) Lookup(name string) (Symbol, error) {
	i, ok := t.find(name)
	if !ok {
		return Symbol{}, noName(name)
	}
	var buf nameBuf
	typ, _ := t.text(&buf, i)
	return t.symbol(i, typ, name), nil
}

// maxSame bounds what LookupAll returns. Real kernels have some thousand
// symbols of the names that compilers make up.
const maxSame = 1 << 16

// LookupAll finds the symbols of that name, by address, at most 65,536 of them;
// none is an empty list.
func (t *Table) LookupAll(name string) []Symbol {
	var out []Symbol
	var buf nameBuf
	t.each(name, func(i int) bool {
		typ, _ := t.text(&buf, i)
		out = append(out, t.symbol(i, typ, name))
		return len(out) < maxSame
	})
	return out
}

// Nearest finds the symbol that va lies in: the last one at or below va, of
// aliases the one that the kernel lists first and so prints in its own traces.
// Above the last symbol and below the first address nothing is found; absolute
// numbers are no addresses.
func (t *Table) Nearest(va mem.VA) (Symbol, uint64, error) {
	t.sorted()
	k := t.above(uint64(va)) - 1
	if k < 0 || t.absolute(t.at(k)) {
		return Symbol{}, 0, noAddr(va)
	}
	a := t.addr(t.at(k))
	if k == t.n-1 && a != uint64(va) {
		return Symbol{}, 0, noAddr(va)
	}
	k = sort.Search(k, func(k int) bool { return t.addr(t.at(k)) >= a })
	i := t.at(k)
	if t.absolute(i) { // a hostile table: a number equal to an address
		return Symbol{}, 0, noAddr(va)
	}
	var buf nameBuf
	typ, name := t.text(&buf, i)
	return t.symbol(i, typ, string(name)), uint64(va) - a, nil
}

// At yields the names of the symbols that are at va itself, aliases of each other.
func (t *Table) At(va mem.VA) iter.Seq[string] {
	return func(yield func(string) bool) {
		t.sorted()
		var buf nameBuf
		for k := t.above(uint64(va)) - 1; k >= 0 && t.addr(t.at(k)) == uint64(va); k-- {
			if i := t.at(k); !t.absolute(i) {
				if _, name := t.text(&buf, i); !yield(string(name)) {
					return
				}
			}
		}
	}
}

// All yields the symbols in the order of the table, which is that of
// /proc/kallsyms. Size is left 0.
func (t *Table) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		var buf nameBuf
		lo, hi := t.percpuRange()
		off := 0
		for i := range t.n {
			rec, next := record(t.recs, off)
			off = next
			s := Symbol{Absolute: t.absolute(i)}
			if b := t.tok.expand(&buf, rec); len(b) > 0 {
				s.Type, s.Name = b[0], string(b[1:])
			}
			a := t.addr(i)
			s.Addr = mem.VA(a)
			s.PerCPU = lo <= a && a < hi
			if !yield(s) {
				return
			}
		}
	}
}

// Verify decodes all names and checks what building the table only sampled:
// each name is printable text behind a type letter, and the kernel's index by
// name, if there is one, is in order. It costs some tens of milliseconds.
func (t *Table) Verify() error {
	var a, b nameBuf
	for i := range t.n {
		if typ, s := t.text(&a, i); !plausible(typ, s) {
			return fmt.Errorf("kallsyms symbol %d has the name %q: %w", i, s, mem.ErrInconsistent)
		}
	}
	if t.seqs == nil {
		return nil
	}
	prev := []byte(nil)
	for k := range t.n {
		_, s := t.text(&a, t.seq(k))
		if string(s) < string(prev) {
			return fmt.Errorf("kallsyms index by name: %q before %q: %w", prev, s, mem.ErrInconsistent)
		}
		prev = append(b[:0], s...)
	}
	return nil
}

// plausible reports whether a symbol can have come out of nm.
func plausible(typ byte, name []byte) bool {
	if len(name) == 0 || !('a' <= typ|0x20 && typ|0x20 <= 'z') {
		return false
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
