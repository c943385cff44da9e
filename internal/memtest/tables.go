package memtest

import (
	"encoding/binary"

	"vmscope/mem"
)

// Bits of an x86 page-table entry, as tests write them.
const (
	P     = 1 << 0 // present
	W     = 1 << 1 // writable
	U     = 1 << 2 // user
	PS    = 1 << 7 // maps a page
	NX    = 1 << 63
	Table = P | W | U // what Linux puts into entries that lead to a table
)

// Tables builds x86 page tables of 8-byte entries inside RAM bytes.
type Tables struct {
	RAM  []byte
	Base mem.PA // address of RAM[0]
	Root mem.PA
	top  int
	next uint64 // offset of the next table, growing upwards
}

// NewTables puts the root of the given number of levels (3: PAE, 4, 5) at
// offset at of ram; further tables follow it page by page.
func NewTables(ram []byte, base mem.PA, at uint64, levels int) *Tables {
	return &Tables{RAM: ram, Base: base, Root: base + mem.PA(at), top: levels, next: at + mem.PageSize}
}

// Entry returns the bytes of va's entry in its table of the given level (1 is
// the lowest), making the tables above.
func (t *Tables) Entry(va mem.VA, level int) []byte {
	table := t.Root
	for l := t.top; ; l-- {
		off := uint64(table-t.Base) + uint64(va)>>(3+9*l)&511*8
		e := t.RAM[off : off+8]
		if l == level {
			return e
		}
		v := binary.LittleEndian.Uint64(e)
		if v&P == 0 {
			v = uint64(t.Base) + t.next | Table
			if t.top == 3 && l == 3 {
				v &^= W | U // reserved in PAE's top level
			}
			t.next += mem.PageSize
			binary.LittleEndian.PutUint64(e, v)
		}
		table = mem.PA(v & (1<<52 - mem.PageSize))
	}
}

// Set writes va's entry of the given level.
func (t *Tables) Set(va mem.VA, level int, entry uint64) {
	binary.LittleEndian.PutUint64(t.Entry(va, level), entry)
}

// Map maps size bytes at va to pa by pages of the given level (1: 4 KiB, 2: 2
// MiB, 3: 1 GiB) with the given flags.
func (t *Tables) Map(va mem.VA, pa mem.PA, size uint64, level int, flags uint64) {
	if level > 1 {
		flags |= PS
	}
	page := uint64(1) << (3 + 9*level)
	for off := uint64(0); off < size; off += page {
		t.Set(va+mem.VA(off), level, uint64(pa)+off|flags|P)
	}
}
