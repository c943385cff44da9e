package ramfile

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// Place is a run of bytes of a file that holds RAM, and the guest-physical
// address where it lies. Without a File it is the given Bytes, and without those,
// zeros.
type Place struct {
	PA        mem.PA
	File      *File
	Off, Size uint64 // in File
	Bytes     []byte
}

// mapped lets Memory embed a mem.RAM without a field that would hide the method
// RAM, by which readers know mapped memory.
type mapped = mem.RAM

// Memory is guest RAM that lies in mapped files. It does not own the files.
type Memory struct {
	*mapped
	places []*placed
	zeros  [][]byte
}

type placed struct {
	Place
	data  []byte
	holes *mem.Holes
}

// New puts parts of files at their guest-physical addresses.
func New(places []Place) (*Memory, error) {
	m := &Memory{}
	var segs []mem.Segment
	for _, pl := range places {
		p := &placed{Place: pl}
		switch {
		case pl.File == nil && pl.Bytes != nil:
			p.data, p.Size = pl.Bytes, uint64(len(pl.Bytes))
		case pl.File == nil:
			z, err := zeros(pl.Size)
			if err != nil {
				m.Close()
				return nil, err
			}
			p.data, m.zeros = z, append(m.zeros, z)
		default:
			size := pl.File.Size()
			if pl.Off > size || pl.Size > size-pl.Off {
				m.Close()
				return nil, fmt.Errorf("%s has %d bytes, RAM at offset %#x needs %d", pl.File.Name(), size, pl.Off, pl.Size)
			}
			p.data = pl.File.data[pl.Off : pl.Off+pl.Size]
			// Where the file's pages are its only storage (tmpfs, also under an
			// overlay), touching a hole allocates a page for good.
			p.holes = mem.NewHoles(pl.Size, p.readAt)
		}
		segs = append(segs, mem.Segment{PA: pl.PA, Data: p.data, Holes: p.holes})
		m.places = append(m.places, p)
	}
	ram, err := mem.NewRAM(segs...)
	if err != nil {
		m.Close()
		return nil, err
	}
	m.mapped = ram
	sort.Slice(m.places, func(i, j int) bool { return m.places[i].PA < m.places[j].PA })
	if _, err := m.Extents(); err != nil { // learns the holes
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close frees what is not part of a file. No reader may be at work.
func (m *Memory) Close() error {
	var err error
	for _, z := range m.zeros {
		err = errors.Join(err, unix.Munmap(z))
	}
	m.zeros = nil
	return err
}

// zeros maps n bytes that read as zeros and cost no memory.
func zeros(n uint64) ([]byte, error) {
	if n == 0 || n > 1<<46 {
		return nil, fmt.Errorf("a run of %d zero bytes is too large to map", n)
	}
	return unix.Mmap(-1, 0, int(n), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
}

// readAt reads pages that are not known to hold data.
func (p *placed) readAt(b []byte, off int64) (n int, err error) {
	n, err = p.File.ReadAt(b, int64(p.Off)+off)
	if err == io.EOF && n < len(b) { // the file was cut short
		return n, io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, err
	}
	return n, nil
}

// Extents lists the parts that hold data now.
func (m *Memory) Extents() ([]mem.Range, error) {
	var out []mem.Range
	for _, p := range m.places {
		if p.File == nil {
			if p.Bytes != nil {
				out = add(out, mem.Range{Start: p.PA, Size: p.Size})
			}
			continue
		}
		s, err := p.File.spans(p.Off, p.Off+p.Size)
		if err != nil {
			return nil, err
		}
		last := uint64(0)
		for _, x := range s {
			from, to := x.Off-p.Off, x.End-p.Off
			out = add(out, mem.Range{Start: p.PA + mem.PA(from), Size: to - from})
			if p.File.seek {
				p.holes.MarkHole(last, from-last)
				p.holes.MarkData(from, to-from)
				last = to
			}
		}
		if p.File.seek {
			p.holes.MarkHole(last, p.Size-last)
		}
	}
	return out, nil
}

// add appends r, joined to the last range if they touch.
func add(l []mem.Range, r mem.Range) []mem.Range {
	if n := len(l); n > 0 && l[n-1].End() == r.Start {
		l[n-1].Size += r.Size
		return l
	}
	return append(l, r)
}

// Write copies p into the files, which must have been mapped for writing. It is
// not named WritePhys, so that only a type that means to is a mem.PhysWriter.
func (m *Memory) Write(p []byte, pa mem.PA) (n int, err error) {
	fault := mem.Guard(func() error {
		for n < len(p) {
			at := pa + mem.PA(n)
			i := sort.Search(len(m.places), func(i int) bool { return m.places[i].PA+mem.PA(m.places[i].Size) > at })
			if i == len(m.places) || m.places[i].PA > at {
				return &mem.FaultError{Op: "write", Addr: uint64(at), Err: mem.ErrNoRAM}
			}
			off := uint64(at - m.places[i].PA)
			n += copy(m.places[i].data[off:], p[n:])
		}
		return nil
	})
	if fault == nil {
		return n, nil
	}
	if f, ok := fault.(*mem.FaultError); ok && f.Space == "" {
		return n, fault
	}
	return n, &mem.FaultError{Op: "write", Addr: uint64(pa) + uint64(n), Err: fault}
}
