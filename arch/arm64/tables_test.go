package arm64_test

import (
	"encoding/binary"
	"math/rand/v2"
)

// regime is one setting of TCR_EL1, for which tables are made at random.
type regime struct {
	name      string
	low, high shape
	ips       uint64 // TCR_EL1.IPS: 2 40 bits, 5 48, 6 52
	more      uint64 // other bits of TCR_EL1
}

// shape is what TCR_EL1 says of one half: the number of address bits of a page
// and of the half. The zero shape is not translated (EPD).
type shape struct{ page, bits uint }

const (
	tcrTBI0, tcrTBI1, tcrHA, tcrHD, tcrHPD0, tcrHPD1, tcrDS = 1 << 37, 1 << 38, 1 << 39, 1 << 40, 1 << 41, 1 << 42, 1 << 59
)

func (r *regime) tcr() uint64 {
	tg0 := map[uint]uint64{12: 0, 16: 1, 14: 2}
	tg1 := map[uint]uint64{14: 1, 12: 2, 16: 3}
	tcr := r.more | r.ips<<32
	if r.low.bits == 0 {
		tcr |= 1 << 7
	} else {
		tcr |= uint64(64-r.low.bits)&63 | tg0[r.low.page]<<14
	}
	if r.high.bits == 0 {
		tcr |= 1 << 23
	} else {
		tcr |= uint64(64-r.high.bits)&63<<16 | tg1[r.high.page]<<30
	}
	return tcr
}

// addresses is how many bits the regime's physical addresses have.
func (r *regime) addresses() uint { return map[uint64]uint{2: 40, 5: 48, 6: 52}[r.ips] }

// question is an address, and whether a processor that can fetch what is there
// finds an HVC.
type question struct {
	va   uint64
	jump bool
}

// image is the memory that the guest starts with.
type image struct {
	base uint64
	data []byte
	code uint64 // of codeSize bytes, all HVC
	rng  *rand.Rand
}

const codeSize = 1 << 16

func (m *image) alloc(size, align uint64) uint64 {
	at := (m.base + uint64(len(m.data)) + align - 1) &^ (align - 1)
	m.data = append(m.data, make([]byte, at+size-m.base-uint64(len(m.data)))...)
	return at
}

func (m *image) set(pa, v uint64) { binary.LittleEndian.PutUint64(m.data[pa-m.base:], v) }

// tree makes tables.
type tree struct {
	*image
	*regime
	shape
	wide bool   // descriptors hold 52-bit addresses
	top  uint64 // what addresses of the half have above those that are translated
	asks []question
}

// firstLevel is the manual's level of the first lookup.
func (s shape) firstLevel() int { return 3 - int(s.bits-1-s.page)/int(s.page-3) }

// noRAM is where the machine has nothing.
const noRAM = 0x10_0000_0000

// make makes the table of a level, of the manual's, that translates addresses from
// va up, and those below, and returns where it lies. If sure is set its last page is
// there for EL1 to execute, whose vectors it holds.
func (t *tree) make(level int, va uint64, sure bool) uint64 {
	shift := t.page + uint(3-level)*(t.page-3)
	entries := uint64(1) << (t.page - 3)
	if level == t.firstLevel() {
		entries = 1 << (t.bits - shift)
	}
	align := 8 * entries
	if t.wide {
		align = max(align, 64)
	}
	table := t.alloc(8*entries, max(align, 16))
	size := uint64(1) << shift
	put := func(i, d uint64, leaf bool) {
		t.set(table+8*i, d)
		t.askAbout(va+i*size, size, d, leaf)
	}
	// A run of entries that are marked contiguous (D8.6.1), not the last.
	if run := t.contiguous(level); run > 0 && entries > run {
		first := t.rng.Uint64N(entries/run-1) * run
		d := t.attributes() | t.code&^(size*run-1) | 1<<52 | 1
		if level == 3 {
			d |= 2
		}
		for i := range run {
			put(first+i, d+i*size, true)
		}
	}
	at := []uint64{0, entries - 1}
	for range 8 {
		at = append(at, t.rng.Uint64N(entries))
	}
	tables := 0
	for n, i := range at {
		next := va + i*size
		if binary.LittleEndian.Uint64(t.data[table+8*i-t.base:]) != 0 {
			continue
		}
		switch vectors := sure && i == entries-1; {
		case vectors && n != 1:
		case vectors && level == 3:
			put(i, t.code|ap2|uxn|af|3, true)
		case vectors:
			t.set(table+8*i, t.make(level+1, next, true)|3)
		case level < 3 && tables < 2 && t.rng.IntN(2) == 0:
			d := t.tableBits() | 3
			if t.rng.IntN(8) > 0 {
				d |= t.make(level+1, next, false)
			} else {
				d |= noRAM
			}
			put(i, d, false)
			tables++
		case level < 3 && !t.blocks(level):
			// Of a block that there is not QEMU 7.2 makes one; TestTranslateBrute has them.
		default:
			d := t.attributes() | t.target(size) | 1
			if level == 3 {
				d |= 2
			}
			switch t.rng.IntN(16) {
			case 0:
				d &^= 1
			case 1:
				d &^= 2 // reserved, of a page
			}
			put(i, d, true)
		}
	}
	if level < 0 {
		t.fill(table, entries, va, size)
	}
	return table
}

// blocks reports whether a level may have blocks (D8.3.1, table of block
// descriptors).
func (t *tree) blocks(level int) bool {
	switch {
	case level == 2:
		return true
	case level == 1:
		return t.page == 12 || t.wide
	}
	return level == 0 && t.page == 12 && t.wide
}

// fill has the entries of a table that are not set lead to an empty table. QEMU
// 7.2 dies of a fault at the manual's level -1.
func (t *tree) fill(table, entries, va, size uint64) {
	empty := t.alloc(1<<t.page, 1<<t.page)
	for i := range entries {
		if at := table + 8*i; binary.LittleEndian.Uint64(t.data[at-t.base:]) == 0 {
			t.set(at, empty|3)
			t.askAbout(va+i*size, size, 0, false)
		}
	}
}

// contiguous is how many entries a run of them has at a level.
func (t *tree) contiguous(level int) uint64 {
	switch {
	case t.page == 12 && level >= 1:
		return 16
	case t.page == 14 && level == 3:
		return 128
	case t.page == 14 && level == 2, t.page == 16 && level >= 2:
		return 32
	}
	return 0
}

// target is what a descriptor says of the address: mostly of the page or block in
// which the code is.
func (t *tree) target(size uint64) uint64 {
	pa := t.code
	if size < codeSize {
		pa += t.rng.Uint64N(codeSize/size) * size
	}
	switch t.rng.IntN(8) {
	case 0:
		pa = t.rng.Uint64N(1 << t.addresses())
	case 1:
		pa = t.rng.Uint64N(1 << 48)
		if t.wide {
			pa = t.rng.Uint64N(1 << 52)
		}
	}
	if !t.wide {
		pa &= 1<<48 - 1
	}
	pa &^= size - 1
	switch {
	case !t.wide:
		return pa
	case t.page == 16:
		return pa&(1<<48-1) | pa>>48<<12
	}
	return pa&(1<<50-1) | pa>>50<<8
}

// attributes are those of a page or block, at random; bits that hardware leaves to
// software as well.
func (t *tree) attributes() uint64 {
	d := t.rng.Uint64()&(ap1|ap2|ng|pxn|uxn|dbm|7<<2|1<<5|0xf<<55|0xf<<59) | af
	if t.rng.IntN(16) == 0 {
		d &^= af
	}
	return d
}

// tableBits are those of a table, at random: restrictions are rare.
func (t *tree) tableBits() uint64 {
	d := t.rng.Uint64() & (0xff<<51 | 0x3f<<2)
	for bit := 59; bit <= 62; bit++ {
		if t.rng.IntN(6) == 0 {
			d |= 1 << bit
		}
	}
	return d
}

// askAbout asks for addresses that a descriptor translates, and one behind them;
// and has them executed if it is a leaf that leads to the code.
func (t *tree) askAbout(va, size, d uint64, leaf bool) {
	for _, off := range []uint64{0, t.rng.Uint64N(size), size - 1, size} {
		t.asks = append(t.asks, question{va: t.top | (va+off)&(1<<t.bits-1)})
	}
	low := d & (1<<48 - 1) &^ (size - 1)
	if t.wide && t.page == 16 {
		low = d & (1<<48 - 1<<16) &^ (size - 1)
	}
	if leaf && !t.elsewhere(d) && (low == t.code&^(size-1) || low >= t.code && low < t.code+codeSize) {
		t.asks = append(t.asks, question{t.top | va + t.code&(size-1) + t.rng.Uint64N(min(size, codeSize)/4)*4, true})
	}
}

// elsewhere reports whether a descriptor has any of the bits that are address from
// bit 48 up.
func (t *tree) elsewhere(d uint64) bool {
	switch {
	case !t.wide:
		return false
	case t.page == 16:
		return d>>12&15 != 0
	}
	return d>>8&3 != 0 || d>>48&3 != 0
}
