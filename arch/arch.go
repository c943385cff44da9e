// Package arch is what the page tables of all architectures have in common: the
// packages below it walk those of one each.
package arch

import (
	"fmt"
	"iter"

	"vmscope/mem"
)

// Mode is a way in which the processors of an architecture translate addresses,
// as a kernel chose it. Modes are comparable: equal ones translate alike.
type Mode interface {
	// String names the mode for people.
	fmt.Stringer
	// Kernel spans the kernel's address space, given the root of its own tables.
	Kernel(phys mem.PhysReader, root mem.PA) Paging
	// Process spans the address space in which a process runs: its own half by
	// the root user, and the kernel's, where that has another root.
	Process(phys mem.PhysReader, user, kernel mem.PA) Paging
	// PageSize is that of the smallest page, bytes: the size of a page frame.
	PageSize() uint64
	// PointerSize is how many bytes a kernel stores an address in, and an unsigned
	// long: 4 or 8.
	PointerSize() int
	// RootSize is the size of the topmost table, bytes, a power of two. It lies at
	// a multiple of that.
	RootSize() uint64
}

// Paging is an address space as page tables span it. It keeps nothing of the
// guest: each call walks the tables as they are at that moment.
//
// It is safe for concurrent use. Where the memory is mapped into this process,
// calls must run inside mem.Guard.
type Paging interface {
	// Root is the physical address of the topmost table: of the half of the
	// process, where the halves have one each and it is a process's address space.
	Root() mem.PA
	// Translate walks the tables for an address. An entry that is not present is a
	// *mem.FaultError with its level and itself; a table that cannot be read is one
	// with the table's level and the entry that led there (the root's address for it).
	mem.Translator
	// Mappings lists what is mapped from first to last, both included, in the order
	// of addresses; neighbours that continue each other are one Region, and a large
	// page at either end is not cut. A table that cannot be read is an error beside
	// the Region (without PA) that it stands for; the listing goes on behind it.
	// After an error of class mem.ErrInconsistent, too many tables, it ends.
	//
	// It reads each table once, whole, so that it costs one read a table; a live
	// guest changes between them.
	Mappings(first, last mem.VA) iter.Seq2[Region, error]
	// MappingsWithin is Mappings with a number of page tables to read at most, from
	// which those that are read are taken off: for many ranges together.
	MappingsWithin(tables *int, first, last mem.VA) iter.Seq2[Region, error]
	// Steps are the entries that Translate goes by for va, the root's first, for
	// people to look at. An entry that is not present is the last one, and beside
	// the error of Translate's kind.
	Steps(va mem.VA) ([]Step, error)
}

// Region is a run of virtual addresses that maps to a run of physical ones with
// the same permissions.
type Region struct {
	VA   mem.VA
	PA   mem.PA
	Size uint64 // bytes
	Page uint64 // size of the pages, bytes
	Perm mem.Perm
}

// Step is one entry on the way from a page-table root to a page.
type Step struct {
	Level   uint8  // of the table; 1 is the lowest
	At      mem.PA // where the entry stands
	Entry   uint64
	Present bool
	Perm    mem.Perm // what this entry alone permits, if it is present
}

// MaxTables is how many page tables one call of Mappings reads: enough for 512
// GiB of 4 KiB pages. Tables that refer to each other can span any range with
// nothing; real ones do as well (KASAN maps terabytes to one zero page), so ask
// for the range that matters.
const MaxTables = 1 << 18

// ErrTables ends a listing of page tables that does not end by itself.
var ErrTables = fmt.Errorf("%w: more page tables than are read", mem.ErrInconsistent)

// Runs joins the pages of a listing into regions, which it gives to Yield. Its
// methods report whether to go on.
type Runs struct {
	Yield func(Region, error) bool
	run   Region // not yet given; Size 0: none
}

// Add joins r to the run before it, or gives that run out.
func (l *Runs) Add(r Region) bool {
	q := &l.run
	if q.Size > 0 && q.VA+mem.VA(q.Size) == r.VA && q.PA+mem.PA(q.Size) == r.PA && q.Perm == r.Perm && q.Page == r.Page {
		q.Size += r.Size
		return true
	}
	ok := l.Flush()
	l.run = r
	return ok
}

// Flush gives out the last run.
func (l *Runs) Flush() bool {
	r := l.run
	l.run = Region{}
	return r.Size == 0 || l.Yield(r, nil)
}

// Fail gives out the last run, then an error.
func (l *Runs) Fail(r Region, err error) bool { return l.Flush() && l.Yield(r, err) }
