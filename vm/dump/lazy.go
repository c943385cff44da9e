package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"vmscope/mem"
	"vmscope/vm"
)

// source is a dump's file, or what looks like one.
type source interface {
	io.ReaderAt
	Name() string
	Size() uint64
	Close() error
}

// unit is a run of guest memory that a dump holds in one piece.
type unit struct {
	pa    mem.PA
	size  uint64 // bytes of memory, at most maxUnit if packed
	src   source
	off   uint64 // in src
	len   uint64 // bytes in src
	codec codec
	// deltas are what changed since, the last first, of one size (xbzrle).
	deltas []*delta
}

// maxUnit bounds what is unpacked at once: the largest page of any machine
// that is dumped (Arm), and the block of framed Snappy.
const maxUnit = 64 << 10

// store knows where a packed dump has its memory. It is safe for concurrent use.
type store interface {
	// find gives the unit that holds pa. Without one the error is the reason.
	find(pa mem.PA) (unit, error)
	ranges() []mem.Range
	// extents are the units that may hold anything but zeros.
	extents() ([]mem.Range, error)
}

// lazy is a machine whose memory lies packed in a file: it is unpacked where
// it is read, and the units that were read last are kept.
type lazy struct {
	store   store
	info    vm.Info
	regs    []vm.Registers
	extents func() ([]mem.Range, error)
	unpack  *unpacker
	close   func() error
}

// newLazy owns what close closes from then on.
func newLazy(path, route, layout string, s store, close func() error) *lazy {
	p := &lazy{store: s, extents: sync.OnceValues(s.extents), unpack: newUnpacker(), close: close}
	p.info = vm.Info{Name: filepath.Base(path), VMM: "dump", Route: route + " " + path, Layout: layout}
	for _, r := range s.ranges() {
		p.info.RAM += r.Size
	}
	return p
}

// ReadPhys unpacks what holds the bytes.
func (m *lazy) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	for n < len(p) {
		at := pa + mem.PA(n)
		u, err := m.store.find(at)
		if err != nil {
			return n, &mem.FaultError{Op: "read", Addr: uint64(at), Err: err}
		}
		skip := uint64(at - u.pa)
		k := int(min(uint64(len(p)-n), u.size-skip))
		if err := m.unpack.read(p[n:n+k], u, skip); err != nil {
			err = fmt.Errorf("%w: %q, %d bytes at offset %#x: %w", mem.ErrUnreachable, u.src.Name(), u.len, u.off, err)
			return n, &mem.FaultError{Op: "read", Addr: uint64(at), Err: err}
		}
		n += k
	}
	return n, nil
}

// Ranges lists the RAM.
func (m *lazy) Ranges() []mem.Range { return append([]mem.Range(nil), m.store.ranges()...) }

// Extents lists what may hold anything but zeros.
func (m *lazy) Extents() ([]mem.Range, error) { return m.extents() }

// Info describes the dump.
func (m *lazy) Info() vm.Info { return m.info }

// CPUs gives the registers that the dump holds.
func (m *lazy) CPUs(context.Context) ([]vm.Registers, error) { return registersOf(m.info, m.regs) }

// Close closes the file. No reader may be at work.
func (m *lazy) Close() error { return m.close() }

func registersOf(i vm.Info, regs []vm.Registers) ([]vm.Registers, error) {
	if len(regs) == 0 {
		return nil, fmt.Errorf("registers of %q: the dump holds none: %w", i.Name, errors.ErrUnsupported)
	}
	return regs, nil
}
