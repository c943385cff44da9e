package block

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has the image open for writing, or does not want it to be written.
var ErrLocked = errors.New("the image is in use by another process")

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

// Lock takes QEMU's locks for an image that is written to, so that no QEMU opens it for writing as well, and fails with
// ErrLocked where one has. The file is one that was opened for writing, and is locked until it is closed. A block device has
// no such locks; Lock does nothing then.
func Lock(f *os.File) (err error) {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	defer func() {
		if err != nil {
			lock(f, unix.F_OFD_SETLK, unix.F_UNLCK, lockUses)
			lock(f, unix.F_OFD_SETLK, unix.F_UNLCK, lockForbids)
		}
	}()
	for _, at := range []int64{lockUses + permRead, lockUses + permWrite, lockForbids + permWrite, lockForbids + permResize} {
		if err := lock(f, unix.F_OFD_SETLK, unix.F_RDLCK, at); err != nil {
			return err
		}
	}
	// Taken first and looked for then, as QEMU does it: of two who come at once at least one sees the other.
	for _, at := range []int64{lockForbids + permRead, lockForbids + permWrite, lockUses + permWrite, lockUses + permResize} {
		if err := lock(f, unix.F_OFD_GETLK, unix.F_WRLCK, at); err != nil {
			return err
		}
	}
	return nil
}

func lock(f *os.File, cmd int, typ int16, at int64) error {
	l := unix.Flock_t{Type: typ, Start: at, Len: 1}
	if typ == unix.F_UNLCK {
		l.Len = permResize + 1
	}
	switch err := unix.FcntlFlock(f.Fd(), cmd, &l); {
	case err == unix.EAGAIN || err == unix.EACCES || err == nil && cmd == unix.F_OFD_GETLK && l.Type != unix.F_UNLCK:
		return fmt.Errorf("%w: %q", ErrLocked, f.Name())
	case err == unix.EINVAL || err == unix.ENOLCK || err == unix.EOPNOTSUPP:
		return nil // a file system without locks: QEMU goes without, too
	case err != nil:
		return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}
