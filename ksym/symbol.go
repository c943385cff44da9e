package ksym

import (
	"errors"
	"fmt"
	"strings"

	"vmscope/mem"
)

// ErrNoSymbol says that a sound table has no symbol of that name, or none at or
// below that address.
var ErrNoSymbol = errors.New("no such symbol")

// AmbiguousError says that symbols of one name lie at several addresses, as
// static ones of several source files may, and that which is meant is not known.
// It is an errors.ErrUnsupported.
type AmbiguousError struct {
	Name  string
	Addrs []mem.VA // by address, each once
}

// maxNamed bounds the addresses that an error names: some names that compilers
// make up have thousands.
const maxNamed = 8

// Error implements error.
func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "look up symbol %q: it is at", e.Name)
	for i, va := range e.Addrs[:min(len(e.Addrs), maxNamed)] {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %#x", uint64(va))
	}
	if n := len(e.Addrs) - maxNamed; n > 0 {
		fmt.Fprintf(&b, " and %d more", n)
	}
	b.WriteString(": which is meant is not known")
	return b.String()
}

// Is implements the interface of errors.Is.
func (e *AmbiguousError) Is(target error) bool { return target == errors.ErrUnsupported }

// Only is the first of symbols of one name, which are by address, if all of them
// lie where it does; an AmbiguousError if not, and an ErrNoSymbol if there is none.
func Only(name string, all []Symbol) (Symbol, error) {
	if len(all) == 0 {
		return Symbol{}, noName(name)
	}
	if last := len(all) - 1; all[0].Addr == all[last].Addr {
		return all[0], nil
	}
	e := &AmbiguousError{Name: name}
	for _, s := range all {
		if n := len(e.Addrs); n == 0 || e.Addrs[n-1] != s.Addr {
			e.Addrs = append(e.Addrs, s.Addr)
		}
	}
	return Symbol{}, e
}

// Symbol is one name of the kernel. Name and everything else were written by
// the guest: Name may hold any bytes but NUL.
type Symbol struct {
	Name string
	Addr mem.VA
	// Size is the distance to the next symbol of another address: an upper
	// bound of the object's size, padding included. 0 if there is no next one.
	// Symbols of modules carry the size that the compiler noted.
	Size uint64
	// Type is nm's letter: T t for text, D d data, R r read-only data, B b
	// zeroed data, A a absolute, W w V v weak, and so on.
	Type byte
	// Absolute says that Addr is a number, not an address to read: on x86-64
	// up to Linux 6.14 all per-CPU variables are offsets from a CPU's area.
	Absolute bool
	// PerCPU says that Addr lies between __per_cpu_start and __per_cpu_end:
	// the variable of CPU i is at Addr + __per_cpu_offset[i].
	PerCPU bool
}

// Symbols is what every set of symbols in this package can do.
type Symbols interface {
	// Lookup finds a symbol by its exact name; of several, the first.
	Lookup(name string) (Symbol, error)
	// Nearest finds the symbol that va lies in and the offset within it.
	Nearest(va mem.VA) (Symbol, uint64, error)
}

func noName(name string) error {
	return fmt.Errorf("look up symbol %q: %w", name, ErrNoSymbol)
}

func noAddr(va mem.VA) error {
	return fmt.Errorf("find the symbol of %#x: %w", va, ErrNoSymbol)
}
