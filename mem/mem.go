// Package mem holds the words in which all of vmscope speaks of a guest's
// memory: typed addresses, the reader of guest-physical memory, and the virtual
// address space built on top of it.
//
// Everything that is read was written by the guest and may lie, loop, or change
// between two reads. Readers here return errors with coordinates and never
// panic on what they find.
package mem

import (
	"errors"
	"fmt"
	"strconv"
)

// PA is a guest-physical address in bytes.
//
// It has no String method on purpose: fmt's %#x would print the string.
type PA uint64

// VA is a guest-virtual address in bytes. It means nothing without its Space.
type VA uint64

// PageSize is the smallest page of every supported architecture, in bytes.
const PageSize = 4096

// PhysReader reads guest-physical memory. Implementations are safe for
// concurrent use and never keep p.
type PhysReader interface {
	// ReadPhys fills p from the bytes at pa. n < len(p) implies a *FaultError
	// that names the first address that could not be read.
	ReadPhys(p []byte, pa PA) (n int, err error)
}

// PhysWriter writes guest-physical memory. It is apart from PhysReader so that
// who has not asked for it cannot write.
type PhysWriter interface {
	WritePhys(p []byte, pa PA) (n int, err error)
}

// Range is a run of guest-physical addresses [Start, Start+Size).
type Range struct {
	Start PA
	Size  uint64
}

// End is the first address behind the range.
func (r Range) End() PA { return r.Start + PA(r.Size) }

// Ranger is the optional capability of a PhysReader to say which guest-physical
// addresses are RAM. The ranges are sorted and do not overlap.
type Ranger interface {
	Ranges() []Range
}

// Extenter is the optional capability of a PhysReader to say which parts of RAM
// may hold anything but zeros, so that a search costs what the data costs and
// not what the RAM's size costs. The ranges are sorted, do not overlap and lie
// within Ranges. A live guest grows new ones at any time: the answer is of the
// moment of the call.
type Extenter interface {
	Extents() ([]Range, error)
}

// Extents returns the parts of r's RAM worth searching: its data extents where
// it knows them, else all its RAM, else an ErrUnsupported.
func Extents(r PhysReader) ([]Range, error) {
	if e, ok := r.(Extenter); ok {
		if x, err := e.Extents(); err == nil {
			return x, nil
		}
	}
	if g, ok := r.(Ranger); ok {
		return g.Ranges(), nil
	}
	return nil, fmt.Errorf("list the RAM of this source: %w", errors.ErrUnsupported)
}

// Vec is one piece of a vectored read: fill P from PA.
type Vec struct {
	P  []byte
	PA PA
}

// VecReader is the optional capability to read many pieces for about the price
// of one, e.g. by one process_vm_readv.
type VecReader interface {
	// ReadPhysVec fills the pieces in order and returns how many it filled
	// whole. n < len(v) implies an error of ReadPhys's kind for piece n.
	ReadPhysVec(v []Vec) (n int, err error)
}

// ReadVec fills all pieces of v, by one call where r can.
func ReadVec(r PhysReader, v []Vec) (n int, err error) {
	if b, ok := r.(VecReader); ok {
		return b.ReadPhysVec(v)
	}
	for i := range v {
		if _, err := r.ReadPhys(v[i].P, v[i].PA); err != nil {
			return i, err
		}
	}
	return len(v), nil
}

// Loader is the optional capability to load one aligned little-endian word
// without a buffer. Page-table walks use it.
type Loader interface {
	Load64(pa PA) (uint64, error)
}

// Perm is what a page may be used for.
type Perm uint8

// The bits of Perm. Read is implied by a page being mapped.
const (
	Exec Perm = 1 << iota
	Write
	User
)

// Mapping is where a virtual address lies in physical memory.
type Mapping struct {
	PA    PA     // of the very address asked for, not of its page
	Size  uint64 // of the page that maps it, bytes
	Entry uint64 // the page-table entry that maps it
	Leaf
}

// Leaf is the rest of a Mapping. It is a struct of its own because the compiler
// keeps structs of at most four fields in registers.
type Leaf struct {
	Level uint8 // level of the entry: 1 is the lowest table
	Perm  Perm  // of all levels combined
}

// Left is how many bytes from the address asked for to the end of its page.
func (m Mapping) Left() uint64 { return m.Size - uint64(m.PA)&(m.Size-1) }

// Translator turns virtual into physical addresses. A failed translation is a
// *FaultError with the level and entry where the walk ended.
type Translator interface {
	Translate(va VA) (Mapping, error)
}

// MarshalText writes the address as 0x… for JSON, where a number would lose its
// low bits.
func (a PA) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint64(a)), nil }

// UnmarshalText reads what MarshalText writes.
func (a *PA) UnmarshalText(b []byte) error { return unmarshal((*uint64)(a), b) }

// MarshalText writes the address as 0x… for JSON, where a number would lose its
// low bits.
func (a VA) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint64(a)), nil }

// UnmarshalText reads what MarshalText writes.
func (a *VA) UnmarshalText(b []byte) error { return unmarshal((*uint64)(a), b) }

func unmarshal(to *uint64, b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 64)
	if err != nil {
		return fmt.Errorf("address %q: %w", b, err)
	}
	*to = n
	return nil
}
