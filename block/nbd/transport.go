package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stream is a connection in the transmission phase: what a client sends and what it is sent.
type stream interface {
	source
	// send sends all of b. more: further bytes follow at once.
	send(b []byte, more bool) error
	// sendFile sends n bytes of a file from its page cache. done is how many went out; less than n without an error at
	// the file's end. errNoSendFile with none sent: it does not work here.
	sendFile(fd int, off int64, n int) (done int, err error)
	// drain ends the receiving side: what has come already can be received, then comes the end. It may be called from
	// any goroutine, like abort, which also ends sending.
	drain()
	abort()
	close()
}

// newStream makes the fastest stream that conn allows, and owns it.
func newStream(conn net.Conn, dedicated bool) (stream, error) {
	switch c := conn.(type) {
	case *net.UnixConn:
		return newSocket(c, dedicated)
	case *net.TCPConn:
		return newSocket(c, dedicated)
	}
	return &connStream{conn}, nil
}

// connStream is a stream over any connection, as TLS is.
type connStream struct{ net.Conn }

func (c *connStream) recv(a, _ []byte) (int, error) { return c.Read(a) }

func (c *connStream) send(b []byte, _ bool) error {
	_, err := c.Write(b)
	return err
}

func (c *connStream) sendFile(int, int64, int) (int, error) { return 0, errNoSendFile }
func (c *connStream) drain()                                { c.SetReadDeadline(longAgo) }
func (c *connStream) abort()                                { c.SetDeadline(longAgo) }
func (c *connStream) close()                                { c.Close() }

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// errNoSendFile says that a stream cannot send files.
var errNoSendFile = errors.New("nbd: cannot send from a file here")

// socket is a stream over a blocking socket: a goroutine that waits for a request waits in the kernel, which spares the
// ways through the runtime's poller and scheduler that a request would cost otherwise.
//
// In a process that is dedicated to serving it goes further while requests follow each other closely: then the wait is
// one that the runtime is not told of, so that it does not hand the goroutine's P over, and wake threads to do it, each
// time. Such a wait is short: it ends by the socket's timeout, and by the signal with which the runtime stops a goroutine
// (a receive with a timeout is interrupted by signals, SA_RESTART or not; signal(7)). As it keeps a P, there are never
// more of them than one less than there are Ps.
type socket struct {
	fd  int
	iov [2]unix.Iovec
	msg unix.Msghdr
	// hotMax is the number of Ps, or 0 if the runtime is to know of each wait.
	hotMax int32

	mu     sync.Mutex // closed against drain and abort
	closed bool
}

// hotWait is how long a goroutine waits without the runtime's knowledge.
const hotWait = 2 * time.Millisecond

// hot counts those that do.
var hot atomic.Int32

// socketBuffer is asked for on either side; the system gives what it allows.
const socketBuffer = 4 << 20

// newSocket takes conn's descriptor over. It is not conn.File's, which the runtime's poller would go on to watch, and be
// woken by each request.
func newSocket(conn interface {
	net.Conn
	syscall.Conn
}, dedicated bool) (*socket, error) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	if !dedicated {
		return &socket{fd: fd}, nil
	}
	tv := unix.NsecToTimeval(int64(hotWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &socket{fd: fd, hotMax: int32(runtime.GOMAXPROCS(0))}, nil
}

func (s *socket) recv(a, b []byte) (int, error) {
	s.iov[0].Base = unsafe.SliceData(a)
	s.iov[0].SetLen(len(a))
	s.msg = unix.Msghdr{Iov: &s.iov[0]}
	s.msg.SetIovlen(1)
	if len(b) > 0 {
		s.iov[1].Base = unsafe.SliceData(b)
		s.iov[1].SetLen(len(b))
		s.msg.SetIovlen(2)
	}
	for {
		var n uintptr
		var no syscall.Errno
		if hot.Add(1) < s.hotMax {
			n, _, no = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msg)), 0)
		} else {
			n, _, no = unix.Syscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msg)), 0)
		}
		hot.Add(-1)
		switch {
		case no == unix.EINTR && s.hotMax == 0:
		case no == unix.EINTR || no == unix.EAGAIN:
			// The runtime wants this goroutine to stop, or nothing came for a while. This wait is one that it knows of.
			unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, -1)
		case no != 0:
			return 0, os.NewSyscallError("recvmsg", no)
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

func (s *socket) send(b []byte, more bool) error {
	flags := uintptr(unix.MSG_NOSIGNAL)
	if more {
		flags |= unix.MSG_MORE
	}
	for len(b) > 0 {
		n, _, no := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			flags, 0, 0)
		switch {
		case no == unix.EINTR:
		case no != 0:
			return os.NewSyscallError("send", no)
		default:
			b = b[n:]
		}
	}
	return nil
}

func (s *socket) sendFile(fd int, off int64, n int) (done int, err error) {
	for done < n {
		m, err := unix.Sendfile(s.fd, fd, &off, n-done)
		switch {
		case err == unix.EINTR:
		case err == unix.EINVAL || err == unix.ENOSYS:
			return done, errNoSendFile
		case err != nil:
			return done, os.NewSyscallError("sendfile", err)
		case m == 0:
			return done, nil
		default:
			done += m
		}
	}
	return done, nil
}

func (s *socket) drain() { s.shutdown(unix.SHUT_RD) }
func (s *socket) abort() { s.shutdown(unix.SHUT_RDWR) }

func (s *socket) shutdown(how int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		unix.Shutdown(s.fd, how)
	}
}

func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		unix.Close(s.fd)
	}
}
