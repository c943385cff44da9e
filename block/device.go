package block

import (
	"fmt"
	"io"
)

// clip says how many of n bytes from off on a device of size bytes has; the
// error is the one that a read of them ends with.
func clip(off int64, n int, size int64) (int, error) {
	switch {
	case off < 0 || off > size:
		return 0, fmt.Errorf("%w: offset %d of %d", ErrOutOfRange, off, size)
	case int64(n) > size-off:
		return int(size - off), io.EOF
	}
	return n, nil
}

// inside reports whether [off, off+n) lies in [0, size), whatever the numbers are.
func inside(off, n, size int64) bool { return off >= 0 && n >= 0 && off <= size && n <= size-off }

// Section is a run of bytes of a device: a partition.
type Section struct {
	dev Device
	off int64
	len int64
}

// NewSection gives n bytes of dev from off on. All of them must be there: else
// the error is ErrOutOfRange.
func NewSection(dev Device, off, n int64) (*Section, error) {
	if !inside(off, n, dev.Size()) {
		return nil, fmt.Errorf("%w: %d bytes from %d on, of %d", ErrOutOfRange, n, off, dev.Size())
	}
	return &Section{dev, off, n}, nil
}

// Size is the section's length in bytes.
func (s *Section) Size() int64 { return s.len }

// ReadAt reads the section's bytes; off counts from the section's start.
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(off, len(p), s.len)
	if n == 0 {
		return 0, end
	}
	n, err := s.dev.ReadAt(p[:n], s.off+off)
	if err == nil || err == io.EOF && n == len(p) {
		err = end
	}
	return n, err
}

// Bytes is a device that lies in memory: what a test builds, or a small image.
type Bytes []byte

// Size is the number of bytes.
func (b Bytes) Size() int64 { return int64(len(b)) }

// ReadAt copies from b.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	n, err := clip(off, len(p), int64(len(b)))
	if n > 0 {
		copy(p[:n], b[off:])
	}
	return n, err
}

// ReadFull fills p from off on, or gives an error: a device that ends before
// that is one, too.
func ReadFull(dev Device, p []byte, off int64) error {
	n, err := dev.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}
