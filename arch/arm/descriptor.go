package arm

import "vmscope/mem"

// kind is what a descriptor stands for.
type kind uint8

const (
	isAbsent kind = iota
	isReserved
	isTable
	isPage // or a section, or a block
)

// Bits of a short descriptor, B3.5.1, figures B3-4 and B3-5. That a section may
// have PXN where bit 0 would be of another type else is for implementations that
// have PXN, as all with LPAE.
const (
	shortXN        = 1 << 0 // of a small page
	largeXN        = 1 << 15
	sectionPXN     = 1 << 0
	sectionXN      = 1 << 4
	sectionAP      = 10 // the lowest bit of AP[1:0]
	sectionAP2     = 1 << 15
	supersection   = 1 << 18
	pageAP         = 4
	pageAP2        = 1 << 9
	shortTablePXN  = 1 << 2
	shortTableMask = 1<<32 - 1<<10
)

// Bits of a long descriptor, B3.6.1 and B3.6.2.
const (
	longPL0      = 1 << 6 // AP[1]
	longReadOnly = 1 << 7 // AP[2]
	longPXN      = 1 << 53
	longXN       = 1 << 54
	longMask     = 1<<40 - 1<<12

	// Of a table: what it takes away from all below it.
	tablePXN      = 1 << 59
	tableXN       = 1 << 60
	tableNoPL0    = 1 << 61 // APTable[0]
	tableReadOnly = 1 << 62 // APTable[1]
)

// kind tells what a descriptor of the level stands for.
func (m Mode) kind(d uint64, level uint8) kind {
	low := d & 3
	switch {
	case m.Long && low&1 == 0, !m.Long && low == 0:
		return isAbsent
	case !m.Long && level == 2 && low == 1, m.Long && level > 1 && low == 3:
		return isTable
	case m.Long && level == 1 && low == 1:
		return isReserved
	}
	return isPage
}

// table is the physical address of the table that a descriptor leads to.
func (m Mode) table(d uint64) mem.PA {
	if m.Long {
		return mem.PA(d & longMask)
	}
	return mem.PA(d & shortTableMask)
}

// page is where the page of a descriptor lies, and its size. That of 64 KiB and
// that of 16 MiB (a supersection) stand in 16 descriptors one after the other,
// each of which is taken for its part.
func (m Mode) page(d uint64, level uint8) (mem.PA, uint64) {
	size := uint64(1) << m.shift(level)
	switch {
	case m.Long:
		return mem.PA(d & longMask &^ (size - 1)), size
	case level == 2 && d&supersection != 0:
		return mem.PA(d&0xff000000 | d>>20&15<<32 | d>>5&15<<36), 16 << 20
	case level == 1 && d&2 == 0:
		return mem.PA(d & 0xffff0000), 64 << 10
	}
	return mem.PA(d & 0xffffffff &^ (size - 1)), size
}

// perm is what a page's descriptor permits below tables with the given bits, any
// of them. Domains are taken for those of clients, as Linux has them. Writable is
// what PL1 may write though PL0 only reads it (AP 0b010).
func (m Mode) perm(d, above uint64, level uint8) mem.Perm {
	if m.Long {
		return permission(
			true,
			d&longPL0 != 0 && above&tableNoPL0 == 0,
			d&longReadOnly == 0 && above&tableReadOnly == 0,
			d&longXN != 0 || above&tableXN != 0,
			d&longPXN != 0 || above&tablePXN != 0)
	}
	ap, readOnly := d>>pageAP, d&pageAP2 != 0
	xn, pxn := d&shortXN != 0, above&shortTablePXN != 0
	switch {
	case level == 2:
		ap, readOnly = d>>sectionAP, d&sectionAP2 != 0
		xn, pxn = d&sectionXN != 0, d&sectionPXN != 0
	case d&2 == 0:
		xn = d&largeXN != 0
	}
	// Table B3-8: neither level has access if both bits are zero, unless the lower
	// is the access flag; a page that lacks that is one that the kernel calls old.
	return permission(m.Access || ap&3 != 0, ap&2 != 0, !readOnly, xn, pxn)
}

// permission puts together what B3.7.1 and B3.7.2 say: nobody executes what has
// XN, or what he has no access to; PL1 none that has PXN.
func permission(access, pl0, write, xn, pxn bool) (p mem.Perm) {
	if !access {
		return 0
	}
	if write {
		p |= mem.Write
	}
	if pl0 {
		p |= mem.User
	}
	if !xn && (pl0 || !pxn) {
		p |= mem.Exec
	}
	return p
}

// tablePerm is what a table leaves to those below it.
func (m Mode) tablePerm(d uint64) mem.Perm {
	p := mem.Write | mem.User | mem.Exec
	if !m.Long {
		return p
	}
	if d&tableReadOnly != 0 {
		p &^= mem.Write
	}
	if d&tableNoPL0 != 0 {
		p &^= mem.User
	}
	if d&tableXN != 0 {
		p &^= mem.Exec
	}
	return p
}
