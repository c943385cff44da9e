package x86

import (
	"encoding/binary"
	"iter"

	"vmscope/arch"
	"vmscope/mem"
)

// Mappings lists what is mapped from first to last; see arch.Paging.
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
		if p.mode == None {
			yield(arch.Region{}, absent(first, 0, 0, errPaging))
			return
		}
		l := lister{p: p, first: first, last: last, runs: arch.Runs{Yield: yield}, budget: tables}
		list := l.table
		if p.mode == Bits32 {
			list = l.table32
		}
		if list(p.root, uint64(p.root), p.top, 0, ^uint64(0), 0) {
			l.runs.Flush()
		}
	}
}

// lister is one run of Mappings.
type lister struct {
	p           *Paging
	first, last mem.VA
	runs        arch.Runs
	budget      *int
	buf         [6][mem.PageSize]byte // the tables on the way down, by level
}

// spend takes a table off those that may be read.
func (l *lister) spend(entry uint64, level uint8, va mem.VA) bool {
	if *l.budget--; *l.budget < 0 {
		l.runs.Fail(arch.Region{VA: va}, absent(va, level, entry, arch.ErrTables))
		return false
	}
	return true
}

// table lists the table of the given level whose first entry translates va, and
// to which entry led; all and any are the bits on the way down. It reports
// whether to go on.
func (l *lister) table(pa mem.PA, entry uint64, level uint8, va mem.VA, all, any uint64) bool {
	shift := 3 + 9*uint(level)
	if !l.spend(entry, level, va) {
		return false
	}
	buf := l.buf[level][:]
	if level == 3 && l.p.mode == PAE {
		buf = buf[:4*8]
	}
	if _, err := l.p.phys.ReadPhys(buf, pa); err != nil {
		return l.runs.Fail(arch.Region{VA: va, Size: uint64(len(buf)) / 8 << shift}, unreadable(va, level, entry, err))
	}
	for i := range mem.VA(len(buf) / 8) {
		at := va | i<<shift
		if level == l.p.top && l.p.unused > 0 {
			at = mem.VA(int64(at) << l.p.unused >> l.p.unused) // canonical
		}
		if at+1<<shift-1 < l.first {
			continue
		}
		if at > l.last {
			// The upper half of the address space follows in the same root.
			return true
		}
		e := binary.LittleEndian.Uint64(buf[i*8:])
		if e&present == 0 {
			continue
		}
		switch a, n := all&e, any|e; {
		case level == 3 && l.p.mode == PAE: // no permissions, never a page
			if !l.table(table(e), e, 2, at, all, any) {
				return false
			}
		case level > 1 && e&large == 0:
			if !l.table(table(e), e, level-1, at, a, n) {
				return false
			}
		case level > 3: // reserved: maps nothing
		default:
			m := leaf(at, e, a, n, level)
			if !l.runs.Add(arch.Region{VA: at, PA: m.PA, Size: m.Size, Page: m.Size, Perm: m.Perm}) {
				return false
			}
		}
	}
	return true
}
