package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
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
func newStream(conn net.Conn) (stream, error) {
	switch c := conn.(type) {
	case *net.UnixConn:
		return newSocket(c)
	case *net.TCPConn:
		return newSocket(c)
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
// In a process that is dedicated to serving (package hot) the runtime is told neither of that wait nor of sending, while
// requests follow each other closely. Such a wait is short: it ends by the socket's timeout, and by the signal with which the
// runtime stops a goroutine (what has a timeout is interrupted by signals, SA_RESTART or not; signal(7)). A longer one is the
// runtime's.
type socket struct {
	fd   int
	iov  [2]unix.Iovec
	msg  unix.Msghdr
	bell *hot.Bell // nil in a process that is not dedicated

	mu     sync.Mutex // closed against drain and abort
	closed bool
}

// socketBuffer is asked for on either side; the system gives what it allows.
const socketBuffer = 4 << 20

// newSocket takes conn's descriptor over. It is not conn.File's, which the runtime's poller would go on to watch, and be
// woken by each request.
func newSocket(conn interface {
	net.Conn
	syscall.Conn
}) (*socket, error) {
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
	s := &socket{fd: fd}
	if !hot.Dedicated() {
		return s, nil
	}
	tv := unix.NsecToTimeval(int64(hot.Wait))
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
	if err == nil {
		s.bell, err = hot.NewBell(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
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
		n, no := hot.Syscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msg)), 0, 0, 0, 0)
		switch {
		case no == unix.EINTR && s.bell == nil:
		case no == unix.EINTR || no == unix.EAGAIN:
			// The runtime wants this goroutine to stop, or nothing came for a while.
			if err := s.bell.Wait(); err != nil {
				return 0, err
			}
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
		n, no := hot.Syscall(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
		switch {
		case no == unix.EINTR:
		case no == unix.EAGAIN:
			s.waitRoom()
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
		m, no := hot.Syscall(unix.SYS_SENDFILE, uintptr(s.fd), uintptr(fd), uintptr(unsafe.Pointer(&off)), uintptr(n-done), 0, 0)
		switch {
		case no == unix.EINTR:
		case no == unix.EAGAIN:
			s.waitRoom()
		case no == unix.EINVAL || no == unix.ENOSYS:
			return done, errNoSendFile
		case no != 0:
			return done, os.NewSyscallError("sendfile", no)
		case m == 0:
			return done, nil
		default:
			done += int(m)
		}
	}
	return done, nil
}

// waitRoom returns when something can be sent, be it into the void: a client that does not take its replies.
func (s *socket) waitRoom() {
	unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}, -1)
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
		if s.bell != nil {
			s.bell.Close()
		}
	}
}
