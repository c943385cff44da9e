package x86

import (
	"encoding/binary"

	"vmscope/arch"
	"vmscope/mem"
)

// Two levels of 4-byte entries, 10 bits of index each: SDM 4.3, figure 4-4.
const entries32 = 1024

// shift32 is the lowest bit of an index into a table of the level.
func shift32(level uint8) uint { return 2 + 10*uint(level) }

// load32 loads the entry of va in a table of the level.
func (p *Paging) load32(table mem.PA, va mem.VA, level uint8) (at mem.PA, e uint64, err error) {
	at = table + mem.PA(uint64(va)>>shift32(level)%entries32*4)
	w, err := p.load(at &^ 7)
	return at, w >> (at & 4 * 8) & 0xffffffff, err
}

// leaf32 is the mapping of va by an entry of the level.
func leaf32(va mem.VA, e, all uint64, level uint8) mem.Mapping {
	in := uint64(1)<<shift32(level) - 1
	pa := e & 0xfffff000 &^ in
	if level == 2 {
		// PSE-36: bits 13 to 20 are bits 32 to 39 of the address (table 4-4).
		pa |= e >> 13 & 0xff << 32
	}
	return mem.Mapping{PA: mem.PA(pa | uint64(va)&in), Size: in + 1, Entry: e, Leaf: mem.Leaf{Level: level, Perm: perm(all, 0)}}
}

// translate32 walks two levels of 4-byte entries.
func (p *Paging) translate32(va mem.VA) (mem.Mapping, error) {
	table, entry, all := p.root, uint64(p.root), ^uint64(0)
	for level := uint8(2); ; level-- {
		_, e, err := p.load32(table, va, level)
		if err != nil {
			return mem.Mapping{}, unreadable(va, level, entry, err)
		}
		if e&present == 0 {
			return mem.Mapping{}, absent(va, level, e, mem.ErrNotMapped)
		}
		all &= e
		if level == 1 || e&large != 0 {
			return leaf32(va, e, all, level), nil
		}
		table, entry = mem.PA(e&0xfffff000), e
	}
}

// table32 is lister.table for two levels of 4-byte entries.
func (l *lister) table32(pa mem.PA, entry uint64, level uint8, va mem.VA, all, _ uint64) bool {
	shift := shift32(level)
	if !l.spend(entry, level, va) {
		return false
	}
	buf := l.buf[level][:]
	if _, err := l.p.phys.ReadPhys(buf, pa); err != nil {
		return l.runs.Fail(arch.Region{VA: va, Size: entries32 << shift}, unreadable(va, level, entry, err))
	}
	for i := range mem.VA(entries32) {
		at := va | i<<shift
		if at+1<<shift-1 < l.first {
			continue
		}
		if at > l.last {
			return true
		}
		e := uint64(binary.LittleEndian.Uint32(buf[i*4:]))
		switch {
		case e&present == 0:
		case level > 1 && e&large == 0:
			if !l.table32(mem.PA(e&0xfffff000), e, level-1, at, all&e, 0) {
				return false
			}
		default:
			m := leaf32(at, e, all&e, level)
			if !l.runs.Add(arch.Region{VA: at, PA: m.PA, Size: m.Size, Page: m.Size, Perm: m.Perm}) {
				return false
			}
		}
	}
	return true
}

// translatePAE walks three levels; the top one has four entries without
// permissions and never maps a page (SDM table 4-8).
func (p *Paging) translatePAE(va mem.VA) (mem.Mapping, error) {
	e, err := p.load(p.root + mem.PA(va>>30<<3))
	if err != nil {
		return mem.Mapping{}, unreadable(va, 3, uint64(p.root), err)
	}
	if e&present == 0 {
		return mem.Mapping{}, absent(va, 3, e, mem.ErrNotMapped)
	}
	return p.walk(va, mem.PA(e&physMask), e, 2)
}
