package tap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// message is what the processes of a tap say to each other. One is one packet.
type message struct {
	Kind string `json:"kind"`
	PID  int    `json:"pid,omitempty"`

	// Text says why, for people; Class is the error that it is.
	Text  string `json:"text,omitempty"`
	Class string `json:"class,omitempty"`

	Content // of "attached"

	Clients int `json:"clients,omitempty"` // of "serving"

	// Gen and Journals are of "capture", and Gen of "capturing".
	Gen      uint32    `json:"gen,omitempty"`
	Journals []Journal `json:"journals,omitempty"`

	// Regions are of "regions", Gen is the question's number, and files go with the message.
	Regions []region `json:"regions,omitempty"`
	files   []*os.File
}

// close closes the files that came with a message.
func (m *message) close() {
	for _, f := range m.files {
		f.Close()
	}
	m.files = nil
}

// The kinds of messages.
const (
	msgReceiver  = "receiver"  // a receiver has started
	msgGuard     = "guard"     // a guard has started
	msgAttached  = "attached"  // writes arrive from now on
	msgEnded     = "ended"     // the receiver has detached, or failed for good; Class and Text say why
	msgCapture   = "capture"   // to the receiver: capture for these journals
	msgCapturing = "capturing" // it does
	msgDetach    = "detach"    // to the receiver: leave the disk
	msgServing   = "serving"   // the receiver goes on without its reader
	msgWarning   = "warning"   // something went wrong that does not end the receiver
	msgRegions   = "regions"   // to the receiver: tell of the guest's memory; its answer
)

// maxMessage bounds a packet.
const maxMessage = 128 << 10

// control is one end of the line between a tap and its processes. It keeps packets apart, and its end is seen when all
// who hold the other end are gone.
type control struct {
	f *os.File
}

// newControl makes a line.
func newControl() (ours, theirs *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	for _, fd := range p {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxMessage)
	}
	return os.NewFile(uintptr(p[0]), "control"), os.NewFile(uintptr(p[1]), "control"), nil
}

// send sends a message, or drops it if the other side does not read: nobody waits for a process that is stopped.
func (c control) send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message %q of %d bytes is too long", m.Kind, len(b))
	}
	c.f.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if len(m.files) == 0 {
		_, err = c.f.Write(b)
		return err
	}
	fds := make([]int, len(m.files))
	for i, f := range m.files {
		fds[i] = int(f.Fd())
	}
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(fds...)
	werr := raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), b, rights, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	runtime.KeepAlive(m.files)
	if werr != nil {
		return werr
	}
	return os.NewSyscallError("sendmsg", err)
}

// errGone says that nobody has the other end any more.
var errGone = errors.New("the other side is gone")

// receive waits for a message. Its files are the caller's to close.
func (c control) receive(buf []byte) (message, error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return message{}, os.ErrClosed
	}
	var n, oobn int
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	if rerr := raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	}); rerr != nil {
		return message{}, os.ErrClosed
	}
	if err != nil || n == 0 {
		return message{}, errGone
	}
	m := message{files: receivedFiles(oob[:oobn])}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		m.close()
		return message{}, fmt.Errorf("message of %d bytes: %w", n, err)
	}
	return m, nil
}

// receivedFiles opens the descriptors that came with a packet.
func receivedFiles(oob []byte) (list []*os.File) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			list = append(list, os.NewFile(uintptr(fd), "received"))
		}
	}
	return list
}

// duplicate gives a file of its own.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// classes are the errors that keep their identity on the way from one process to another.
var classes = map[string]error{
	"in use":      ErrInUse,
	"detached":    ErrDetached,
	"guest ended": ErrGuestEnded,
	"unplugged":   ErrUnplugged,
	"no disk":     ErrNoDisk,
	"crashing":    errCrashing,
	"unsupported": errors.ErrUnsupported,
}

// pack puts an error into a message, unpack gets it back.
func pack(kind string, err error) message {
	m := message{Kind: kind}
	if err == nil {
		return m
	}
	m.Text = err.Error()
	for name, e := range classes {
		if errors.Is(err, e) {
			m.Class = name
		}
	}
	return m
}

// remote is an error that came from another process.
type remote struct {
	text  string
	class error
}

func (e *remote) Error() string { return e.text }
func (e *remote) Unwrap() error { return e.class }

func unpack(m message) error {
	if m.Text == "" {
		return nil
	}
	return &remote{m.Text, classes[m.Class]}
}

// fileConn makes a connection of a descriptor.
func fileConn(fd int, name string) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return net.FileConn(f)
}
