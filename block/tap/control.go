package tap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
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
	_, err = c.f.Write(b)
	return err
}

// errGone says that nobody has the other end any more.
var errGone = errors.New("the other side is gone")

// receive waits for a message.
func (c control) receive(buf []byte) (message, error) {
	n, err := c.f.Read(buf)
	if err != nil || n == 0 {
		if errors.Is(err, os.ErrClosed) {
			return message{}, err
		}
		return message{}, errGone
	}
	var m message
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return message{}, fmt.Errorf("message of %d bytes: %w", n, err)
	}
	return m, nil
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
