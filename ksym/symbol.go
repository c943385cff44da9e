package ksym

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// ErrNoSymbol says that a sound table has no symbol of that name, or none at or
// below that address.
var ErrNoSymbol = errors.New("no such symbol")

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
