package mem

import (
	"errors"
	"fmt"
)

// The classes of failure, kept apart because each asks for another answer.
// A fourth, unsupported, is errors.ErrUnsupported: this source lacks it.
var (
	// ErrNotMapped says that the page tables map nothing at a virtual address.
	ErrNotMapped = errors.New("not mapped")
	// ErrNoRAM says that the guest has no memory at a physical address, or
	// that the dump does not hold it.
	ErrNoRAM = errors.New("no RAM at this address")
	// ErrUnreachable says that the source failed: I/O error, guest gone.
	ErrUnreachable = errors.New("source unreachable")
	// ErrInconsistent says that structures of the guest contradict themselves.
	// On a live guest a second look may find them sound; if not, it is
	// evidence.
	ErrInconsistent = errors.New("inconsistent guest structures")
)

// FaultError is a failed access to guest memory, with its coordinates.
type FaultError struct {
	Op    string // "read", "write", "translate"
	Space string // name of the address space; "" or "physical" for physical addresses
	Addr  uint64 // the first address that failed
	Level int    // of the page table where a translation ended; 0: no translation
	Entry uint64 // the entry found there
	Err   error
}

// Error names space and address, and for a translation level and entry.
func (e *FaultError) Error() string {
	space := e.Space
	if space == "" {
		space = "physical"
	}
	if e.Level > 0 {
		return fmt.Sprintf("%s %s address %#x: %v (page table level %d, entry %#x)", e.Op, space, e.Addr, e.Err, e.Level, e.Entry)
	}
	return fmt.Sprintf("%s %s address %#x: %v", e.Op, space, e.Addr, e.Err)
}

// Unwrap gives the class of the failure.
func (e *FaultError) Unwrap() error { return e.Err }
