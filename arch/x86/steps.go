package x86

import (
	"vmscope/arch"
	"vmscope/mem"
)

// Steps are the entries that Translate goes by for va; see arch.Paging.
func (p *Paging) Steps(va mem.VA) ([]arch.Step, error) {
	switch {
	case p.mode == None:
		return nil, absent(va, 0, 0, errPaging)
	case !p.mode.Canonical(va):
		return nil, absent(va, 0, 0, errCanonical)
	}
	var out []arch.Step
	entry := uint64(p.root)
	for level := p.top; ; level-- {
		at, e, err := p.entry(va, entry, level)
		if err != nil {
			return out, unreadable(va, level, entry, err)
		}
		s := arch.Step{Level: level, At: at, Entry: e, Present: e&present != 0}
		pointer := p.mode == PAE && level == 3 // without permissions
		switch {
		case !s.Present:
		case pointer:
			s.Perm = mem.Exec | mem.Write | mem.User
		case p.mode == Bits32:
			s.Perm = perm(e, 0)
		default:
			s.Perm = perm(e, e)
		}
		out = append(out, s)
		switch {
		case !s.Present:
			return out, absent(va, level, e, mem.ErrNotMapped)
		case level == 1 || e&large != 0 && level <= 3 && !pointer:
			return out, nil
		case e&large != 0 && !pointer:
			return out, absent(va, level, e, errReserved)
		}
		entry = e
	}
}

// entry loads the entry of va in the table of a level, to which an entry led.
func (p *Paging) entry(va mem.VA, led uint64, level uint8) (at mem.PA, e uint64, err error) {
	switch {
	case p.mode == Bits32:
		return p.load32(mem.PA(led&0xfffff000), va, level)
	case level == p.top: // the root of PAE is no page
		at = p.root + index(va, 3+9*uint(level))
	default:
		at = table(led) + index(va, 3+9*uint(level))
	}
	e, err = p.load(at)
	return at, e, err
}
