package memtest

import (
	"sync"

	"vmscope/mem"
)

// Bytes is guest memory at Base that is not mapped as far as readers know: it
// takes them down the slow paths. It counts what it is asked for.
type Bytes struct {
	Base mem.PA
	Data []byte

	mu    sync.Mutex
	reads int
}

// Reads is how often ReadPhys was called.
func (b *Bytes) Reads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reads
}

// ReadPhys copies from Data.
func (b *Bytes) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	if off := uint64(pa - b.Base); off < uint64(len(b.Data)) {
		n = copy(p, b.Data[off:])
	}
	if n < len(p) {
		return n, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: mem.ErrNoRAM}
	}
	return n, nil
}

// Script is a guest that answers reads from a list, whatever the address: the
// most hostile memory there is, and the fastest to fuzz a walker with. When the
// list ends there is no more RAM. It is for one goroutine.
type Script struct {
	Answers []byte
	Reads   int // how often it was asked
}

// ReadPhys gives the next answers.
func (s *Script) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	s.Reads++
	n = copy(p, s.Answers)
	s.Answers = s.Answers[n:]
	if n < len(p) {
		return n, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: mem.ErrNoRAM}
	}
	return n, nil
}
