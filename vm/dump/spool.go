package dump

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/mem"
)

const (
	maxInMemory = 256 << 20 // bytes that are unpacked into memory, but for pages of zeros
	maxUnpacked = 1 << 40   // bytes that are unpacked, with pages of zeros
	askEvery    = 16 << 20  // bytes that are written before it is asked again how much room there is
)

// room is the error of a file system that does not hold what would be written.
type room struct {
	dir        string
	has, needs uint64 // bytes; needs 0: more
	err        error  // why it cannot be told; nil: it can
}

func (e *room) Unwrap() error { return e.err }

func (e *room) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	if e.needs > 0 {
		return fmt.Sprintf("%s has %d MiB free, of at least %d that it takes", e.dir, e.has>>20, e.needs>>20)
	}
	return fmt.Sprintf("%s has but %d MiB left", e.dir, e.has>>20)
}

// spool is a file that nobody else sees, and that is gone with the last who has it open: in
// memory while it is small, then on disk. Pages of zeros are holes.
type spool struct {
	*os.File
	inMemory, limit uint64
	least           uint64 // bytes that will be written, as far as that is known
	dir             string // where it is on disk; empty: it is in memory
	size            uint64
	data            uint64 // of it, that are not holes
	asked           uint64 // data when the room was asked for last
}

func newSpool(name string, least uint64) (*spool, error) {
	fd, err := unix.MemfdCreate("vmscope dump", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory to unpack into: %w", err)
	}
	return &spool{File: os.NewFile(uintptr(fd), name), inMemory: maxInMemory, limit: maxUnpacked, least: least}, nil
}

// spoolDir is where large files go: /tmp may be memory, and then small.
func spoolDir() string { return cmp.Or(os.Getenv("TMPDIR"), "/var/tmp") }

// Write appends p, of which all but the last are whole pages.
func (s *spool) Write(p []byte) (int, error) {
	if s.size+uint64(len(p)) > s.limit {
		return 0, errTooLarge
	}
	n := 0
	for n < len(p) {
		page := p[n:min(len(p), n+mem.PageSize)]
		if !bytes.Equal(page, zeros[:len(page)]) {
			if err := s.reserve(uint64(len(page))); err != nil {
				return n, err
			}
			if _, err := s.WriteAt(page, int64(s.size)); err != nil {
				return n, s.full(err)
			}
		}
		n += len(page)
		s.size += uint64(len(page))
	}
	return n, nil
}

// reserve makes sure that there is room for n bytes more.
func (s *spool) reserve(n uint64) error {
	s.data += n
	switch {
	case s.dir == "" && s.data > s.inMemory:
		return s.move()
	case s.dir != "" && s.data-s.asked >= askEvery:
		s.asked = s.data
		return s.ask(0)
	}
	return nil
}

// ask leaves to others a twentieth of the file system, but not more than 1 GiB.
func (s *spool) ask(needs uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return &room{dir: s.dir, err: &os.PathError{Op: "ask for room in", Path: s.dir, Err: err}}
	}
	unit := uint64(fs.Bsize)
	free, others := fs.Bavail*unit, min(fs.Blocks*unit/20, 1<<30)
	if free < needs+others+askEvery {
		return &room{s.dir, free, needs, nil}
	}
	return nil
}

// full tells an error of writing as what it means.
func (s *spool) full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &room{dir: cmp.Or(s.dir, "memory"), err: err}
	}
	return err
}

// move goes on on disk.
func (s *spool) move() error {
	s.dir = spoolDir()
	if err := s.ask(max(s.least, s.data)); err != nil {
		return err
	}
	f, err := unnamed(s.dir, s.Name())
	if err != nil {
		return &room{dir: s.dir, err: err}
	}
	was := s.File
	s.File, s.asked = f, s.data
	spans, err := ramfile.Data(was, 0, s.size)
	for _, x := range spans {
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(f, int64(x.Off)), io.NewSectionReader(was, int64(x.Off), int64(x.End-x.Off)))
		}
	}
	return errors.Join(s.full(err), was.Close())
}

// unnamed makes a file without a name in a directory: there is nothing to remove, however we end.
func unnamed(dir, name string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), name), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, &os.PathError{Op: "create in", Path: dir, Err: err}
	}
	// A file system that has no such files, as NFS.
	f, err := os.CreateTemp(dir, "vmscope-*")
	if err == nil {
		if err = os.Remove(f.Name()); err != nil {
			f.Close()
		}
	}
	return f, err
}

// done gives the file as a source.
func (s *spool) done() (source, error) {
	if err := s.Truncate(int64(s.size)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return plain(s.File)
}
