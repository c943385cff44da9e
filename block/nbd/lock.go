package nbd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the image open for writing, or does not want it to be written.
var ErrLocked = errors.New("nbd: the image is in use by another process")

// QEMU tells by locks on single bytes of an image what it does with it, and what it does not let others do (QEMU's
// block/file-posix.c, raw_check_lock_bytes): the byte of the operation's number from the first base on, and from the
// second. The locks are of the open file description and go with it, however its holder ends.
const (
	lockUses    = 100
	lockForbids = 200
	permRead    = 0
	permWrite   = 1
	permResize  = 3
)

// Lock takes QEMU's locks for an image that is written, so that no QEMU opens it for writing as well, and fails with
// ErrLocked where one has. It is for a device that was opened for writing, and holds until Close. A block device has no
// such locks; Lock does nothing then.
func (d *File) Lock() (err error) {
	if d.block || !d.writable {
		return nil
	}
	defer func() {
		if err != nil {
			d.lock(unix.F_OFD_SETLK, unix.F_UNLCK, lockUses)
			d.lock(unix.F_OFD_SETLK, unix.F_UNLCK, lockForbids)
		}
	}()
	for _, at := range []int64{lockUses + permRead, lockUses + permWrite, lockForbids + permWrite, lockForbids + permResize} {
		if err := d.lock(unix.F_OFD_SETLK, unix.F_RDLCK, at); err != nil {
			return err
		}
	}
	// Taken first and looked for then, as QEMU does it: of two who come at once at least one sees the other.
	for _, at := range []int64{lockForbids + permRead, lockForbids + permWrite, lockUses + permWrite, lockUses + permResize} {
		if err := d.lock(unix.F_OFD_GETLK, unix.F_WRLCK, at); err != nil {
			return err
		}
	}
	return nil
}

func (d *File) lock(cmd int, typ int16, at int64) error {
	l := unix.Flock_t{Type: typ, Start: at, Len: 1}
	if typ == unix.F_UNLCK {
		l.Len = permResize + 1
	}
	switch err := unix.FcntlFlock(uintptr(d.fd), cmd, &l); {
	case err == unix.EAGAIN || err == unix.EACCES:
		return fmt.Errorf("%w: %s", ErrLocked, d.f.Name())
	case err == unix.EINVAL || err == unix.ENOLCK || err == unix.EOPNOTSUPP:
		return nil // a file system without locks: QEMU goes without, too
	case err != nil:
		return fmt.Errorf("nbd: lock of %s: %w", d.f.Name(), err)
	}
	if cmd == unix.F_OFD_GETLK && l.Type != unix.F_UNLCK {
		return fmt.Errorf("%w: %s", ErrLocked, d.f.Name())
	}
	return nil
}
