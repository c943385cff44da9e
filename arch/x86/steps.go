package x86

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// Step is one entry on the way from a page-table root to a page.
type Step struct {
	Level   uint8  // of the table; 1 is the lowest
	At      mem.PA // where the entry stands
	Entry   uint64
	Present bool
	Perm    mem.Perm // what this entry alone permits, if it is present
}

// Steps are the entries that Translate goes by for va, the root's first, for
// people to look at. An entry that is not present is the last one, and beside
// the error of Translate's kind. Tables of 32-bit paging are
// errors.ErrUnsupported.
func (p *Paging) Steps(va mem.VA) ([]Step, error) {
	switch {
	case p.mode != Level4 && p.mode != Level5:
		return nil, fmt.Errorf("steps of %v paging: %w", p.mode, errors.ErrUnsupported)
	case !p.mode.Canonical(va):
		return nil, absent(va, 0, 0, errCanonical)
	}
	var out []Step
	pa, entry := p.root, uint64(p.root)
	for level, shift := p.top, 3+9*uint(p.top); ; level, shift = level-1, shift-9 {
		s := Step{Level: level, At: pa + index(va, shift)}
		var err error
		if s.Entry, err = p.load(s.At); err != nil {
			return out, unreadable(va, level, entry, err)
		}
		if s.Present = s.Entry&present != 0; s.Present {
			s.Perm = perm(s.Entry, s.Entry)
		}
		out = append(out, s)
		switch {
		case !s.Present:
			return out, absent(va, level, s.Entry, mem.ErrNotMapped)
		case level == 1 || level <= 3 && s.Entry&large != 0:
			return out, nil
		case s.Entry&large != 0:
			return out, absent(va, level, s.Entry, errReserved)
		}
		pa, entry = table(s.Entry), s.Entry
	}
}
