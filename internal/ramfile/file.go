// Package ramfile maps files that hold guest RAM: the shared RAM of a running
// machine, or a dump. It takes care that reading never makes the host allocate
// memory for parts of the file that hold nothing.
package ramfile

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// File is a file mapped into this process, shared with whoever else maps it.
type File struct {
	f    *os.File
	data []byte
	// seek: SEEK_DATA tells data from holes (not on hugetlbfs and ramfs, which
	// call everything data).
	seek bool
}

// Magic numbers of statfs(2) that x/sys lacks in one place.
const (
	ramfsMagic     = 0x858458f6
	hugetlbfsMagic = 0x958458f6
)

// Map maps all of f, for writing too if asked. The File owns f from then on,
// also if Map fails.
func Map(f *os.File, writable bool) (*File, error) {
	m, err := mapFile(f, writable)
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func mapFile(f *os.File, writable bool) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file (%v)", f.Name(), st.Mode().Type())
	case size == 0:
		return nil, fmt.Errorf("%s is empty", f.Name())
	case size != int64(int(size)):
		return nil, fmt.Errorf("%s: %d bytes are more than this host can map", f.Name(), size)
	}
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	// Without MAP_NORESERVE huge pages would be set aside for all of the file, of
	// which the guest may use a part.
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), prot, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	m := &File{f: f, data: data, seek: true}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err == nil {
		m.seek = uint32(fs.Type) != ramfsMagic && uint32(fs.Type) != hugetlbfsMagic
	}
	return m, nil
}

// Size is that of the file when it was mapped, in bytes.
func (f *File) Size() uint64 { return uint64(len(f.data)) }

// Name is the path that the file was opened by.
func (f *File) Name() string { return f.f.Name() }

// ReadAt reads by system call: it allocates nothing for holes and cannot fault.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Close unmaps the file. No reader may be at work.
func (f *File) Close() error {
	err := unix.Munmap(f.data)
	f.data = nil
	return errors.Join(err, f.f.Close())
}

// Span is a run of bytes [Off, End) of a file.
type Span struct{ Off, End uint64 }

// spans lists the parts of [off, end) that may hold data.
func (f *File) spans(off, end uint64) ([]Span, error) {
	if !f.seek {
		return []Span{{off, end}}, nil
	}
	return Data(f.f, off, end)
}

// Data lists the parts of [off, end) of f that may hold data, by SEEK_DATA. A
// file system that cannot tell calls everything data.
func Data(f *os.File, off, end uint64) ([]Span, error) {
	var out []Span
	fd := int(f.Fd())
	for off < end {
		d, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data behind off
			break
		}
		if err != nil {
			if len(out) == 0 {
				return []Span{{off, end}}, nil
			}
			return nil, fmt.Errorf("%w: find data in %s: %w", mem.ErrUnreachable, f.Name(), err)
		}
		if uint64(d) >= end {
			break
		}
		h, err := unix.Seek(fd, d, unix.SEEK_HOLE)
		if err != nil || h <= d { // a hole was punched in between: go on behind it
			h = d + mem.PageSize
		}
		out = append(out, Span{uint64(d), min(uint64(h), end)})
		off = uint64(h)
	}
	return out, nil
}
