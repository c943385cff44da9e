package procram

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/mem"
)

// Way is how to get at RAM.
type Way int

// The ways, the best first.
const (
	Best Way = iota
	Map      // map the files that hold it
	Copy     // copy by process_vm_readv
)

// RAM is guest RAM that was connected to by one of the ways.
type RAM struct {
	// How is the way in words.
	How string

	pid    int
	alive  *os.File
	blocks []Block
	mapped []*ramfile.File // one a block; nil: it is copied
	files  []*os.File      // behind blocks that are copied
	pages  *os.File        // pagemap, if those have files
}

// Connect opens the best way to the blocks, or the one that is asked for. alive
// is the pidfd of the process, or nil; it stays the caller's.
func Connect(pid int, alive *os.File, blocks []Block, way Way, writable bool) (*RAM, error) {
	r := &RAM{pid: pid, alive: alive, blocks: blocks}
	if way != Copy {
		err := r.mapFiles(writable)
		if err == nil {
			r.How = "mmap " + blocks[0].Mapping.Path
			return r, nil
		}
		if way == Map {
			return nil, Denied(pid, err)
		}
	}
	r.How = "process_vm_readv"
	for _, b := range blocks {
		var f *os.File
		if !b.Mapping.Anonymous() {
			// Untouched pages are read from the file, where we may.
			f, _ = b.Open(pid, false)
		}
		r.files = append(r.files, f)
	}
	if slices.ContainsFunc(r.files, func(f *os.File) bool { return f != nil }) {
		r.pages, _ = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	}
	// Whether we may read at all shows at an address where nothing is: a page of
	// RAM might be allocated for the question.
	m := &Copier{pid: pid, alive: alive, segs: []seg{{size: mem.PageSize}}}
	if _, err := m.one(make([]byte, 1), 0); !errors.Is(err, unix.EFAULT) {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// mapFiles maps the files of all blocks. Private mappings do not count: what
// the guest writes is in the process, not in the file.
func (r *RAM) mapFiles(writable bool) error {
	for _, b := range r.blocks {
		if b.Mapping.Anonymous() || !b.Mapping.Shared() {
			return errors.New("guest RAM is private to its process: start it with a shared memory backend for the fastest route")
		}
	}
	for _, b := range r.blocks {
		f, err := b.Open(r.pid, writable)
		if err != nil {
			return r.unmap(err)
		}
		m, err := ramfile.Map(f, writable)
		if err != nil {
			return r.unmap(err)
		}
		r.mapped = append(r.mapped, m)
	}
	return nil
}

func (r *RAM) unmap(err error) error {
	for _, m := range r.mapped {
		m.Close()
	}
	r.mapped = nil
	return err
}

// Mapped reports whether the RAM is mapped, else it is copied.
func (r *RAM) Mapped() bool { return r.mapped != nil }

// Memory gives mapped RAM with its blocks at the given places. It must be closed
// before the RAM is.
func (r *RAM) Memory(places []Place) (*ramfile.Memory, error) {
	var out []ramfile.Place
	for _, p := range places {
		out = append(out, ramfile.Place{PA: p.PA, File: r.mapped[p.Block], Off: r.blocks[p.Block].Off() + p.Off, Size: p.Size})
	}
	return ramfile.New(out)
}

// Copier gives RAM that is copied with its blocks at the given places.
func (r *RAM) Copier(places []Place) *Copier {
	m := &Copier{pid: r.pid, alive: r.alive, pages: r.pages}
	for _, p := range places {
		b := r.blocks[p.Block]
		s := seg{pa: p.PA, size: p.Size, hva: b.HVA + p.Off, file: r.files[p.Block], off: b.Off() + p.Off}
		if s.file != nil {
			s.seen = make([]atomic.Uint64, s.size/(64*mem.PageSize)+1)
		}
		m.segs = append(m.segs, s)
	}
	return m
}

// Close lets go of the RAM. No reader may be at work.
func (r *RAM) Close() error {
	r.unmap(nil)
	for _, f := range append(r.files, r.pages) {
		if f != nil {
			f.Close()
		}
	}
	r.files, r.pages = nil, nil
	return nil
}
