package mem

// Near reads words of a space that lie close together, as the members of an
// object or the nodes of a list: it walks the page tables once for each page
// and remembers the last one. (The kernel's own memory is mapped by large pages,
// so one walk serves most of its objects.)
//
// What it remembers may be out of date on a guest that changes its page tables:
// make one for one look at one structure and drop it. It is not safe for
// concurrent use. As with the Space, reads of mapped memory must run inside
// Guard.
type Near struct {
	s    *Space
	va   VA     // where the remembered page begins
	pa   PA     // where it lies
	size uint64 // its size; 0: none is remembered
}

// Near starts a look at the space.
func (s *Space) Near() Near { return Near{s: s} }

// Uint64 loads the 8 bytes at va, little endian.
func (n *Near) Uint64(va VA) (uint64, error) {
	if off := uint64(va - n.va); off < n.size {
		w := n.s.win
		if i := w.Index(n.pa + PA(off)); i&7 == 0 && w.Has(i) {
			return w.Load(i), nil
		}
	}
	return n.far(va)
}

// Uint32 loads the 4 bytes at va, little endian.
func (n *Near) Uint32(va VA) (uint32, error) {
	if va&3 == 0 {
		if v, err := n.Uint64(va &^ 7); err == nil {
			return uint32(v >> (va & 4 * 8)), nil
		}
	}
	return n.s.Uint32(va)
}

// Pointer loads the address, or the unsigned long, stored at va.
func (n *Near) Pointer(va VA) (VA, error) {
	if off := uint64(va - n.va); off < n.size {
		w := n.s.win
		if i := w.Index(n.pa + PA(off)); i&7 == 0 && w.Has(i) {
			return VA(w.Load(i) & n.s.mask), nil
		}
	}
	if n.s.PointerSize() == 4 {
		v, err := n.Uint32(va)
		return VA(v), err
	}
	v, err := n.far(va)
	return VA(v), err
}

// PointerSize is that of the space.
func (n *Near) PointerSize() int { return n.s.PointerSize() }

// far loads a word of another page, which it remembers, or one that the window
// does not hold. Failures are told as the Space tells them.
func (n *Near) far(va VA) (uint64, error) {
	if va%PageSize > PageSize-8 {
		return n.s.Uint64(va)
	}
	if uint64(va-n.va) >= n.size {
		m, err := n.s.Tr.Translate(va)
		if err != nil {
			return n.s.Uint64(va)
		}
		off := uint64(m.PA) & (m.Size - 1)
		n.va, n.pa, n.size = va-VA(off), m.PA-PA(off), m.Size
	}
	pa := n.pa + PA(va-n.va)
	w := n.s.win
	if i := w.Index(pa); i&7 == 0 && w.Has(i) {
		return w.Load(i), nil
	}
	if n.s.ram != nil {
		if v, ok := n.s.ram.Word(pa); ok {
			return v, nil
		}
	}
	v, err := Load64(n.s.Phys, pa)
	if err != nil {
		return n.s.Uint64(va)
	}
	return v, nil
}
