package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/internal/hot"
)

// File is a raw image, or a block device of the host, as an export's device. It is safe for concurrent use.
//
// What Flush and FUA answer is durable (fdatasync, RWF_DSYNC). Where that fails once, it fails for ever: Linux forgets
// after the first error which pages it could not write.
type File struct {
	f        *os.File
	fd       int
	size     int64
	writable bool
	block    bool // a block device

	// What the file system turned out not to know.
	noPunch, noZeroRange, noDsync atomic.Bool
	// full says that there are no holes, so that none have to be looked for.
	full   atomic.Bool
	failed atomic.Pointer[error] // of the first flush that failed

	flushes hot.Pace
}

// OpenFile opens a raw image or a block device.
func OpenFile(name string, readOnly bool) (*File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return nil, err
	}
	d, err := NewFile(f, readOnly)
	if err != nil {
		f.Close()
	}
	return d, err
}

// NewFile makes a device of an open file, which it owns from then on. Its size is the file's at this moment.
func NewFile(f *os.File, readOnly bool) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &File{f: f, fd: int(f.Fd()), size: st.Size(), writable: !readOnly}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			d.full.Store(sys.Blocks*512 >= d.size)
		}
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		d.block = true
		d.full.Store(true) // there is no SEEK_HOLE for these
		if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, fmt.Errorf("nbd: size of %s: %w", f.Name(), err)
		}
	default:
		return nil, fmt.Errorf("nbd: %s is neither a file nor a block device: %w", f.Name(), errors.ErrUnsupported)
	}
	return d, nil
}

// Close closes the file. Nothing may use d then.
func (d *File) Close() error { return d.f.Close() }

// Lock is block.Lock for the image, until Close; nothing for one that is only read.
func (d *File) Lock() error {
	if !d.writable {
		return nil
	}
	return block.Lock(d.f)
}

// Size is that of the file when it was opened.
func (d *File) Size() int64 { return d.size }

// MultiConn is true: all connections share the page cache.
func (d *File) MultiConn() bool { return true }

// ReadOnly tells how it was opened.
func (d *File) ReadOnly() bool { return !d.writable }

// File gives the file itself.
func (d *File) File(off int64, n int) (*os.File, int64, bool) { return d.f, off, true }

// ReadAt reads from the file.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(d.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, d.error("read", off+int64(n), len(p)-n, err)
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

// ReadNow reads what is in the host's page cache: it does not wait for the disk. It reports whether it read all of p.
func (d *File) ReadNow(p []byte, off int64) bool {
	if len(p) == 0 {
		return false
	}
	v := [1]unix.Iovec{{Base: &p[0]}}
	v[0].SetLen(len(p))
	n, no := hot.Now(unix.SYS_PREADV2, uintptr(d.fd), uintptr(unsafe.Pointer(&v)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	return no == 0 && int(n) == len(p)
}

// WriteAt writes to the file.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, no := hot.Syscall(unix.SYS_PWRITE64, uintptr(d.fd), uintptr(unsafe.Pointer(&p[n])), uintptr(len(p)-n), uintptr(off)+uintptr(n), 0, 0)
		if no == unix.EINTR {
			continue
		}
		if no != 0 {
			return n, d.error("write", off+int64(n), len(p)-n, no)
		}
		n += int(m)
	}
	return n, nil
}

// WritePayload writes what comes, in pieces.
func (d *File) WritePayload(p *Payload, off int64, f Flags) error {
	if !d.writable {
		return unix.EPERM
	}
	if f&FUA != 0 && p.Len() <= NextMax && !d.noDsync.Load() {
		return d.writeDsync(p, off)
	}
	for p.Len() > 0 {
		b, err := p.Next(NextMax)
		if err != nil {
			return err
		}
		if _, err := d.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if f&FUA != 0 {
		return d.Flush()
	}
	return nil
}

// writeDsync writes one piece, durable on its own.
func (d *File) writeDsync(p *Payload, off int64) error {
	b, err := p.Next(NextMax)
	if err != nil {
		return err
	}
	if err := d.flushFailed(); err != nil {
		return err
	}
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	// The offset is in two halves, on 64 bits all in the first.
	m, no := hot.Syscall(unix.SYS_PWRITEV2, uintptr(d.fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_DSYNC)
	n := 0
	switch no {
	case 0:
		if n = int(m); n == len(b) {
			return nil
		}
	case unix.EOPNOTSUPP, unix.ENOSYS:
		d.noDsync.Store(true)
	case unix.EINTR:
	default:
		return d.error("write", off, len(b), no)
	}
	if _, err := d.WriteAt(b[n:], off+int64(n)); err != nil {
		return err
	}
	return d.Flush()
}

// Flush makes what was written durable.
func (d *File) Flush() error {
	if err := d.flushFailed(); err != nil {
		return err
	}
	for {
		_, no := d.flushes.Syscall(unix.SYS_FDATASYNC, uintptr(d.fd), 0, 0)
		if no == unix.EINTR {
			continue
		}
		if no == 0 {
			return nil
		}
		err := fmt.Errorf("nbd: flush of %s: %w", d.f.Name(), no)
		d.failed.CompareAndSwap(nil, &err)
		return err
	}
}

func (d *File) flushFailed() error {
	if err := d.failed.Load(); err != nil {
		return fmt.Errorf("an earlier flush failed, what is on disk is not known: %w", *err)
	}
	return nil
}

// Trim frees the space of n bytes, if the file system can.
func (d *File) Trim(off, n int64, f Flags) error {
	if !d.writable {
		return unix.EPERM
	}
	if ok, err := d.fallocate(&d.noPunch, unix.FALLOC_FL_PUNCH_HOLE, off, n); !ok || err != nil {
		return err // a hint need not be taken
	}
	if f&FUA != 0 {
		return d.Flush()
	}
	return nil
}

// Zero makes n bytes zero: as a hole, or as space that is allocated and known to be zero, or by writing.
func (d *File) Zero(off, n int64, f Flags) error {
	if !d.writable {
		return unix.EPERM
	}
	ok, err := false, error(nil)
	if f&NoHole == 0 {
		ok, err = d.fallocate(&d.noPunch, unix.FALLOC_FL_PUNCH_HOLE, off, n)
	}
	if !ok && err == nil {
		ok, err = d.fallocate(&d.noZeroRange, unix.FALLOC_FL_ZERO_RANGE, off, n)
	}
	if !ok && err == nil {
		if f&FastZero != 0 {
			return errors.ErrUnsupported
		}
		for n > 0 && err == nil {
			m := min(n, int64(len(zeroes)))
			_, err = d.WriteAt(zeroes[:m], off)
			off, n = off+m, n-m
		}
	}
	if err == nil && f&FUA != 0 {
		err = d.Flush()
	}
	return err
}

// fallocate tries a mode that the file system may not have; not tells so. ok: it was done.
func (d *File) fallocate(not *atomic.Bool, mode uint32, off, n int64) (ok bool, err error) {
	if not.Load() {
		return false, nil
	}
	// Before, and not after: another connection may look for holes at once.
	d.full.Store(d.block)
	for {
		err = unix.Fallocate(d.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case nil:
			return true, nil
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV:
			not.Store(true)
			return false, nil
		case unix.EINVAL, unix.EBUSY:
			return false, nil // a device whose sectors are larger than the range is aligned to
		default:
			return false, d.error("fallocate", off, int(n), err)
		}
	}
}

// Extents finds holes by SEEK_HOLE and SEEK_DATA. A file system that does not know them has none.
func (d *File) Extents(dst []Extent, off, n int64, max int) ([]Extent, error) {
	end := off + n
	for off < end && len(dst) < max {
		if d.full.Load() {
			return append(dst, Extent{Len: end - off}), nil
		}
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO: // no data from off on
			if size, err := unix.Seek(d.fd, 0, unix.SEEK_END); err != nil || size < end {
				return append(dst, Extent{Len: end - off}), nil // the file was cut off: no zeroes, reading fails
			}
			return append(dst, Extent{Len: end - off, Hole: true, Zero: true}), nil
		case err == unix.EINVAL:
			d.full.Store(true)
			continue
		case err != nil:
			return dst, d.error("seek data", off, 0, err)
		case data < off:
			return dst, d.error("seek data", off, 0, fmt.Errorf("found at %d", data))
		case data > off:
			dst = append(dst, Extent{Len: min(data, end) - off, Hole: true, Zero: true})
			off = data
			continue
		}
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil || hole <= off { // it changed in between: data is right to say
			hole = end
		}
		dst = append(dst, Extent{Len: min(hole, end) - off})
		off = hole
	}
	return dst, nil
}

// Cache begins to read n bytes into the page cache.
func (d *File) Cache(off, n int64) error {
	if n > 0 { // 0 would mean: to the end
		unix.Fadvise(d.fd, off, n, unix.FADV_WILLNEED)
	}
	return nil
}

func (d *File) error(op string, off int64, n int, err error) error {
	return fmt.Errorf("nbd: %s: %s of %d bytes at %d: %w", d.f.Name(), op, n, off, err)
}
