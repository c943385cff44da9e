package ksym

import (
	"iter"
	"slices"
	"sort"
	"strings"

	"vmscope/mem"
)

// List is a set of symbols from elsewhere than kallsyms, with the same lookups.
// It is immutable and safe for concurrent use.
type List struct {
	syms   []Symbol // by address; aliases in the order given
	byName []uint32
}

// NewList makes a list of symbols, which it takes over and sorts. Symbols
// without a size get the distance to the next address, as in a Table.
func NewList(syms []Symbol) *List {
	sort.SliceStable(syms, func(i, j int) bool { return syms[i].Addr < syms[j].Addr })
	l := &List{syms: syms, byName: make([]uint32, len(syms))}
	var next *Symbol // the first symbol of a higher address
	for i := len(syms) - 1; i >= 0; i-- {
		l.byName[i] = uint32(i)
		if i+1 < len(syms) && syms[i+1].Addr > syms[i].Addr {
			next = &syms[i+1]
		}
		if s := &syms[i]; s.Size == 0 && next != nil && next.Absolute == s.Absolute {
			s.Size = uint64(next.Addr - s.Addr)
		}
	}
	slices.SortStableFunc(l.byName, func(a, b uint32) int { return strings.Compare(syms[a].Name, syms[b].Name) })
	return l
}

// Len is the number of symbols.
func (l *List) Len() int { return len(l.syms) }

// All yields the symbols by address.
func (l *List) All() iter.Seq[Symbol] { return slices.Values(l.syms) }

// Lookup finds a symbol by its exact name; of several, the lowest.
func (l *List) Lookup(name string) (Symbol, error) {
	k := l.first(name)
	if k == len(l.byName) || l.syms[l.byName[k]].Name != name {
		return Symbol{}, noName(name)
	}
	return l.syms[l.byName[k]], nil
}

// LookupAll finds all symbols of that name, by address; none is an empty list.
func (l *List) LookupAll(name string) []Symbol {
	var out []Symbol
	for k := l.first(name); k < len(l.byName) && l.syms[l.byName[k]].Name == name; k++ {
		out = append(out, l.syms[l.byName[k]])
	}
	return out
}

func (l *List) first(name string) int {
	return sort.Search(len(l.byName), func(k int) bool { return l.syms[l.byName[k]].Name >= name })
}

// Nearest finds the symbol that va lies in, as Table.Nearest does. A symbol
// holds no address behind its size; the last one, of unknown size, only its own.
func (l *List) Nearest(va mem.VA) (Symbol, uint64, error) {
	k := sort.Search(len(l.syms), func(k int) bool { return l.syms[k].Addr > va }) - 1
	if k < 0 {
		return Symbol{}, 0, noAddr(va)
	}
	a := l.syms[k].Addr
	k = sort.Search(k, func(k int) bool { return l.syms[k].Addr >= a })
	s := l.syms[k]
	if off := uint64(va - a); !s.Absolute && (off < s.Size || off == 0) {
		return s, off, nil
	}
	return Symbol{}, 0, noAddr(va)
}

// At yields the names of the symbols that are at va itself.
func (l *List) At(va mem.VA) iter.Seq[string] {
	return func(yield func(string) bool) {
		i := sort.Search(len(l.syms), func(i int) bool { return l.syms[i].Addr >= va })
		for ; i < len(l.syms) && l.syms[i].Addr == va; i++ {
			if !yield(l.syms[i].Name) {
				return
			}
		}
	}
}
