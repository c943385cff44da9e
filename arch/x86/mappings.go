package x86

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"vmscope/mem"
)

// Region is a run of virtual addresses that maps to a run of physical ones with
// the same permissions.
type Region struct {
	VA   mem.VA
	PA   mem.PA
	Size uint64 // bytes
	Page uint64 // size of the pages, bytes
	Perm mem.Perm
}

// MaxTables is how many page tables one call of Mappings reads: enough for 512
// GiB of 4 KiB pages. Tables that refer to each other can span any range with
// nothing; real ones do as well (KASAN maps terabytes to one zero page), so ask
// for the range that matters.
const MaxTables = 1 << 18

var errTables = fmt.Errorf("%w: more page tables than are read", mem.ErrInconsistent)

// Mappings lists what is mapped from first to last, both included, in the order
// of addresses; neighbours that continue each other are one Region, and a large
// page at either end is not cut. A table that cannot be read is an error beside
// the Region (without PA) that it stands for; the listing goes on behind it.
// After an error of class mem.ErrInconsistent, too many tables, it ends.
//
// It reads each table once, whole, so that it costs one read a table; a live
// guest changes between them. 32-bit tables are errors.ErrUnsupported.
func (p *Paging) Mappings(first, last mem.VA) iter.Seq2[Region, error] {
	return func(yield func(Region, error) bool) {
		tables := MaxTables
		p.MappingsWithin(&tables, first, last)(yield)
	}
}

// MappingsWithin is Mappings with a number of page tables to read at most, from
// which those that are read are taken off: for many ranges together.
func (p *Paging) MappingsWithin(tables *int, first, last mem.VA) iter.Seq2[Region, error] {
	return func(yield func(Region, error) bool) {
		if p.mode < PAE {
			yield(Region{}, fmt.Errorf("list mappings of %v paging: %w", p.mode, errors.ErrUnsupported))
			return
		}
		l := lister{p: p, first: first, last: last, yield: yield, budget: tables}
		if l.table(p.root, uint64(p.root), p.top, 0, ^uint64(0), 0) {
			l.flush()
		}
	}
}

// lister is one run of Mappings.
type lister struct {
	p           *Paging
	first, last mem.VA
	yield       func(Region, error) bool
	run         Region // not yet given; Size 0: none
	budget      *int
	buf         [6][mem.PageSize]byte // the tables on the way down, by level
}

// table lists the table of the given level whose first entry translates va, and
// to which entry led; all and any are the bits on the way down. It reports
// whether to go on.
func (l *lister) table(pa mem.PA, entry uint64, level uint8, va mem.VA, all, any uint64) bool {
	shift := 3 + 9*uint(level)
	if *l.budget--; *l.budget < 0 {
		l.fail(Region{VA: va}, &mem.FaultError{Op: "translate", Addr: uint64(va), Level: int(level), Entry: entry, Err: errTables})
		return false
	}
	buf := l.buf[level][:]
	if level == 3 && l.p.mode == PAE {
		buf = buf[:4*8]
	}
	if _, err := l.p.phys.ReadPhys(buf, pa); err != nil {
		return l.fail(Region{VA: va, Size: uint64(len(buf)) / 8 << shift}, unreadable(va, level, entry, err))
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
			if !l.add(Region{VA: at, PA: m.PA, Size: m.Size, Page: m.Size, Perm: m.Perm}) {
				return false
			}
		}
	}
	return true
}

// add joins r to the run before it, or gives that run out.
func (l *lister) add(r Region) bool {
	q := &l.run
	if q.Size > 0 && q.VA+mem.VA(q.Size) == r.VA && q.PA+mem.PA(q.Size) == r.PA && q.Perm == r.Perm && q.Page == r.Page {
		q.Size += r.Size
		return true
	}
	ok := l.flush()
	l.run = r
	return ok
}

func (l *lister) flush() bool {
	r := l.run
	l.run = Region{}
	return r.Size == 0 || l.yield(r, nil)
}

func (l *lister) fail(r Region, err error) bool { return l.flush() && l.yield(r, err) }
