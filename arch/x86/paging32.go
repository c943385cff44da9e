package x86

import "vmscope/mem"

// translate32 walks two levels of 4-byte entries.
func (p *Paging) translate32(va mem.VA) (mem.Mapping, error) {
	// SDM 4.3, figure 4-4: 10 bits of index a level.
	table, entry, all := p.root, uint64(p.root), ^uint64(0)
	for level, shift := uint8(2), 22; ; level, shift = level-1, shift-10 {
		at := table + mem.PA(uint64(va)>>shift&1023<<2)
		w, err := p.load(at &^ 7)
		if err != nil {
			return mem.Mapping{}, unreadable(va, level, entry, err)
		}
		e := w >> (at & 4 * 8) & 0xffffffff
		if e&present == 0 {
			return mem.Mapping{}, absent(va, level, e, mem.ErrNotMapped)
		}
		all &= e
		if level == 1 || e&large != 0 {
			in := uint64(1)<<shift - 1
			pa := e & 0xfffff000 &^ in
			if level == 2 {
				// PSE-36: bits 13 to 20 are bits 32 to 39 of the address (table 4-4).
				pa |= e >> 13 & 0xff << 32
			}
			return mem.Mapping{PA: mem.PA(pa | uint64(va)&in), Size: in + 1, Entry: e, Leaf: mem.Leaf{Level: level, Perm: perm(all, 0)}}, nil
		}
		table, entry = mem.PA(e&0xfffff000), e
	}
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
