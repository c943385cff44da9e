// Package qmp speaks with QEMU's monitor (QEMU docs/interop/qmp-spec.rst): a line of JSON each way.
//
// A monitor's socket serves one client at a time and makes the others wait, so that whoever connects is to act and to
// leave. Where another holds it for good (libvirt does), a Relay asks through that one.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Monitor is what takes commands. It is used by one goroutine.
type Monitor interface {
	// Run executes a command with its arguments (nil: none) and gives what it returns. What QEMU refused is an *Error.
	Run(ctx context.Context, command string, args any) (json.RawMessage, error)
	// PassFile gives QEMU a descriptor, which later commands call by name (getfd). f stays the caller's.
	PassFile(ctx context.Context, name string, f *os.File) error
	Close() error
}

// Client is a connection to a monitor's socket.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	id   int
}

// maxLine bounds a reply; the longest that we ask for is a memory map.
const maxLine = 16 << 20

// reply is any line that QEMU sends.
type reply struct {
	QMP    json.RawMessage `json:"QMP"`
	Event  string          `json:"event"`
	ID     json.Number     `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *replyError     `json:"error"`
}

type replyError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error is what QEMU answered to a command that it refused.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Desc    string // for people; written by QEMU
}

func (e *Error) Error() string {
	return fmt.Sprintf("monitor command %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// ErrBusy says that somebody else uses the monitor.
var ErrBusy = errors.New("no answer: another client (libvirt?) holds the monitor, or QEMU hangs")

// Dial connects to the monitor at path and negotiates within the context's deadline. check, if not nil, is asked
// whether the process that made the socket is the right one; its error is Dial's. A socket whose maker cannot be told
// is not checked.
func Dial(ctx context.Context, path string, check func(pid int) error) (*Client, error) {
	conn, err := connect(ctx, path)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("connect to the monitor: run as root or as the user that QEMU runs as (%w)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	if pid, err := Peer(conn); err == nil && check != nil {
		if err := check(pid); err != nil {
			conn.Close()
			return nil, err
		}
	}
	c := &Client{conn: conn, r: bufio.NewReader(conn)}
	defer c.until(ctx)()
	hello, err := c.read()
	if err == nil && hello.QMP == nil {
		err = fmt.Errorf("%q is not a QMP monitor", path)
	}
	if err == nil {
		_, err = c.Run(ctx, "qmp_capabilities", nil)
	}
	if err != nil {
		conn.Close()
		var t net.Error
		if errors.As(err, &t) && t.Timeout() {
			err = ErrBusy
		}
		return nil, err
	}
	return c, nil
}

// connect waits, as long as ctx allows, while the queue of those who wait for the monitor is full: QEMU's takes one.
func connect(ctx context.Context, path string) (net.Conn, error) {
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		if _, ok := ctx.Deadline(); !ok {
			return nil, ErrBusy
		}
		select {
		case <-ctx.Done():
			return nil, ErrBusy
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// until makes the connection fail when ctx ends; the result undoes that.
func (c *Client) until(ctx context.Context) func() {
	if t, ok := ctx.Deadline(); ok {
		c.conn.SetDeadline(t)
	} else {
		c.conn.SetDeadline(time.Time{})
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// read reads one line.
func (c *Client) read() (reply, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return reply{}, fmt.Errorf("the monitor sent a line of more than %d bytes", maxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF {
			err = errors.New("the monitor closed the connection")
		}
		if err != nil {
			return reply{}, err
		}
		break
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return reply{}, fmt.Errorf("the monitor's answer is not understood: %w", err)
	}
	return r, nil
}

// request is one line to QEMU.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        int    `json:"id,omitempty"`
}

// Run executes a command and skips the events that come before its answer.
func (c *Client) Run(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return c.run(ctx, command, args, nil)
}

// PassFile sends a descriptor along with getfd.
func (c *Client) PassFile(ctx context.Context, name string, f *os.File) error {
	_, err := c.run(ctx, "getfd", map[string]string{"fdname": name}, f)
	return err
}

func (c *Client) run(ctx context.Context, command string, args any, file *os.File) (json.RawMessage, error) {
	defer c.until(ctx)()
	c.id++
	line, err := json.Marshal(request{command, args, c.id})
	if err != nil {
		return nil, err
	}
	if err := c.send(append(line, '\n'), file); err != nil {
		return nil, fmt.Errorf("monitor command %s: %w", command, err)
	}
	for range 10000 {
		r, err := c.read()
		switch {
		case err != nil:
			return nil, fmt.Errorf("monitor command %s: %w", command, err)
		case r.Event != "" || r.ID.String() != fmt.Sprint(c.id) && r.Error == nil:
			continue
		case r.Error != nil:
			return nil, &Error{command, r.Error.Class, r.Error.Desc}
		}
		return r.Return, nil
	}
	return nil, fmt.Errorf("monitor command %s: no answer among 10000 lines", command)
}

// send writes a line, and with its first bytes a descriptor where there is one.
func (c *Client) send(line []byte, file *os.File) error {
	n := 0
	if file != nil {
		u, ok := c.conn.(*net.UnixConn)
		if !ok {
			return fmt.Errorf("pass a descriptor over %s: %w", c.conn.RemoteAddr().Network(), errors.ErrUnsupported)
		}
		raw, err := file.SyscallConn()
		if err != nil {
			return err
		}
		var werr error
		err = raw.Control(func(fd uintptr) { n, _, werr = u.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil) })
		if err = errors.Join(err, werr); err != nil {
			return err
		}
	}
	_, err := c.conn.Write(line[n:])
	return err
}

// Close hangs up, so that others get at the monitor.
func (c *Client) Close() error { return c.conn.Close() }

// Human executes a command of the human monitor.
func Human(ctx context.Context, m Monitor, line string) (string, error) {
	raw, err := m.Run(ctx, "human-monitor-command", map[string]string{"command-line": line})
	if err != nil {
		return "", err
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("monitor command %q: %w", line, err)
	}
	return s, nil
}

// Status gives the run state, e.g. "running", "paused".
func Status(ctx context.Context, m Monitor) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := Query(ctx, m, "query-status", nil, &s)
	return s.Status, err
}

// Query executes a command and decodes what it returns into v.
func Query(ctx context.Context, m Monitor, command string, args, v any) error {
	raw, err := m.Run(ctx, command, args)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("monitor command %s: %w", command, err)
	}
	return nil
}

// Peer gives the PID of whoever made the listening end of a unix socket.
func Peer(conn net.Conn) (int, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
