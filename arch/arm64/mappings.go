package arm64

import (
	"encoding/binary"
	"iter"

	"vmscope/arch"
	"vmscope/mem"
)

// Mappings lists what is mapped from first to last, by addresses whose top byte
// is as it is without tags; see arch.Paging.
func (p *Paging) Mappings(first, last mem.VA) iter.Seq2[arch.Region, error] {
	return func(yield func(arch.Region, error) bool) {
		tables := arch.MaxTables
		p.MappingsWithin(&tables, first, last)(yield)
	}
}

// MappingsWithin is Mappings with a number of page tables to read at most, from
// which those that are read are taken off: for many ranges together.
func (p *Paging) MappingsWithin(tables *int, first, last mem.VA) iter.Seq2[arch.Region, error] {
	return func(yield func(arch.Region, error) bool) {
		l := lister{p: p, first: first, last: last, runs: arch.Runs{Yield: yield}, budget: tables}
		for i := range p.sides {
			s := &p.sides[i]
			if s.top == 0 {
				continue
			}
			start := mem.VA(0)
			if i == 1 {
				start = ^mem.VA(0) << s.Bits
			}
			if start > last || start+1<<s.Bits-1 < first {
				continue
			}
			if !l.table(s, s.root, uint64(s.root), s.top, start, 0) {
				return
			}
		}
		l.runs.Flush()
	}
}

// lister is one run of Mappings.
type lister struct {
	p           *Paging
	first, last mem.VA
	runs        arch.Runs
	budget      *int
	buf         [6][]byte // the tables on the way down, by level
}

// table lists the table of the given level whose first descriptor translates va,
// and to which led led; above are the bits of tables on the way down, any of
// them. It reports whether to go on.
func (l *lister) table(s *side, pa mem.PA, led uint64, level uint8, va mem.VA, above uint64) bool {
	if *l.budget--; *l.budget < 0 {
		l.runs.Fail(arch.Region{VA: va}, absent(va, level, led, arch.ErrTables))
		return false
	}
	size := 8 * s.entries(level)
	if uint64(len(l.buf[level])) < size {
		l.buf[level] = make([]byte, size)
	}
	buf, shift := l.buf[level][:size], s.shift(level)
	if _, err := l.p.phys.ReadPhys(buf, pa); err != nil {
		return l.runs.Fail(arch.Region{VA: va, Size: size / 8 << shift}, unreadable(va, level, led, err))
	}
	for i := range mem.VA(size / 8) {
		at := va + i<<shift
		if at+1<<shift-1 < l.first {
			continue
		}
		if at > l.last {
			return true
		}
		d := binary.LittleEndian.Uint64(buf[i*8:])
		switch s.kind(d, level) {
		case isTable:
			if !l.table(s, s.address(d), d, level-1, at, above|d) {
				return false
			}
		case isPage:
			m := s.leaf(at, d, above, level)
			if !l.runs.Add(arch.Region{VA: at, PA: m.PA, Size: m.Size, Page: m.Size, Perm: m.Perm}) {
				return false
			}
		}
	}
	return true
}

// Steps are the descriptors that Translate goes by for va; see arch.Paging.
func (p *Paging) Steps(va mem.VA) ([]arch.Step, error) {
	s, err := p.sideOf(va)
	if err != nil {
		return nil, err
	}
	var out []arch.Step
	table, led := s.root, uint64(s.root)
	for level := s.top; ; level-- {
		at := table + s.index(va, level)
		d, err := p.load(at)
		if err != nil {
			return out, unreadable(va, level, led, err)
		}
		step := arch.Step{Level: level, At: at, Entry: d, Present: d&valid != 0}
		k := s.kind(d, level)
		switch k {
		case isTable:
			step.Perm = s.tablePerm(d)
		case isPage:
			step.Perm = s.perm(d, 0)
		}
		out = append(out, step)
		switch k {
		case isPage:
			return out, nil
		case isAbsent:
			return out, absent(va, level, d, mem.ErrNotMapped)
		case isReserved:
			return out, absent(va, level, d, errReserved)
		}
		table, led = s.address(d), d
	}
}
