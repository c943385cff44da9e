package mem

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Guard runs f so that a fault of the host on mapped guest memory (SIGBUS: the
// backing file was truncated, its disk failed, its tmpfs is full) ends f with
// an ErrUnreachable instead of ending the process.
//
// The protection is of the calling goroutine alone. A goroutine that f starts
// and that reads through a Space needs a Guard of its own. ReadPhys of every
// source in vmscope guards itself.
func Guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = faultOf(r)
		}
	}()
	return f()
}

// faultOf turns the panic of a memory fault into an error and passes on every
// other panic.
func faultOf(r any) error {
	re, ok := r.(runtime.Error)
	if !ok {
		panic(r)
	}
	// Only faults at an address carry one (runtime.errorAddressString).
	a, ok := re.(interface{ Addr() uintptr })
	if !ok {
		panic(r)
	}
	return &FaultError{
		Op: "read", Space: "host", Addr: uint64(a.Addr()),
		Err: fmt.Errorf("%w: host memory that maps the guest is gone (%v)", ErrUnreachable, re),
	}
}
