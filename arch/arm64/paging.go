package arm64

import (
	"fmt"

	"vmscope/mem"
)

// Bits of a descriptor, D8.3.
const (
	valid    = 1 << 0
	notBlock = 1 << 1 // a table, and at the lowest level a page
	el0      = 1 << 6 // AP[1]: EL0 has access
	readOnly = 1 << 7 // AP[2]
	dbm      = 1 << 51
	pxn      = 1 << 53
	uxn      = 1 << 54

	// Of a table: what it takes away from all below it, D8.4.
	tablePXN      = 1 << 59
	tableUXN      = 1 << 60
	tableNoEL0    = 1 << 61 // APTable[0]
	tableReadOnly = 1 << 62 // APTable[1]
)

var (
	errCanonical = fmt.Errorf("%w: beyond what the tables translate", mem.ErrNotMapped)
	errDisabled  = fmt.Errorf("%w: this half is not translated", mem.ErrNotMapped)
	// The processor faults where no block of that size exists, and on a lowest
	// descriptor that is no page.
	errReserved = fmt.Errorf("%w: reserved descriptor", mem.ErrNotMapped)
)

// Paging is an address space as two page-table roots span it. It is an
// arch.Paging.
type Paging struct {
	phys  mem.PhysReader
	ram   *mem.RAM // of phys, empty if that is not mapped
	sides [2]side  // low, high
}

// side is a half with its tables.
type side struct {
	Half
	root mem.PA
	top  uint8 // level of the root; 0: the half is not translated
}

// NewPaging spans the address space of the given roots in phys.
func NewPaging(phys mem.PhysReader, m Mode, low, high mem.PA) *Paging {
	p := &Paging{phys: phys, ram: mem.RAMOf(phys), sides: [2]side{{Half: m.Low, root: low}, {Half: m.High, root: high}}}
	if p.ram == nil {
		p.ram = new(mem.RAM)
	}
	for i := range p.sides {
		if s := &p.sides[i]; s.valid() {
			s.top = s.levels()
		}
	}
	return p
}

// Root is the physical address of the topmost table of the lower half, of the
// upper one where the lower is not translated.
func (p *Paging) Root() mem.PA {
	if low := &p.sides[0]; low.top != 0 {
		return low.root
	}
	return p.sides[1].root
}

// sideOf is the half that va lies in. Bit 55 selects it (D8.2.2); the bits above
// those that are translated are all alike, the top byte apart where it is
// ignored.
func (p *Paging) sideOf(va mem.VA) (*side, error) {
	high := va >> 55 & 1
	s := &p.sides[high]
	if s.top == 0 {
		return nil, absent(va, 0, 0, errDisabled)
	}
	rest := int64(va)
	if s.TopIgnored {
		rest = rest << 8 >> 8
	}
	if rest>>s.Bits != -int64(high) {
		return nil, absent(va, 0, 0, errCanonical)
	}
	return s, nil
}

// index is the offset of va's descriptor in a table of the level.
func (s *side) index(va mem.VA, level uint8) mem.PA {
	return mem.PA(uint64(va) >> (s.shift(level) & 63) & (s.entries(level) - 1) * 8)
}

// Translate walks the tables for va; see arch.Paging. The access flag is
// ignored: a page without it is one that the kernel calls old.
func (p *Paging) Translate(va mem.VA) (mem.Mapping, error) {
	s, err := p.sideOf(va)
	if err != nil {
		return mem.Mapping{}, err
	}
	table, led, above := s.root, uint64(s.root), uint64(0)
	for level := s.top; ; level-- {
		d, err := p.load(table + s.index(va, level))
		if err != nil {
			return mem.Mapping{}, unreadable(va, level, led, err)
		}
		switch s.kind(d, level) {
		case isPage:
			return s.leaf(va, d, above, level), nil
		case isTable:
			table, led, above = s.address(d), d, above|d
		case isAbsent:
			return mem.Mapping{}, absent(va, level, d, mem.ErrNotMapped)
		default:
			return mem.Mapping{}, absent(va, level, d, errReserved)
		}
	}
}

// kind is what a descriptor stands for.
type kind uint8

const (
	isAbsent kind = iota
	isReserved
	isTable
	isPage // or a block
)

// kind tells what a descriptor of the level stands for (D8.3.1).
func (s *side) kind(d uint64, level uint8) kind {
	switch {
	case d&valid == 0:
		return isAbsent
	case d&notBlock != 0 && level > 1:
		return isTable
	case d&notBlock != 0 || level > 1 && level <= s.blocks():
		return isPage
	}
	return isReserved
}

// leaf is the mapping of va by descriptor d of the level; above are the bits of
// the tables that led there, any of them.
func (s *side) leaf(va mem.VA, d, above uint64, level uint8) mem.Mapping {
	in := uint64(1)<<s.shift(level) - 1
	return mem.Mapping{
		PA:    s.address(d)&^mem.PA(in) | mem.PA(uint64(va)&in),
		Size:  in + 1,
		Entry: d,
		Leaf:  mem.Leaf{Level: level, Perm: s.perm(d, above)},
	}
}

// perm is what descriptor d permits below tables with the given bits (D8.4.1).
// What only EL1 may execute is executable, as is what only EL0 may; EL1 never
// executes what EL0 may write. With permission indirection (FEAT_S1PIE) the bits
// are an index, which Linux keeps such that they mean the same.
func (s *side) perm(d, above uint64) mem.Perm {
	if s.Flat {
		above = 0
	}
	ro := d&readOnly != 0 && !(s.Dirty && d&dbm != 0) || above&tableReadOnly != 0
	user := d&el0 != 0 && above&tableNoEL0 == 0
	byUser := d&uxn == 0 && above&tableUXN == 0
	byKernel := d&pxn == 0 && above&tablePXN == 0 && (ro || !user)
	var p mem.Perm
	if !ro {
		p |= mem.Write
	}
	if user || byUser { // without AP[1] EL0 may still execute it
		p |= mem.User
	}
	if byUser || byKernel {
		p |= mem.Exec
	}
	return p
}

// tablePerm is what a table leaves to those below it.
func (s *side) tablePerm(d uint64) mem.Perm {
	if s.Flat {
		d = 0
	}
	var p mem.Perm
	if d&tableReadOnly == 0 {
		p |= mem.Write
	}
	if d&tableNoEL0 == 0 {
		p |= mem.User
	}
	if d&tablePXN == 0 || d&tableUXN == 0 {
		p |= mem.Exec
	}
	return p
}

// load reads a descriptor.
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
