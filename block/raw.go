package block

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

// Raw is a raw image or a block device of the host, opened for writing too. It is safe for concurrent use.
//
// What is written is in the host's page cache, and durable after Flush.
type Raw struct {
	File
	failed  atomic.Pointer[error] // of a flush; see Flush
	flushes hot.Pace
	noPunch atomic.Bool // the file system cannot
	noZero  atomic.Bool
	noNow   atomic.Bool
}

// OpenRaw opens a raw image or a block device for reading and writing.
func OpenRaw(path string) (*Raw, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	d, err := NewRaw(f)
	if err != nil {
		f.Close()
	}
	return d, err
}

// NewRaw is NewFile for a file that was opened for reading and writing.
func NewRaw(f *os.File) (*Raw, error) {
	d, err := NewFile(f)
	if err != nil {
		return nil, err
	}
	return &Raw{File: *d}, nil
}

// Lock is the function Lock for the image, until Close.
func (r *Raw) Lock() error { return Lock(r.f) }

// check refuses what does not lie inside of the device: a write must not make an image grow.
func (r *Raw) check(off, n int64) error {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return fmt.Errorf("%w: %d bytes from %d on, of %d", ErrOutOfRange, n, off, r.size)
	}
	return nil
}

// WriteAt writes all of p or gives an error.
func (r *Raw) WriteAt(p []byte, off int64) (int, error) {
	v := [1][]byte{p}
	n, err := r.vec(v[:], off, pwritev)
	if no, ok := err.(unix.Errno); ok {
		err = &os.PathError{Op: "write", Path: r.f.Name(), Err: no}
	}
	return n, err
}

// iovecs are the vectors of one system call, at most IOV_MAX.
type iovecs [1024]unix.Iovec

var iovecPool = sync.Pool{New: func() any { return new(iovecs) }}

// fill takes the bytes of v behind the first skip.
func (x *iovecs) fill(v [][]byte, skip int) []unix.Iovec {
	n := 0
	for _, b := range v {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		if n == len(x) {
			break
		}
		x[n].Base = &b[skip]
		x[n].SetLen(len(b) - skip)
		n, skip = n+1, 0
	}
	return x[:n]
}

func total(v [][]byte) (n int64) {
	for _, b := range v {
		n += int64(len(b))
	}
	return n
}

// vec moves all of v by call, which does one system call.
func (r *Raw) vec(v [][]byte, off int64, call func(fd int, x []unix.Iovec, off int64) (int, error)) (int, error) {
	want := total(v)
	if err := r.check(off, want); err != nil {
		return 0, err
	}
	fd := int(r.f.Fd())
	x := iovecPool.Get().(*iovecs)
	defer iovecPool.Put(x)
	done := 0
	for int64(done) < want {
		n, err := call(fd, x.fill(v, done), off+int64(done))
		if n > 0 {
			done += n
			continue
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		default:
			return done, io.ErrUnexpectedEOF
		}
	}
	return done, nil
}

// ReadVecAt fills all the slices of v, in their order, from off on. The memory may be such that it faults: that is an
// error, EFAULT.
func (r *Raw) ReadVecAt(v [][]byte, off int64) (int, error) { return r.vec(v, off, preadv) }

// WriteVecAt writes all the slices of v, in their order, from off on. Memory that faults is an error, EFAULT.
func (r *Raw) WriteVecAt(v [][]byte, off int64) (int, error) { return r.vec(v, off, pwritev) }

// ReadVecNow reads like ReadVecAt as far as that takes no I/O. What is missing is not an error.
func (r *Raw) ReadVecNow(v [][]byte, off int64) (int, error) {
	if r.noNow.Load() {
		return 0, nil
	}
	n, err := r.vec(v, off, preadvNow)
	switch err {
	case unix.EOPNOTSUPP, unix.ENOSYS:
		r.noNow.Store(true)
		return n, nil
	case unix.EAGAIN, io.ErrUnexpectedEOF:
		return n, nil
	}
	return n, err
}

// Flush makes durable what was written before. Once it failed it always fails: the kernel tells of a lost page once and
// takes the page for clean from then on, so that a later success would be a lie.
func (r *Raw) Flush() error {
	if e := r.failed.Load(); e != nil {
		return *e
	}
	for {
		_, no := r.flushes.Syscall(unix.SYS_FDATASYNC, r.f.Fd(), 0, 0)
		if no == unix.EINTR {
			continue
		}
		if no == 0 {
			return nil
		}
		var err error = &os.PathError{Op: "fdatasync", Path: r.f.Name(), Err: no}
		r.failed.CompareAndSwap(nil, &err)
		return err
	}
}

// Discard says that nobody wants n bytes at off any more. It frees their space where the host can; if not, nothing
// happens.
func (r *Raw) Discard(off, n int64) error {
	if err := r.check(off, n); err != nil || n == 0 {
		return err
	}
	if err := r.punch(off, n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// WriteZeroes makes n bytes at off read as zeroes. unmap: their space may be freed.
func (r *Raw) WriteZeroes(off, n int64, unmap bool) error {
	if err := r.check(off, n); err != nil || n == 0 {
		return err
	}
	if unmap {
		if err := r.punch(off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if err := r.fallocate(&r.noZero, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	for n > 0 {
		m := min(n, int64(len(zeroes)))
		if _, err := r.f.WriteAt(zeroes[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

var zeroes [256 << 10]byte

func (r *Raw) punch(off, n int64) error {
	return r.fallocate(&r.noPunch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (r *Raw) fallocate(no *atomic.Bool, mode uint32, off, n int64) error {
	if no.Load() {
		return errors.ErrUnsupported
	}
	for {
		switch err := unix.Fallocate(int(r.f.Fd()), mode, off, n); err {
		case unix.EINTR:
		case nil:
			return nil
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV:
			no.Store(true)
			return errors.ErrUnsupported
		case unix.EINVAL: // a block device whose blocks are larger than this piece
			return errors.ErrUnsupported
		default:
			return &os.PathError{Op: "fallocate", Path: r.f.Name(), Err: err}
		}
	}
}
