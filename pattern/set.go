package pattern

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Set is rules made ready to search for all their patterns at once. It does not
// change and is safe for concurrent use.
//
// Of every pattern an atom is known, up to eight bytes that each match has in
// it. If the shortest atom has n bytes, it is enough to look at two bytes side by
// side at every place that is a multiple of n-1: one such pair lies within each
// atom. A table says of each pair whether an atom has it at such a place.
type Set struct {
	Rules []*Rule

	matchers []*matcher
	of       []source // of each matcher
	stride   int
	flag     [1 << 16]bool
	first    [1 << 16]uint32 // in lists, of the pairs that are flagged
	lists    [][]candidate
}

// source is where a matcher comes from.
type source struct{ rule, str int }

// candidate is an atom that a pair of bytes may be part of.
type candidate struct {
	matcher uint32
	atom    uint16
	phase   uint8 // where in the atom the pair is
}

// Match is a place where a pattern was found.
type Match struct {
	Rule, String int // their numbers in the Set and in the rule
	Start, End   int // in the buffer
}

// Compile makes rules ready.
func Compile(rules []*Rule) (*Set, error) {
	s := &Set{Rules: rules, stride: maxAtom - 1}
	for i, r := range rules {
		for k := range r.Strings {
			m, err := r.Strings[k].matchers()
			if err != nil {
				return nil, err
			}
			for _, m := range m {
				s.matchers, s.of = append(s.matchers, m), append(s.of, source{i, k})
				for _, a := range m.atoms {
					s.stride = min(s.stride, max(len(a.units)-1, 1))
				}
			}
		}
	}
	if len(s.matchers) == 0 {
		return nil, errors.New("there is no pattern to search for")
	}
	lists := make(map[uint16][]candidate)
	for i, m := range s.matchers {
		for k, a := range m.atoms {
			for phase := range s.stride {
				second := unit{} // behind an atom of one byte: any
				if phase+1 < len(a.units) {
					second = a.units[phase+1]
				}
				pairs(a.units[phase], second, func(p uint16) {
					lists[p] = append(lists[p], candidate{uint32(i), uint16(k), uint8(phase)})
				})
			}
		}
	}
	for p, l := range lists {
		s.flag[p], s.first[p] = true, uint32(len(s.lists))
		s.lists = append(s.lists, l)
	}
	return s, nil
}

// pairs calls f with each pair that fits two units, the first in the low byte.
func pairs(a, b unit, f func(uint16)) {
	for x := range 1 << bits.OnesCount8(^a.mask) {
		for y := range 1 << bits.OnesCount8(^b.mask) {
			f(uint16(a.value(x)) | uint16(b.value(y))<<8)
		}
	}
}

// value is the byte number n of those that fit.
func (u unit) value(n int) byte {
	c := u.val
	for bit := byte(1); bit != 0; bit <<= 1 {
		if u.mask&bit == 0 {
			c |= bit * byte(n&1)
			n >>= 1
		}
	}
	return c
}

// Scanner searches for a Set, in one goroutine.
type Scanner struct {
	set     *Set
	scratch scratch
	seen    map[seen]bool
}

type seen struct {
	matcher uint32
	start   int
}

// Scanner makes one.
func (s *Set) Scanner() *Scanner { return &Scanner{set: s, seen: make(map[seen]bool)} }

// Overlap is how many bytes behind a part of memory are to be in the buffer so
// that all matches that begin in the part are found, and how many before it.
const Overlap = MaxLength + 2

// Scan calls found with each match that begins in buf[from:to]; what is around
// that may belong to matches and decides on what borders on them. Matches of one
// pattern may overlap; the order is roughly that of their places.
func (s *Scanner) Scan(buf []byte, from, to int, found func(Match)) {
	clear(s.seen)
	set, step := s.set, s.set.stride
	// A match that begins before to has its atom before this.
	last := min(len(buf), to+MaxLength) - 2
	i := from
	for ; i+3*step <= last; i += 4 * step {
		a := set.flag[binary.LittleEndian.Uint16(buf[i:])]
		b := set.flag[binary.LittleEndian.Uint16(buf[i+step:])]
		c := set.flag[binary.LittleEndian.Uint16(buf[i+2*step:])]
		d := set.flag[binary.LittleEndian.Uint16(buf[i+3*step:])]
		if a || b || c || d {
			for k, hit := range [...]bool{a, b, c, d} {
				if at := i + k*step; hit {
					s.check(buf, at, binary.LittleEndian.Uint16(buf[at:]), from, to, found)
				}
			}
		}
	}
	for ; i <= last; i += step {
		if p := binary.LittleEndian.Uint16(buf[i:]); set.flag[p] {
			s.check(buf, i, p, from, to, found)
		}
	}
	if i == len(buf)-1 { // an atom of one byte may be the last
		if p := uint16(buf[i]); set.flag[p] {
			s.check(buf, i, p, from, to, found)
		}
	}
}

// check tries all atoms that have the pair p, which stands at at.
func (s *Scanner) check(buf []byte, at int, p uint16, from, to int, found func(Match)) {
next:
	for _, c := range s.set.lists[s.set.first[p]] {
		m := s.set.matchers[c.matcher]
		a := &m.atoms[c.atom]
		first := at - int(c.phase)
		if first < 0 || first+len(a.units) > len(buf) {
			continue
		}
		for k, u := range a.units {
			if !u.fits(buf[first+k]) {
				continue next
			}
		}
		for start := max(first-a.max, from); start <= first-a.min && start < to; start++ {
			key := seen{c.matcher, start}
			several := m.prog != nil
			if several && s.seen[key] {
				continue
			}
			n := m.at(buf, start, &s.scratch)
			if n == 0 {
				continue
			}
			if several {
				s.seen[key] = true
			}
			of := s.set.of[c.matcher]
			found(Match{of.rule, of.str, start, start + n})
		}
	}
}
