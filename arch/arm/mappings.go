package arm

import (
	"encoding/binary"
	"iter"

	"vmscope/arch"
	"vmscope/mem"
)

// Mappings lists what is mapped from first to last; see arch.Paging. A page that
// stands in 16 descriptors is cut to those of them that translate addresses from
// first to last.
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
		l := lister{p: p, runs: arch.Runs{Yield: yield}, budget: tables}
		for i := range p.regions {
			r := &p.regions[i]
			l.first, l.last = max(first, r.first), min(last, r.last)
			if l.first <= l.last && !l.table(r, r.root, uint64(r.root), r.top, r.base, 0) {
				return
			}
		}
		l.runs.Flush()
	}
}

// lister is one run of Mappings.
type lister struct {
	p           *Paging
	first, last mem.VA // in the region
	runs        arch.Runs
	budget      *int
	buf         [4][]byte // the tables on the way down, by level
}

// table lists the table of the given level whose first descriptor translates va,
// and to which led led; above are the bits of tables on the way down, any of
// them. It reports whether to go on.
func (l *lister) table(r *region, pa mem.PA, led uint64, level uint8, va mem.VA, above uint64) bool {
	if *l.budget--; *l.budget < 0 {
		l.runs.Fail(arch.Region{VA: va}, absent(va, level, led, arch.ErrTables))
		return false
	}
	m, n := l.p.mode, l.p.mode.entries(r, level)
	if uint64(len(l.buf[level])) < n*m.entrySize() {
		l.buf[level] = make([]byte, n*m.entrySize())
	}
	buf, reach := l.buf[level][:n*m.entrySize()], mem.VA(1)<<m.shift(level)
	if _, err := l.p.phys.ReadPhys(buf, pa); err != nil {
		from := max(va, r.first)
		end := min(va+mem.VA(n)*reach-1, r.last)
		return l.runs.Fail(arch.Region{VA: from, Size: uint64(end-from) + 1}, unreadable(from, level, led, err))
	}
	for i := range mem.VA(n) {
		at := va + i*reach
		if at+reach-1 < l.first {
			continue
		}
		if at > l.last {
			return true
		}
		var d uint64
		if m.Long {
			d = binary.LittleEndian.Uint64(buf[i*8:])
		} else {
			d = uint64(binary.LittleEndian.Uint32(buf[i*4:]))
		}
		switch m.kind(d, level) {
		case isTable:
			if !l.table(r, m.table(d), d, level-1, at, above|d) {
				return false
			}
		case isPage:
			if !l.page(r, d, above, level, max(at, r.first), min(at+reach-1, r.last)) {
				return false
			}
		}
	}
	return true
}

// page lists what of the region, from at to end, a descriptor maps: in one piece,
// or in several if the region ends within it.
func (l *lister) page(r *region, d, above uint64, level uint8, at, end mem.VA) bool {
	for at <= end {
		m := l.p.leaf(r, at, d, above, level)
		size := min(m.Left(), uint64(end-at)+1)
		if !l.runs.Add(arch.Region{VA: at, PA: m.PA, Size: size, Page: m.Size, Perm: m.Perm}) {
			return false
		}
		at += mem.VA(size)
	}
	return true
}

// Steps are the descriptors that Translate goes by for va; see arch.Paging.
func (p *Paging) Steps(va mem.VA) ([]arch.Step, error) {
	r, err := p.regionOf(va)
	if err != nil {
		return nil, err
	}
	var out []arch.Step
	table, led := r.root, uint64(r.root)
	for level := r.top; ; level-- {
		at, d, err := p.entry(r, table, va, level)
		if err != nil {
			return out, unreadable(va, level, led, err)
		}
		k := p.mode.kind(d, level)
		step := arch.Step{Level: level, At: at, Entry: d, Present: k != isAbsent}
		switch k {
		case isTable:
			step.Perm = p.mode.tablePerm(d)
		case isPage:
			step.Perm = p.mode.perm(d, 0, level)
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
		table, led = p.mode.table(d), d
	}
}
