package block

import (
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is a raw image or a block device of the host, opened for reading. Its
// content is taken as it lies there: no image format is looked for, since the
// guest that owns the disk could write one.
type File struct {
	f    *os.File
	raw  syscall.RawConn // of f: holds off a Close
	size int64
}

// OpenFile opens a raw image or a block device.
func OpenFile(path string) (*File, error) {
	// Not blocking: a FIFO of that name must not hang us. A regular file and a
	// block device do not care.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	d, err := NewFile(f)
	if err != nil {
		f.Close()
	}
	return d, err
}

// NewFile makes f a device; the File owns it unless there is an error. Its size is
// what it is now: an image that grows later is read up to there.
func NewFile(f *os.File) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		return &File{f, raw, st.Size()}, nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		// The end of a block device is its size; ReadAt does not care for the place.
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
		}
		return &File{f, raw, size}, nil
	default:
		return nil, fmt.Errorf("%s is neither a disk image nor a block device (%v)", f.Name(), mode.Type())
	}
}

// Name is the path that the file was opened by.
func (f *File) Name() string { return f.f.Name() }

// Size is what it was when the file was opened, in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt reads from the file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(off, len(p), f.size)
	if n == 0 {
		return 0, end
	}
	n, err := f.f.ReadAt(p[:n], off)
	if err == nil {
		err = end
	}
	return n, err
}

// ReadNow reads what is in the host's page cache: it does not wait for the disk. It reports whether it read all of p.
func (f *File) ReadNow(p []byte, off int64) bool {
	if len(p) == 0 || off < 0 || off > f.size || int64(len(p)) > f.size-off {
		return false
	}
	x := [1]unix.Iovec{{Base: &p[0]}}
	x[0].SetLen(len(p))
	n := 0
	err := f.raw.Control(func(fd uintptr) {
		n, _ = preadvNow(int(fd), x[:], off)
	})
	return err == nil && n == len(p)
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }
