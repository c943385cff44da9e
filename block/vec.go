package block

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

// The calls of x/sys take slices of slices and allocate; these take the vectors as they are.

func preadv(fd int, x []unix.Iovec, off int64) (int, error) {
	return vecCall(unix.SYS_PREADV, fd, x, off, 0)
}

func pwritev(fd int, x []unix.Iovec, off int64) (int, error) {
	return vecCall(unix.SYS_PWRITEV, fd, x, off, 0)
}

func preadvNow(fd int, x []unix.Iovec, off int64) (int, error) {
	n, errno := hot.Now(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(x))), uintptr(len(x)),
		uintptr(off), 0, unix.RWF_NOWAIT)
	return vecResult(n, errno)
}

func vecCall(nr uintptr, fd int, x []unix.Iovec, off int64, flags uintptr) (int, error) {
	// The offset is two words, low and high: of a 64-bit host the low one has it all.
	n, errno := hot.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(x))), uintptr(len(x)),
		uintptr(off), 0, flags)
	return vecResult(n, errno)
}

func vecResult(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
