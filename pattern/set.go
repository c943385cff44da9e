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
// side (a gram) at every place that is a multiple of n-1: one such gram lies
// within each atom. A table says of each gram whether an atom has it at such a
// place. Of many atoms that would be most grams, and longer ones are taken.
type Set struct {
	Rules []*Rule

	matchers []*matcher
	of       []source // of each matcher
	gram     int      // bytes: shortGram or longGram
	stride   int
	flag     [1 << 16]bool   // by short gram
	bits     []uint64        // by the hash of a long one, a bit each
	first    [1 << 16]uint32 // in lists, by short gram, or by the upper bits of the hash
	lists    [][]candidate
}

const (
	shortGram = 2
	longGram  = 4
	// manyAtoms is from how many on long grams are better, if all atoms have them
	// at more than one place.
	manyAtoms = 200
)

// hash of a long gram, of hashBits.
func hash(gram uint32) uint32 { return gram * 0x9e3779b1 >> (32 - hashBits) }

const hashBits = 21

// source is where a matcher comes from.
type source struct{ rule, str int }

// candidate is an atom that a gram may be part of.
type candidate struct {
	matcher uint32
	atom    uint16
	phase   uint8 // where in the atom the gram is
}

// Match is a place where a pattern was found.
type Match struct {
	Rule, String int // their numbers in the Set and in the rule
	Start, End   int // in the buffer
}

// Compile makes rules ready.
func Compile(rules []*Rule) (*Set, error) {
	s := &Set{Rules: rules, gram: shortGram}
	shortest, atoms := maxAtom, 0
	for i, r := range rules {
		for k := range r.Strings {
			m, err := r.Strings[k].matchers()
			if err != nil {
				return nil, err
			}
			for _, m := range m {
				s.matchers, s.of = append(s.matchers, m), append(s.of, source{i, k})
				for _, a := range m.atoms {
					shortest, atoms = min(shortest, len(a.units)), atoms+1
				}
			}
		}
	}
	if len(s.matchers) == 0 {
		return nil, errors.New("there is no pattern to search for")
	}
	if atoms >= manyAtoms && shortest > longGram {
		s.gram, s.bits = longGram, make([]uint64, 1<<hashBits/64)
	}
	s.stride = max(shortest-s.gram+1, 1)
	lists := make(map[uint16][]candidate)
	for i, m := range s.matchers {
		for k, a := range m.atoms {
			for phase := range s.stride {
				units := a.units[phase:min(phase+s.gram, len(a.units))]
				if len(units) < s.gram {
					units = []unit{units[0], {}} // behind an atom of one byte: any
				}
				c := candidate{uint32(i), uint16(k), uint8(phase)}
				grams(units, 0, func(g uint32) {
					h := uint16(g)
					if s.gram == longGram {
						x := hash(g)
						s.bits[x/64] |= 1 << (x % 64)
						h = uint16(x >> (hashBits - 16))
					}
					if l := lists[h]; len(l) == 0 || l[len(l)-1] != c {
						lists[h] = append(l, c)
					}
				})
			}
		}
	}
	for h, l := range lists {
		s.flag[h], s.first[h] = true, uint32(len(s.lists))
		s.lists = append(s.lists, l)
	}
	return s, nil
}

// grams calls f with each row of bytes that fits units, the first in the low byte;
// gram has the bytes of the units before.
func grams(units []unit, gram uint32, f func(uint32)) {
	if len(units) == 0 {
		f(gram)
		return
	}
	last := len(units) - 1
	for n := range 1 << bits.OnesCount8(^units[last].mask) {
		grams(units[:last], gram<<8|uint32(units[last].value(n)), f)
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
	last := min(len(buf), to+MaxLength) - set.gram
	i := from
	if set.gram == longGram {
		bits := set.bits
		for ; i <= last; i += step {
			if h := hash(binary.LittleEndian.Uint32(buf[i:])); bits[h/64]>>(h%64)&1 != 0 {
				s.check(buf, i, uint16(h>>(hashBits-16)), from, to, found)
			}
		}
		return
	}
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
		if h := binary.LittleEndian.Uint16(buf[i:]); set.flag[h] {
			s.check(buf, i, h, from, to, found)
		}
	}
	if i == len(buf)-1 { // an atom of one byte may be the last
		if h := uint16(buf[i]); set.flag[h] {
			s.check(buf, i, h, from, to, found)
		}
	}
}

// check tries all atoms that may have a gram of hash h, which stands at at.
func (s *Scanner) check(buf []byte, at int, h uint16, from, to int, found func(Match)) {
next:
	for _, c := range s.set.lists[s.set.first[h]] {
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
