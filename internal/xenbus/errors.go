package xenbus

import (
	"fmt"
	"strings"
	"syscall"
)

// Error is a refusal of the store. errors.Is finds what it is: syscall.Errno, and so fs.ErrNotExist, fs.ErrPermission.
type Error struct {
	Op   string // read, write, …
	Path string
	Err  error
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("xenstore: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("xenstore: %s %q: %v", e.Op, e.Path, e.Err)
}

// Unwrap gives the reason.
func (e *Error) Unwrap() error { return e.Err }

// errnos are the errors that xs_wire.h lists.
var errnos = map[string]syscall.Errno{
	"EINVAL": syscall.EINVAL, "EACCES": syscall.EACCES, "EEXIST": syscall.EEXIST, "EISDIR": syscall.EISDIR,
	"ENOENT": syscall.ENOENT, "ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO,
	"ENOTEMPTY": syscall.ENOTEMPTY, "ENOSYS": syscall.ENOSYS, "EROFS": syscall.EROFS, "EBUSY": syscall.EBUSY,
	"EAGAIN": syscall.EAGAIN, "EISCONN": syscall.EISCONN, "E2BIG": syscall.E2BIG, "EPERM": syscall.EPERM,
	"EFAULT": syscall.EFAULT,
}

// refusal is the error that the body of an error message names.
func refusal(body []byte) error {
	name := strings.TrimRight(string(body), "\x00")
	if e, ok := errnos[name]; ok {
		return e
	}
	return fmt.Errorf("%w: error %.40q", ErrProtocol, name)
}

// checkPath refuses what cannot be a path, before it is mistaken for two.
func checkPath(path string) error {
	bad := path == "" || len(path) > maxPath
	for i := 0; i < len(path) && !bad; i++ {
		c := path[i]
		bad = !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-/_@", c) >= 0)
	}
	if bad {
		return fmt.Errorf("not a path: %w", syscall.EINVAL)
	}
	return nil
}
