package arm

import (
	"fmt"

	"vmscope/mem"
)

var (
	errWide     = fmt.Errorf("%w: more than 32 bits", mem.ErrNotMapped)
	errDisabled = fmt.Errorf("%w: not translated by these tables", mem.ErrNotMapped)
	// The processor faults on a lowest descriptor that is no page.
	errReserved = fmt.Errorf("%w: reserved descriptor", mem.ErrNotMapped)
)

// Paging is an address space as one or two page-table roots span it. It is an
// arch.Paging.
type Paging struct {
	phys    mem.PhysReader
	ram     *mem.RAM // of phys, empty if that is not mapped
	mode    Mode
	low     mem.PA
	regions []region
}

// NewPaging spans the address space of the given TTBR0 and TTBR1 in phys.
func NewPaging(phys mem.PhysReader, m Mode, low, high mem.PA) *Paging {
	p := &Paging{phys: phys, ram: mem.RAMOf(phys), mode: m, low: low, regions: m.regions(low, high)}
	if p.ram == nil {
		p.ram = new(mem.RAM)
	}
	return p
}

// Root is the physical address of the topmost table of the lowest addresses that
// are translated.
func (p *Paging) Root() mem.PA {
	if len(p.regions) == 0 {
		return p.low
	}
	return p.regions[0].root
}

// PointerSize is that of kernels in the mode.
func (p *Paging) PointerSize() int { return p.mode.PointerSize() }

// regionOf is the region that va lies in.
func (p *Paging) regionOf(va mem.VA) (*region, error) {
	if va>>32 != 0 {
		return nil, absent(va, 0, 0, errWide)
	}
	for i := range p.regions {
		if r := &p.regions[i]; va >= r.first && va <= r.last {
			return r, nil
		}
	}
	return nil, absent(va, 0, 0, errDisabled)
}

// entry loads the descriptor of va in a table of the level.
func (p *Paging) entry(r *region, table mem.PA, va mem.VA, level uint8) (at mem.PA, d uint64, err error) {
	i := uint64(va) >> p.mode.shift(level) & (p.mode.entries(r, level) - 1)
	at = table + mem.PA(i*p.mode.entrySize())
	word := at &^ 7
	d, ok := p.ram.Word(word)
	if !ok {
		d, err = mem.Load64(p.phys, word)
	}
	if !p.mode.Long {
		d = d >> (at & 4 * 8) & 0xffffffff
	}
	return at, d, err
}

// Translate walks the tables for va; see arch.Paging. The access flag is ignored.
func (p *Paging) Translate(va mem.VA) (mem.Mapping, error) {
	r, err := p.regionOf(va)
	if err != nil {
		return mem.Mapping{}, err
	}
	table, led, above := r.root, uint64(r.root), uint64(0)
	for level := r.top; ; level-- {
		_, d, err := p.entry(r, table, va, level)
		if err != nil {
			return mem.Mapping{}, unreadable(va, level, led, err)
		}
		switch p.mode.kind(d, level) {
		case isPage:
			return p.leaf(r, va, d, above, level), nil
		case isTable:
			table, led, above = p.mode.table(d), d, above|d
		case isAbsent:
			return mem.Mapping{}, absent(va, level, d, mem.ErrNotMapped)
		default:
			return mem.Mapping{}, absent(va, level, d, errReserved)
		}
	}
}

// leaf is the mapping of va by a descriptor of the level; above are the bits of
// the tables that led there, any of them. Of a block that reaches beyond the
// region it is the largest part around va that does not.
func (p *Paging) leaf(r *region, va mem.VA, d, above uint64, level uint8) mem.Mapping {
	base, size := p.mode.page(d, level)
	pa := base | mem.PA(uint64(va)&(size-1))
	for ; ; size /= 2 {
		if from := va &^ mem.VA(size-1); from >= r.first && from+mem.VA(size)-1 <= r.last {
			break
		}
	}
	return mem.Mapping{PA: pa, Size: size, Entry: d, Leaf: mem.Leaf{Level: level, Perm: p.mode.perm(d, above, level)}}
}

func absent(va mem.VA, level uint8, entry uint64, err error) error {
	return &mem.FaultError{Op: "translate", Addr: uint64(va), Level: int(level), Entry: entry, Err: err}
}

func unreadable(va mem.VA, level uint8, entry uint64, err error) error {
	return absent(va, level, entry, fmt.Errorf("page table: %w", err))
}
