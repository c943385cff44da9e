package pattern

import (
	"math/bits"
	"regexp/syntax"
	"slices"
)

// item is a part of a pattern: a byte, or a gap of min to max bytes of any kind
// (max -1: without an end).
type item struct {
	unit
	gap      bool
	min, max int
}

func unitItems(units []unit) []item {
	out := make([]item, len(units))
	for i, u := range units {
		out[i] = item{unit: u, min: 1, max: 1}
	}
	return out
}

func gapItem(min, max int) item { return item{gap: true, min: min, max: max} }

// length is how many bytes items stand for; max is -1 if there is no end.
func length(items []item) (min, max int) {
	for _, i := range items {
		min += i.min
		if max < 0 || i.max < 0 || max > MaxLength {
			max = -1
		} else {
			max += i.max
		}
		if min > MaxLength {
			return MaxLength + 1, -1
		}
	}
	return min, max
}

// maxVariants bounds how many rows of items a regular expression becomes.
const maxVariants = 64

// itemsOf breaks an expression into rows of items, of which each match is one.
// What is too much for that is a gap.
func itemsOf(re *syntax.Regexp) [][]item {
	switch re.Op {
	case syntax.OpLiteral:
		var row []item
		for _, r := range re.Rune {
			fold := re.Flags&syntax.FoldCase != 0
			if r > 0xff || fold && r >= 0x80 {
				row = append(row, gapItem(1, 1))
				continue
			}
			row = append(row, item{unit: letter(byte(r), fold), min: 1, max: 1})
		}
		return [][]item{row}
	case syntax.OpCharClass:
		return [][]item{{classItem(re.Rune)}}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return [][]item{{gapItem(1, 1)}}
	case syntax.OpCapture:
		return itemsOf(re.Sub[0])
	case syntax.OpConcat:
		rows := [][]item{nil}
		for _, sub := range re.Sub {
			rows = product(rows, itemsOf(sub))
		}
		return rows
	case syntax.OpAlternate:
		var rows [][]item
		for _, sub := range re.Sub {
			rows = append(rows, itemsOf(sub)...)
		}
		if len(rows) > maxVariants {
			return blurred(rows)
		}
		return rows
	case syntax.OpStar:
		return [][]item{{gapItem(0, -1)}}
	case syntax.OpPlus:
		return product(itemsOf(re.Sub[0]), [][]item{{gapItem(0, -1)}})
	case syntax.OpQuest:
		_, max := span(itemsOf(re.Sub[0]))
		return [][]item{{gapItem(0, max)}}
	case syntax.OpRepeat:
		return repeated(itemsOf(re.Sub[0]), re.Min, re.Max)
	case syntax.OpNoMatch:
		return [][]item{{gapItem(1, 1)}}
	}
	return [][]item{nil} // what takes no byte
}

// repeated are rows that stand there from low to high times (-1: any number).
func repeated(rows [][]item, low, high int) [][]item {
	out := [][]item{nil}
	n := 0
	for ; n < low && n < 8; n++ {
		out = product(out, rows)
	}
	lo, hi := span(rows)
	rest := gapItem((low-n)*lo, -1)
	if high >= 0 && hi >= 0 {
		rest.max = (high - n) * hi
	}
	if rest.min > MaxLength {
		rest.min = MaxLength + 1
	}
	return product(out, [][]item{{rest}})
}

// product puts each row of b behind each of a.
func product(a, b [][]item) [][]item {
	if len(a)*len(b) > maxVariants {
		if len(a) > len(b) {
			a = blurred(a)
		} else {
			b = blurred(b)
		}
	}
	if len(a)*len(b) > maxVariants {
		a, b = blurred(a), blurred(b)
	}
	var out [][]item
	for _, x := range a {
		for _, y := range b {
			out = append(out, slices.Concat(x, y))
		}
	}
	return out
}

// blurred is rows as one gap.
func blurred(rows [][]item) [][]item {
	min, max := span(rows)
	return [][]item{{gapItem(min, max)}}
}

// span is the length of the shortest and the longest of rows.
func span(rows [][]item) (min, max int) {
	for i, r := range rows {
		lo, hi := length(r)
		if i == 0 || lo < min {
			min = lo
		}
		if max >= 0 && (hi < 0 || hi > max) {
			max = hi
		}
	}
	return min, max
}

// classItem is a class of characters: a unit if one fits just them.
func classItem(ranges []rune) item {
	var in [256]bool
	n, first := 0, -1
	for c := range rune(256) {
		for k := 0; k+1 < len(ranges); k += 2 {
			if c >= ranges[k] && c <= ranges[k+1] && !in[c] {
				in[c] = true
				if n++; first < 0 {
					first = int(c)
				}
			}
		}
	}
	switch u := (unit{byte(first), 0xdf}); {
	case n == 1:
		return item{unit: unit{byte(first), 0xff}, min: 1, max: 1}
	case n == 2 && first&0x20 == 0 && in[first|0x20]:
		return item{unit: u, min: 1, max: 1}
	}
	return gapItem(1, 1)
}

// atom is a run of bytes that every match has in it, to be searched for.
type atom struct {
	units    []unit
	min, max int // how many bytes stand before it in the match
}

const (
	maxAtom = 8
	// maxReach bounds in how many places before an atom a match may begin, each of
	// which is tried, unless the atom has rareAtom bytes.
	maxReach = 64
	rareAtom = 3
)

// atomsOf chooses an atom of each row; nil if a row has none.
func atomsOf(rows [][]item) []atom {
	var out []atom
	for _, row := range rows {
		a, ok := bestAtom(row)
		if !ok {
			return nil
		}
		out = append(out, a)
	}
	return out
}

func bestAtom(row []item) (best atom, ok bool) {
	score := 0
	for i := range row {
		before, after := length(row[:i])
		if before > MaxLength {
			break
		}
		if after < 0 {
			after = MaxLength
		}
		far := after-before > maxReach
		units := make([]unit, 0, maxAtom)
		for k := i; k < len(row) && len(units) < maxAtom && row[k].searchable(); k++ {
			units = append(units, row[k].unit)
			s := worth(units)
			if far {
				if s -= 4 * rareAtom; len(units) < rareAtom {
					continue
				}
			}
			if !ok || s > score {
				best, score, ok = atom{slices.Clone(units), before, after}, s, true
			}
		}
	}
	return best, ok
}

// searchable reports whether an item is a byte of one value, or of two.
func (i item) searchable() bool { return !i.gap && bits.OnesCount8(i.mask) >= 7 }

// worth is how good an atom is: long, and without pairs of bytes that memory is
// full of.
func worth(units []unit) int {
	common := 0
	for k := 0; k+1 < len(units); k++ {
		common = max(common, frequency(units[k].val, units[k+1].val))
	}
	return 8*len(units) - common
}

// frequency says roughly how often memory has two bytes side by side.
func frequency(a, b byte) int {
	switch {
	case a == 0 && b == 0:
		return 48
	case a == b && (a == 0xff || a == ' ' || a == 0xcc || a == 0x90):
		return 24
	case a == 0 || b == 0 || a == 0xff || b == 0xff:
		return 6
	case a|0x20 >= 'a' && a|0x20 <= 'z' && b|0x20 >= 'a' && b|0x20 <= 'z':
		return 3
	}
	return 0
}
