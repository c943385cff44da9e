package x86

import (
	"fmt"

	"vmscope/mem"
)

// Bits of an entry, SDM tables 4-15 to 4-20.
const (
	present = 1 << 0
	write   = 1 << 1
	user    = 1 << 2
	large   = 1 << 7 // PS: the entry maps a page, not a table
	noExec  = 1 << 63
)

var (
	errCanonical = fmt.Errorf("%w: not a canonical address", mem.ErrNotMapped)
	errPaging    = fmt.Errorf("%w: paging is off", mem.ErrNotMapped)
	// The processor faults on an entry with PS where no page of that size exists.
	errReserved = fmt.Errorf("%w: reserved bit PS", mem.ErrNotMapped)
)

// Paging is an address space as a page-table root spans it. It keeps nothing of
// the guest: each Translate walks the tables as they are at that moment.
//
// It is an arch.Paging.
type Paging struct {
	win    *mem.Window // of ram
	ram    *mem.RAM    // of phys, for the fast path; empty where it does not apply
	root   mem.PA
	shift  uint64 // of the index into the root
	unused uint64 // high bits of an address that repeat the one below them
	phys   mem.PhysReader
	top    uint8 // level of the root
	mode   Mode
}

// NewPaging spans the address space of the given root in phys. The bits of CR3
// that are not address (PCID, flags) may be left in root.
func NewPaging(phys mem.PhysReader, root mem.PA, mode Mode) *Paging {
	if int(mode) >= len(shapes) {
		mode = None
	}
	s := &shapes[mode]
	p := &Paging{phys: phys, root: root & s.root, mode: mode, top: s.levels, ram: new(mem.RAM), win: (*mem.RAM)(nil).Window()}
	if mode == Level4 || mode == Level5 {
		p.shift, p.unused = 3+9*uint64(s.levels), 64-uint64(s.width)
		if ram := mem.RAMOf(phys); ram != nil {
			p.ram, p.win = ram, ram.Window()
		}
	}
	return p
}

// Root is the physical address of the topmost table.
func (p *Paging) Root() mem.PA { return p.root }

// Mode is the paging mode.
func (p *Paging) Mode() Mode { return p.mode }

// PointerSize is that of kernels in the mode.
func (p *Paging) PointerSize() int { return p.mode.PointerSize() }

// Translate walks the tables for va. An entry that is not present is a
// *mem.FaultError with its level and itself; a table that cannot be read is one
// with the table's level and the entry that led there (CR3 for the root).
// Both are of class mem.ErrNotMapped or the class of the failed read, mostly
// mem.ErrNoRAM.
//
// Reserved bits other than PS are ignored: they move no address.
func (p *Paging) Translate(va mem.VA) (mem.Mapping, error) {
	if int64(va)<<(p.unused&63)>>(p.unused&63) != int64(va) {
		return p.slow(va)
	}
	// Presence is asked for once, of all entries together: a walk on from an
	// absent entry reads words that do not matter. The same holds for a table
	// that the window does not give, which reads as zeros.
	w, e := p.win, uint64(p.root)
	all, any := ^uint64(0), uint64(0)
	if p.top == 5 {
		i := w.Index(table(e) + index(va, 48))
		if !w.Has(i) {
			return p.slow(va)
		}
		e = w.Load(i)
		all, any = e, e
	}
	i := w.Index(table(e) + index(va, 39))
	if !w.Has(i) {
		return p.slow(va)
	}
	e = w.Load(i)
	if all, any = all&e, any|e; any&large != 0 {
		return p.slow(va)
	}
	i = w.Index(table(e) + index(va, 30))
	if !w.Has(i) {
		return p.slow(va)
	}
	e = w.Load(i)
	if all, any = all&e, any|e; e&large != 0 {
		if all&present == 0 {
			return p.slow(va)
		}
		return leaf(va, e, all, any, 3), nil
	}
	i = w.Index(table(e) + index(va, 21))
	if !w.Has(i) {
		return p.slow(va)
	}
	e = w.Load(i)
	if all, any = all&e, any|e; e&large != 0 {
		if all&present == 0 {
			return p.slow(va)
		}
		return leaf(va, e, all, any, 2), nil
	}
	i = w.Index(table(e) + index(va, 12))
	if !w.Has(i) {
		return p.slow(va)
	}
	e = w.Load(i)
	if all, any = all&e, any|e; all&present == 0 {
		return p.slow(va)
	}
	return leaf(va, e, all, any, 1), nil
}

func table(e uint64) mem.PA { return mem.PA(e & physMask) }

// index is the offset of va's entry in the table whose index starts at bit
// shift of the address.
func index(va mem.VA, shift uint) mem.PA { return mem.PA(va >> (shift & 63) & 511 << 3) }

// leaf is the mapping of va by entry e of the given level.
func leaf(va mem.VA, e, all, any uint64, level uint8) mem.Mapping {
	in := uint64(1)<<((3+9*level)&63) - 1
	return mem.Mapping{
		PA:    mem.PA(e&physMask&^in | uint64(va)&in),
		Size:  in + 1,
		Entry: e,
		Leaf:  mem.Leaf{Level: level, Perm: perm(all, any)},
	}
}

// slow is Translate for every case that its fast path gives up on: memory that
// is not mapped into this process, the modes of 32 bits, and all errors.
func (p *Paging) slow(va mem.VA) (mem.Mapping, error) {
	switch {
	case p.mode == None:
		return mem.Mapping{}, absent(va, 0, 0, errPaging)
	case !p.mode.Canonical(va):
		return mem.Mapping{}, absent(va, 0, 0, errCanonical)
	case p.mode == Bits32:
		return p.translate32(va)
	case p.mode == PAE:
		return p.translatePAE(va)
	}
	return p.walk(va, p.root, uint64(p.root), p.top)
}

// walk goes down from a table of 8-byte entries at the given level, to which
// entry led.
func (p *Paging) walk(va mem.VA, table mem.PA, entry uint64, level uint8) (mem.Mapping, error) {
	all, any := ^uint64(0), uint64(0)
	for shift := 3 + 9*uint(level); ; level, shift = level-1, shift-9 {
		e, err := p.load(table + index(va, shift))
		if err != nil {
			return mem.Mapping{}, unreadable(va, level, entry, err)
		}
		if e&present == 0 {
			return mem.Mapping{}, absent(va, level, e, mem.ErrNotMapped)
		}
		all, any = all&e, any|e
		if level == 1 || e&large != 0 {
			if level > 3 {
				return mem.Mapping{}, absent(va, level, e, errReserved)
			}
			return leaf(va, e, all, any, level), nil
		}
		table, entry = mem.PA(e&physMask), e
	}
}

// perm combines the permissions of a walk: write and user need the bit at every
// level, execution its absence at every level (SDM 4.6). Two of the bits are
// those of mem.Perm.
func perm(all, any uint64) mem.Perm {
	const same = uint64(mem.Write | mem.User) // == write|user
	return mem.Perm(all&same | ^any>>63*uint64(mem.Exec))
}

// Both lines fail to compile if the bits differ.
const (
	_ = uint(write|user) - uint(mem.Write|mem.User)
	_ = uint(mem.Write|mem.User) - uint(write|user)
)

// load reads an entry on the slow path.
func (p *Paging) load(at mem.PA) (uint64, error) {
	if e, ok := p.ram.Word(at); ok {
		return e, nil
	}
	return mem.Load64(p.phys, at)
}

// absent and unreadable build the errors out of line of the walk.
//
//go:noinline
func absent(va mem.VA, level uint8, entry uint64, err error) error {
	return &mem.FaultError{Op: "translate", Addr: uint64(va), Level: int(level), Entry: entry, Err: err}
}

//go:noinline
func unreadable(va mem.VA, level uint8, entry uint64, err error) error {
	return absent(va, level, entry, fmt.Errorf("page table: %w", err))
}
