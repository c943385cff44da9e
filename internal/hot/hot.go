// Package hot keeps Go's scheduler out of the path of a request, in processes that do little but serve a disk.
//
// A goroutine that makes a system call lends its P, and where no goroutine has run for some ms, the next call, or the return
// of the one that was waiting, wakes the runtime's monitor: a thread that then looks around 50 times within a millisecond.
// For a request that comes alone this is several times the work of the request. So, while there is a P left for all else:
// calls that are short, and those that the request waits for anyway, are made without telling the runtime (Syscall), and what
// may take long is waited for by its poller (Bell).
//
// What this costs: a goroutine in such a call keeps its P, and cannot be stopped until the call ends, which a garbage
// collection waits for, and with it all other goroutines. Hence it is for processes that have said so by Dedicate.
package hot

import (
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wait is how long to wait at most by Syscall, before a Bell waits on.
const Wait = 2 * time.Millisecond

// most is how many calls may be under way that the runtime does not know of, plus one; 0 in a process that is not dedicated.
var most atomic.Int32

// now counts them.
var now atomic.Int32

// Dedicate says that this process does little but serve. It cannot be taken back.
func Dedicate() { most.Store(int32(runtime.GOMAXPROCS(0))) }

// Dedicated reports whether Dedicate was called.
func Dedicated() bool { return most.Load() != 0 }

// Syscall does a system call. The number of Ps bounds how many at once the runtime does not know of; others it does know of.
// It may be ended by a signal, with EINTR.
//
//go:uintptrescapes
func Syscall(nr, a, b, c, d, e, f uintptr) (n uintptr, no syscall.Errno) {
	defer now.Add(-1)
	if now.Add(1) < most.Load() {
		n, _, no = unix.RawSyscall6(nr, a, b, c, d, e, f)
	} else {
		n, _, no = unix.Syscall6(nr, a, b, c, d, e, f)
	}
	return n, no
}

// Slow is what a Pace takes for long. A disk that is busy takes some milliseconds for a flush: to tell the runtime of each of them
// costs more than that a garbage collection, which is rare in a process that does little else, waits so long now and then.
const Slow = 10 * time.Millisecond

// Pace does a kind of system call that takes now little and now long, as flushes of a disk do: by Syscall as long as the one
// before took no longer than Slow, so that a slow disk holds up neither the garbage collection nor who waits for it. The zero
// value is ready; it is safe for concurrent use.
type Pace struct{ slow atomic.Bool }

// Syscall does a system call. It may be ended by a signal, with EINTR.
//
//go:uintptrescapes
func (p *Pace) Syscall(nr, a, b, c uintptr) (n uintptr, no syscall.Errno) {
	began := time.Now()
	if p.slow.Load() {
		n, _, no = unix.Syscall(nr, a, b, c)
	} else {
		n, no = Syscall(nr, a, b, c, 0, 0, 0)
	}
	p.slow.Store(time.Since(began) > Slow)
	return n, no
}

// Now does a system call that never waits: the runtime need not know of it in any process.
//
//go:uintptrescapes
func Now(nr, a, b, c, d, e, f uintptr) (n uintptr, no syscall.Errno) {
	n, _, no = unix.RawSyscall6(nr, a, b, c, d, e, f)
	return n, no
}

// Bell waits by the runtime's poller until a descriptor can be read. One goroutine at a time waits.
//
// The poller must not see the descriptor itself, or it would be woken by each request, waited for or not. It sees an epoll
// instance of the bell's own, which looks at the descriptor only while the bell waits.
type Bell struct {
	file *os.File // the epoll instance
	raw  syscall.RawConn
	fd   int
}

// NewBell makes a bell for a descriptor, which stays the caller's and has to outlive it.
func NewBell(fd int) (*Bell, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // else os.NewFile does not give it to the poller
		unix.Close(ep)
		return nil, os.NewSyscallError("fcntl", err)
	}
	b := &Bell{file: os.NewFile(uintptr(ep), "bell"), fd: fd}
	if b.raw, err = b.file.SyscallConn(); err == nil {
		err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT}))
	}
	if err != nil {
		b.file.Close()
		return nil, err
	}
	return b, nil
}

// Wait returns when the descriptor can be read, or has an end or an error to tell.
func (b *Bell) Wait() error {
	armed := false
	var err error
	rerr := b.raw.Read(func(ep uintptr) bool {
		if !armed {
			armed = true
			err = b.Arm()
			return err != nil
		}
		return rung(ep)
	})
	if err != nil {
		return err
	}
	return rerr
}

// Await is Wait by a goroutine other than the one which knows when the descriptor is to be looked at: it returns when it
// can be read after Arm and before Disarm. Once it has, the bell wants to be armed again.
func (b *Bell) Await() error { return b.raw.Read(rung) }

// Arm makes the bell look at the descriptor, until it has rung.
func (b *Bell) Arm() error { return b.look(unix.EPOLLIN | unix.EPOLLRDHUP) }

// Disarm makes it look away.
func (b *Bell) Disarm() error { return b.look(0) }

func (b *Bell) look(at uint32) (err error) {
	cerr := b.raw.Control(func(ep uintptr) {
		err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_MOD, b.fd, &unix.EpollEvent{Events: at | unix.EPOLLONESHOT})
	})
	if err == nil {
		return cerr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// rung asks whether the bell rang. To have been asked is what makes it silent again.
func rung(ep uintptr) bool {
	var ev [1]unix.EpollEvent
	n, _ := Now(unix.SYS_EPOLL_PWAIT, ep, uintptr(unsafe.Pointer(&ev)), 1, 0, 0, 0)
	return n == 1
}

// Close lets go of what the bell holds. A Wait that is under way returns with an error.
func (b *Bell) Close() error { return b.file.Close() }
