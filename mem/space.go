package mem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"
)

// Space is a virtual address space: of the kernel, or of one process. It holds
// no state of the guest but the root of its page tables: every read walks them
// anew, so that no answer is stale.
//
// A Space is safe for concurrent use. Where its memory is mapped into this
// process, reads must run inside Guard (a View does that).
type Space struct {
	Name string
	Phys PhysReader
	Tr   Translator
	ram  *RAM // of Phys, if mapped: the fast path
	win  *Window
	word worder // Tr, if it loads words itself
	mask uint64 // of a pointer
}

// pointed is the capability of a Translator to say how many bytes an address
// takes where the kernel whose tables it walks stores one: 8 for all others.
type pointed interface{ PointerSize() int }

// worder is the capability of a Translator to load the word at an address in
// one go; ok is false where it would need more than its fast path.
type worder interface {
	Word(va VA) (v uint64, ok bool)
}

// NewSpace builds a space from physical memory and the translation of its
// addresses.
func NewSpace(name string, phys PhysReader, tr Translator) *Space {
	ram := RAMOf(phys)
	s := &Space{Name: name, Phys: phys, Tr: tr, ram: ram, win: ram.Window(), mask: ^uint64(0)}
	if p, ok := tr.(pointed); ok && p.PointerSize() == 4 {
		s.mask = 1<<32 - 1
	} else if ram != nil {
		s.word, _ = tr.(worder)
	}
	return s
}

// PointerSize is how many bytes the kernel of the space stores an address in: 4
// or 8. Its unsigned long has as many.
func (s *Space) PointerSize() int {
	if s.mask == 1<<32-1 {
		return 4
	}
	return 8
}

// Translate finds where va lies in physical memory.
func (s *Space) Translate(va VA) (Mapping, error) {
	m, err := s.Tr.Translate(va)
	if err != nil {
		return m, s.fault("translate", va, err)
	}
	return m, nil
}

// fault names the space in a translator's or reader's error.
func (s *Space) fault(op string, va VA, err error) error {
	var f *FaultError
	if errors.As(err, &f) {
		g := *f
		g.Op, g.Space, g.Addr = op, s.Name, uint64(va)
		if f.Op != "translate" { // a physical read failed: keep its own story
			g.Err = err
		}
		return &g
	}
	return &FaultError{Op: op, Space: s.Name, Addr: uint64(va), Err: err}
}

// Read fills p from the bytes at va, across pages. n < len(p) implies a
// *FaultError that names the first address that could not be read.
func (s *Space) Read(p []byte, va VA) (n int, err error) {
	if s.ram != nil && len(p) <= PageSize {
		if m, err := s.Tr.Translate(va); err == nil && uint64(len(p)) <= m.Left() {
			if q := s.ram.At(m.PA, uint64(len(p))); q != nil {
				return copy(p, unsafe.Slice((*byte)(q), len(p))), nil
			}
		}
	}
	return s.readSlow(p, va)
}

// vecs are reused between reads that cross pages.
var vecs = sync.Pool{New: func() any { v := make([]Vec, 0, 64); return &v }}

func (s *Space) readSlow(p []byte, va VA) (n int, err error) {
	vp := vecs.Get().(*[]Vec)
	defer func() { clear(*vp); vecs.Put(vp) }()
	for n < len(p) {
		v := (*vp)[:0]
		got := n
		var terr error
		for got < len(p) && len(v) < cap(v) {
			m, err := s.Tr.Translate(va + VA(got))
			if err != nil {
				terr = s.fault("read", va+VA(got), err)
				break
			}
			k := int(min(uint64(len(p)-got), m.Left()))
			v = append(v, Vec{p[got : got+k], m.PA})
			got += k
		}
		*vp = v
		done, err := ReadVec(s.Phys, v)
		for i := range v[:done] {
			n += len(v[i].P)
		}
		if err != nil {
			var f *FaultError
			if done < len(v) && errors.As(err, &f) && f.Addr >= uint64(v[done].PA) {
				n += int(min(f.Addr-uint64(v[done].PA), uint64(len(v[done].P))))
			}
			return n, s.fault("read", va+VA(n), err)
		}
		if terr != nil {
			return n, terr
		}
	}
	return n, nil
}

// Uint64 loads the 8 bytes at va, little endian.
func (s *Space) Uint64(va VA) (uint64, error) {
	if s.word != nil {
		if v, ok := s.word.Word(va); ok {
			return v, nil
		}
	}
	if s.ram != nil {
		if m, err := s.Tr.Translate(va); err == nil {
			if i := s.win.Index(m.PA); i&7 == 0 && s.win.Has(i) {
				return s.win.Load(i), nil
			}
			if v, ok := s.ram.Word(m.PA); ok {
				return v, nil
			}
		}
	}
	return s.uintSlow(va, 8)
}

// Uint32 loads the 4 bytes at va, little endian.
func (s *Space) Uint32(va VA) (uint32, error) {
	if s.ram != nil {
		if m, err := s.Tr.Translate(va); err == nil {
			if q := s.ram.At(m.PA, 4); q != nil {
				return *(*uint32)(q), nil
			}
		}
	}
	v, err := s.uintSlow(va, 4)
	return uint32(v), err
}

// Uint loads size bytes at va, little endian; size is 1, 2, 4 or 8.
func (s *Space) Uint(va VA, size int) (uint64, error) {
	switch size {
	case 8:
		return s.Uint64(va)
	case 4:
		v, err := s.Uint32(va)
		return uint64(v), err
	case 1, 2:
		return s.uintSlow(va, size)
	}
	return 0, fmt.Errorf("no integer of %d bytes", size)
}

// Pointer loads the address, or the unsigned long, stored at va.
func (s *Space) Pointer(va VA) (VA, error) {
	if s.word != nil {
		if v, ok := s.word.Word(va); ok {
			return VA(v), nil
		}
	}
	v, err := s.Uint(va, s.PointerSize())
	return VA(v), err
}

// words are the buffers of small reads, which escape through the interface of
// the source.
var words = sync.Pool{New: func() any { return new([8]byte) }}

func (s *Space) uintSlow(va VA, size int) (uint64, error) {
	b := words.Get().(*[8]byte)
	defer words.Put(b)
	*b = [8]byte{}
	if _, err := s.Read(b[:size], va); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// CString reads the bytes at va up to the first NUL, at most max of them. A
// string without NUL in max bytes is returned as it is, without error: the
// caller set the bound. The bytes are the guest's: not necessarily UTF-8.
func (s *Space) CString(va VA, max int) ([]byte, error) {
	var out []byte
	for len(out) < max {
		// To the end of the page at most: what lies behind may be unmapped.
		n := min(max-len(out), PageSize-int(uint64(va)%PageSize), 256)
		at := len(out)
		out = append(out, make([]byte, n)...)
		if _, err := s.Read(out[at:], va); err != nil {
			return out[:at], err
		}
		if i := bytes.IndexByte(out[at:], 0); i >= 0 {
			return out[:at+i], nil
		}
		va += VA(n)
	}
	return out, nil
}

// Load64 loads the word at pa from any source, without allocating where the
// source is a Loader.
func Load64(r PhysReader, pa PA) (uint64, error) {
	if l, ok := r.(Loader); ok {
		return l.Load64(pa)
	}
	b := words.Get().(*[8]byte)
	defer words.Put(b)
	if _, err := r.ReadPhys(b[:], pa); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// Identity is the Translator of physical memory itself: each address is its
// own. It makes a Space of physical memory.
type Identity struct{}

// Translate returns va as it is, in a page of the smallest size.
func (Identity) Translate(va VA) (Mapping, error) {
	return Mapping{PA: PA(va), Size: PageSize, Leaf: Leaf{Level: 1}}, nil
}
