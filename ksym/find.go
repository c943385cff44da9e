package ksym

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/mem"
)

// Bounds of a search. Real memory holds one or two tables.
const (
	maxFound   = 8       // tables
	maxDigits  = 100_000 // places that look like the digits of a token table
	maxIndexes = 8       // places behind one of them that look like the token index
	maxTables  = 64      // sound token tables whose names are searched
	maxRecords = 1 << 24 // records walked in search of the first name
	minSyms    = 2_000   // of a table that a search takes
	probe      = 64      // names that are walked and read before all are
)

// Found is a table found in physical memory.
type Found struct {
	*Table
	// TokenTable is where it was found.
	TokenTable mem.PA
}

// Delta is the distance from physical to virtual addresses of the image, if the
// table itself tells it: from Linux 6.12 on it lists its own token table.
// Never so for place-relative tables, which are physical throughout.
func (f Found) Delta() (delta uint64, ok bool) {
	if f.proof.Physical {
		return 0, false
	}
	i, ok := f.find("kallsyms_token_table")
	if !ok {
		return 0, false
	}
	return f.addr(i) - uint64(f.TokenTable), true
}

// Find searches the extents of physical memory for kallsyms tables. It returns
// all that prove themselves, in the order of their addresses, and decides
// nothing: a kernel of an earlier boot may have left one, and the guest can
// plant one. Partial results come beside an error, also that of a ctx that ended.
//
// A table must lie in physically contiguous memory, as kernel images do. The
// cost is one pass over the extents; restrict them to the kernel image where it
// is known. Tables begin in the extents but may reach out of them.
func Find(ctx context.Context, r mem.PhysReader, extents []mem.Range) ([]Found, error) {
	s := search{r: r}
	err := scan(ctx, r, extents, func(pa mem.PA, page *[mem.PageSize]byte) bool {
		for i := 0; i < mem.PageSize; i += 8 {
			// "0\0001\0...9\0", 20 bytes: wherever it begins, it holds a
			// whole aligned word, of which every other byte is NUL and the
			// others are digits.
			w := binary.LittleEndian.Uint64(page[i:])
			if w&0xfff0fff0fff0fff0 == 0x0030003000300030 || w&0xf0fff0fff0fff0ff == 0x3000300030003000 {
				if !s.digits(w, pa+mem.PA(i)) {
					return false
				}
			}
		}
		return true
	})
	if err == nil {
		err = s.err
	}
	return s.found, err
}

// search is one Find.
type search struct {
	r       mem.PhysReader
	found   []Found
	seen    mem.PA // start of the last run of digits
	hits    int
	tables  int
	records int
	err     error
}

func (s *search) read(p []byte, a uint64) error {
	_, err := s.r.ReadPhys(p, mem.PA(a))
	return err
}

var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// digits looks at a word of NULs and digits at pa. It returns false to end the
// search.
func (s *search) digits(w uint64, pa mem.PA) bool {
	// The word says where the run began: "3\0004\0..." lies 6 bytes behind.
	first, shift := w&0xff, mem.PA(0)
	if first == 0 {
		first, shift = w>>8&0xff, 1
	}
	back := mem.PA(first-'0') * 2
	if first > '9' || first+3 > '9' || pa+shift < back+1 {
		return true
	}
	at := pa + shift - back
	if at == s.seen && s.hits > 0 {
		return true // the run's second aligned word
	}
	s.seen = at
	if s.hits++; s.hits > maxDigits {
		s.err = tooMany("runs of digits", maxDigits)
		return false
	}
	var q [21]byte
	if s.read(q[:], uint64(at)-1) != nil || q[0] != 0 || string(q[1:]) != string(digits) {
		return true
	}
	for _, f := range s.found {
		if at > f.TokenTable && at < f.TokenTable+maxTokens {
			return true
		}
	}
	if t, ok := s.tokens(at); ok {
		s.tables++
		if f, ok := s.resolve(t); ok {
			s.found = append(s.found, f)
		}
	}
	switch {
	case s.tables > maxTables:
		s.err = tooMany("token tables", maxTables)
	case s.records > maxRecords:
		s.err = tooMany("names that lead nowhere", maxRecords)
	case len(s.found) == maxFound:
		s.err = tooMany("kallsyms tables", maxFound-1)
	}
	return s.err == nil
}

// tokenPlace is where a token table and its index are.
type tokenPlace struct {
	table, index mem.PA
	tok          *tokens
}

// tokens finds the token table that the digits at pa belong to: its index
// follows within maxTokens and says how far behind its start they are.
func (s *search) tokens(pa mem.PA) (tokenPlace, bool) {
	buf := make([]byte, maxTokens+indexSize)
	n, _ := s.r.ReadPhys(buf, pa)
	buf = buf[:n]
	// The index is aligned in memory, the digits are not.
	indexes := 0
	for o := len(digits) + int(pa&1); o+indexSize <= len(buf); o += 2 {
		x := buf[o:]
		d := binary.LittleEndian.Uint16(x[2*'0':])
		if x[0]|x[1] != 0 || d < '0' || binary.LittleEndian.Uint16(x[2*'9':]) != d+18 || int(d) >= maxTokens || mem.PA(d) > pa {
			continue
		}
		p := tokenPlace{table: pa - mem.PA(d), index: pa + mem.PA(o)}
		if p.table%4 != 0 || p.index-p.table > maxTokens {
			continue
		}
		if indexes++; indexes > maxIndexes {
			break
		}
		table := make([]byte, p.index-p.table)
		if s.read(table, uint64(p.table)) != nil {
			continue
		}
		tok, err := parseTokens(table, x[:indexSize])
		if err != nil {
			continue
		}
		end := uint64(p.table) + uint64(len(tok.text))
		if i := uint64(p.index); i != align(end, 2) && i != align(end, 4) && i != align(end, 8) {
			continue
		}
		p.tok = tok
		return p, true
	}
	return tokenPlace{}, false
}

// resolve finds the other blocks of the table whose token table is known.
func (s *search) resolve(t tokenPlace) (Found, bool) {
	for num, names := range s.starts(t) {
		p := Places{NumSyms: mem.VA(num), Names: mem.VA(names), TokenTable: mem.VA(t.table), TokenIndex: mem.VA(t.index)}
		s.records += int(t.table-num) / 8 // about the names that may be there
		b, err := newBuilder(s.read, p)
		if err != nil {
			continue
		}
		if table, err := b.anyLayout(); err == nil {
			return Found{Table: table, TokenTable: t.table}, true
		}
	}
	return Found{}, false
}

// starts yields places of num_syms and names before a token table from which at
// least the first names can be read, going back from it.
func (s *search) starts(t tokenPlace) func(yield func(num, names mem.PA) bool) {
	return func(yield func(num, names mem.PA) bool) {
		w := window{s: s, end: t.table}
		for back := mem.PA(4 + minSyms); back <= maxNames && back <= t.table; {
			num := (t.table - back) &^ 3
			if !w.cover(num) {
				return
			}
			b := w.from(num)
			n := uint64(binary.LittleEndian.Uint32(b))
			// A record has 2 bytes at the least; a name with its marker,
			// its place in seqs and its share of the longest names 64.
			if minSyms <= n && n <= maxSyms && 2*n <= uint64(back) && uint64(back) <= 64*n {
				for _, al := range []mem.PA{4, 8} {
					if uint64(num)%uint64(al) == 0 && s.startsNames(t.tok, b[al:]) && !yield(num, num+al) {
						return
					}
				}
			}
			if s.records > maxRecords {
				return
			}
			back += 4
		}
	}
}

// startsNames reports whether b begins with records of plausible names.
func (s *search) startsNames(tok *tokens, b []byte) bool {
	var buf nameBuf
	off := 0
	for range probe {
		s.records++
		rec, next := record(b, off)
		if next < 0 {
			return false
		}
		name := tok.expand(&buf, rec)
		if len(name) < 2 || !plausible(name[0], name[1:]) {
			return false
		}
		off = next
	}
	return true
}

// window is memory that ends at a token table and grows downwards.
type window struct {
	s     *search
	end   mem.PA
	start mem.PA // of buf; end: nothing read yet
	buf   []byte
	full  bool // it cannot grow further
}

// cover makes the window include pa.
func (w *window) cover(pa mem.PA) bool {
	if w.buf == nil {
		w.start = w.end
	}
	for w.start > pa {
		if w.full {
			return false
		}
		n := min(max(uint64(len(w.buf)), 4<<20), maxNames-uint64(len(w.buf)), uint64(w.start))
		if n == 0 {
			return false
		}
		buf := make([]byte, n+uint64(len(w.buf)))
		copy(buf[n:], w.buf)
		got := w.below(buf[:n])
		w.full = got < n
		w.buf, w.start = buf[n-got:], w.start-mem.PA(got)
	}
	return true
}

// below fills the end of p from the memory that ends at w.start and returns how
// many bytes, down to the first page that cannot be read.
func (w *window) below(p []byte) uint64 {
	n := uint64(len(p))
	if w.s.read(p, uint64(w.start)-n) == nil {
		return n
	}
	got := uint64(0)
	for got < n {
		// Up to a page at a time, on its boundary.
		end := uint64(w.start) - got
		m := min((end-1)%mem.PageSize+1, n-got)
		if w.s.read(p[n-got-m:n-got], end-m) != nil {
			break
		}
		got += m
	}
	return got
}

func (w *window) from(pa mem.PA) []byte { return w.buf[pa-w.start:] }

// anyLayout tries where the layouts have the offsets and relative_base: those
// with a base first, because a sorted plain table reads as sorted also when
// taken for a place-relative one.
func (b *builder) anyLayout() (*Table, error) {
	size := 4 * uint64(b.names.n)
	num, behind := uint64(b.p.NumSyms), uint64(b.p.TokenIndex)+indexSize
	var errs []error
	try := func(offsets, base uint64, w word) *Table {
		p := b.p
		p.Offsets, p.RelativeBase = mem.VA(offsets), mem.VA(base)
		t, err := b.table(p, w, true)
		if err != nil {
			errs = append(errs, err)
		}
		return t
	}
	for _, w := range wordSizes {
		if d := w.size + align(size, w.size); num > d && num%w.size == 0 {
			if t := try(num-d, num-w.size, w); t != nil {
				return t, nil
			}
		}
		for _, al := range []uint64{4, 8} {
			offsets := align(behind, al)
			if t := try(offsets, align(offsets+size, w.size), w); t != nil {
				return t, nil
			}
		}
	}
	for _, al := range []uint64{4, 8} {
		if t := try(align(behind, al), 0, wordSizes[0]); t != nil {
			if t.Arch() == "" {
				t.word.size = 4
			}
			return t, nil
		}
	}
	return nil, fmt.Errorf("kallsyms at %#x fits no layout: %w", num, errors.Join(errs...))
}
