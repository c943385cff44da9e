package linux

import (
	"vmscope/ksym"
	"vmscope/mem"
)

// ports are those that are known. A claim is of the first that takes it.
var ports = []port{amd64{}, arm64{}, i386{}, arm32{}}

// port is what of Linux differs between architectures, as far as it is not told
// by the kernel's symbols and types. There is one for each in a file of its own.
type port interface {
	// arch is the architecture as uname -m prints it, tableArch as ksym names it.
	arch() string
	tableArch() string
	// align64 is what the offset of a number of 64 bits in a struct is a multiple of.
	align64() uint64

	// claims lists what a VMCOREINFO text may mean, of which _stext and
	// swapper_pg_dir are known: with the distance of the image, KASLR's and the
	// modes. It is false for a kernel of another architecture.
	claims(f *finder, c claim) ([]*claim, bool)
	// tableClaims lists the claims that fit a symbol table found in RAM.
	tableClaims(f *finder, t ksym.Found) ([]*claim, error)

	// directMap is where physical address 0 is, or would be, in the map of all RAM.
	directMap(v *View) (mem.VA, error)
	// directEnd is the physical address up to which that map goes; the highest of
	// all if it has all RAM.
	directEnd(v *View) mem.PA
	// vmemmap is where the struct page of frame 0 is, or would be.
	vmemmap(v *View) (mem.VA, error)
	// halves are the parts of the kernel's half of the address space.
	halves(v *View) Halves
}

// Span is the addresses from Start up to End.
type Span struct{ Start, End mem.VA }

// Holds reports whether va lies in the span.
func (s Span) Holds(va mem.VA) bool { return va >= s.Start && va < s.End }

// Halves says what lies where in the kernel's half of the address space. A span
// that is not known is empty.
type Halves struct {
	Image   Span // the kernel's image, on x86-64 with its modules
	Modules Span
	Direct  Span // the map of all RAM
	Vmalloc Span // what the kernel allocates by pages; Image goes before it
}

// Halves says what lies where in the kernel's half of the address space.
func (v *View) Halves() Halves { return v.port.halves(v) }
