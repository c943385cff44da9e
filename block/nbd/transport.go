package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
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
type socket struct {
	f   *os.File // keeps fd open
	fd  int
	iov [2]unix.Iovec

	mu     sync.Mutex // closed against drain and abort
	closed bool
}

// socketBuffer is asked for on either side; the system gives what it allows.
const socketBuffer = 4 << 20

// newSocket takes conn's descriptor over.
func newSocket(conn interface {
	net.Conn
	File() (*os.File, error)
}) (*socket, error) {
	f, err := conn.File() // a duplicate
	conn.Close()
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd()) // makes it blocking
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	return &socket{f: f, fd: fd}, nil
}

func (s *socket) recv(a, b []byte) (int, error) {
	s.iov[0].Base = unsafe.SliceData(a)
	s.iov[0].SetLen(len(a))
	n := 1
	if len(b) > 0 {
		s.iov[1].Base = unsafe.SliceData(b)
		s.iov[1].SetLen(len(b))
		n = 2
	}
	for {
		got, _, no := unix.Syscall(unix.SYS_READV, uintptr(s.fd), uintptr(unsafe.Pointer(&s.iov[0])), uintptr(n))
		switch {
		case no == unix.EINTR:
		case no != 0:
			return 0, os.NewSyscallError("readv", no)
		case got == 0:
			return 0, io.EOF
		default:
			return int(got), nil
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
		s.f.Close()
	}
}
