package dump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"vmscope/mem"
)

// maxSiblings bounds the files of a directory that are looked at.
const maxSiblings = 4096

// split is a dump that makedumpfile --split wrote in pieces: each has the headers
// and bitmaps of all, and the pages of some frames.
type split struct {
	*kdump          // one of pieces
	pieces []*kdump // sorted, apart
}

// join finds the other pieces of k among the files beside it, by their headers.
// Pieces that are missing are no error: their pages are.
func (k *kdump) join(truncated bool) (*split, error) {
	s := &split{kdump: k, pieces: []*kdump{k}}
	dir := filepath.Dir(k.src.Name())
	d, err := os.Open(dir)
	if err != nil {
		return s, nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(maxSiblings)
	slices.Sort(names)
	for _, name := range names {
		p, err := k.sibling(filepath.Join(dir, name), truncated)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%q, another piece of the split dump: %w", name, err), s.close())
		}
		if p == nil {
			continue
		}
		if slices.ContainsFunc(s.pieces, func(o *kdump) bool { return p.first < o.end && o.first < p.end }) { // a copy, or k itself
			if err := p.src.Close(); err != nil {
				return nil, errors.Join(err, s.close())
			}
			continue
		}
		s.pieces = append(s.pieces, p)
	}
	slices.SortFunc(s.pieces, func(a, b *kdump) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return s, nil
}

// close closes the pieces that join opened.
func (s *split) close() error {
	var err error
	for _, p := range s.pieces {
		if p != s.kdump {
			err = errors.Join(err, p.src.Close())
		}
	}
	return err
}

// sibling opens a file that is another piece of k; nil: it is none.
func (k *kdump) sibling(path string, truncated bool) (*kdump, error) {
	if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
		return nil, nil
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, nil
	}
	src, err := plain(f)
	if err != nil {
		return nil, nil
	}
	p, err := k.piece(src, truncated)
	if p == nil {
		err = errors.Join(err, src.Close())
	}
	return p, err
}

// piece reads src if its headers are those of a piece of k.
func (k *kdump) piece(src source, truncated bool) (*kdump, error) {
	var mine, its [kdHeader]byte
	if readFull(k.src, mine[:], 0) != nil || readFull(src, its[:], 0) != nil || mine != its {
		return nil, nil
	}
	p, err := parseKdump(src, truncated)
	if err != nil {
		return nil, err
	}
	if !p.split || p.end-p.first == 0 || !slices.Equal(p.ram.words, k.ram.words) || !slices.Equal(p.dumped.words, k.dumped.words) {
		return nil, nil
	}
	p.ram, p.dumped = k.ram, k.dumped // one copy is enough
	return p, nil
}

func (s *split) find(pa mem.PA) (unit, error) {
	n := uint64(pa) / s.page
	for _, p := range s.pieces {
		if n >= p.first && n < p.end {
			return p.find(pa)
		}
	}
	return s.kdump.find(pa)
}

func (s *split) extents() ([]mem.Range, error) {
	var out []mem.Range
	for _, p := range s.pieces {
		x, err := p.extents()
		if err != nil {
			return nil, err
		}
		for _, r := range x {
			out = addExtent(out, r, maxExtents)
		}
	}
	return out, nil
}

// missing tells which pieces are not there.
func (s *split) missing() string {
	out, at := fmt.Sprintf("; %d pieces of a split dump", len(s.pieces)), uint64(0)
	for i := 0; i <= len(s.pieces); i++ {
		first, end := s.ram.bits, s.ram.bits
		if i < len(s.pieces) {
			first, end = s.pieces[i].first, s.pieces[i].end
		}
		if first > at && s.dumped.below(first) > s.dumped.below(at) {
			out += fmt.Sprintf("; without the piece of %#x to %#x", at*s.page, first*s.page)
		}
		at = end
	}
	return out
}
