package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// client speaks QMP (QEMU docs/interop/qmp-spec): a line of JSON each way. A
// socket serves one client at a time and makes the others wait, so a client is
// short-lived.
type client struct {
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
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// errBusy says that somebody else uses the monitor.
var errBusy = errors.New("no answer: another client (libvirt?) holds the monitor, or QEMU hangs")

// dial connects to the monitor of process pid and negotiates within the
// context's deadline.
func dial(ctx context.Context, path string, pid int) (*client, error) {
	conn, err := connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	// A QEMU takes the path over from another that was started with the same.
	// Whoever hands sockets to QEMUs (libvirt) is none.
	if at, err := peer(conn); err == nil && at != pid {
		if p, _, ok := inspect(at); ok {
			conn.Close()
			return nil, fmt.Errorf("%q is by now the monitor of %v", path, p)
		}
	}
	c := &client{conn: conn, r: bufio.NewReader(conn)}
	defer c.until(ctx)()
	hello, err := c.read()
	if err == nil && hello.QMP == nil {
		err = fmt.Errorf("%q is not a QMP monitor", path)
	}
	if err == nil {
		_, err = c.run(ctx, "qmp_capabilities", nil)
	}
	if err != nil {
		conn.Close()
		var t net.Error
		if errors.As(err, &t) && t.Timeout() {
			err = errBusy
		}
		return nil, err
	}
	return c, nil
}

// connect waits, as long as ctx allows, while the queue of those who wait for
// the monitor is full: QEMU's takes one.
func connect(ctx context.Context, path string) (net.Conn, error) {
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		if _, ok := ctx.Deadline(); !ok {
			return nil, errBusy
		}
		select {
		case <-ctx.Done():
			return nil, errBusy
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// until makes the connection fail when ctx ends; the result undoes that.
func (c *client) until(ctx context.Context) func() {
	if t, ok := ctx.Deadline(); ok {
		c.conn.SetDeadline(t)
	} else {
		c.conn.SetDeadline(time.Time{})
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// read reads one line.
func (c *client) read() (reply, error) {
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

// run executes a command and skips the events that come before its answer.
func (c *client) run(ctx context.Context, command string, args any) (json.RawMessage, error) {
	defer c.until(ctx)()
	c.id++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, c.id})
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
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
			return nil, fmt.Errorf("monitor command %s: %s (%s)", command, r.Error.Desc, r.Error.Class)
		}
		return r.Return, nil
	}
	return nil, fmt.Errorf("monitor command %s: no answer among 10000 lines", command)
}

// human executes a command of the human monitor.
func (c *client) human(ctx context.Context, line string) (string, error) {
	raw, err := c.run(ctx, "human-monitor-command", map[string]string{"command-line": line})
	if err != nil {
		return "", err
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("monitor command %q: %w", line, err)
	}
	return s, nil
}

// status gives the run state, e.g. "running", "paused".
func (c *client) status(ctx context.Context) (string, error) {
	raw, err := c.run(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var s struct {
		Status string `json:"status"`
	}
	err = json.Unmarshal(raw, &s)
	return s.Status, err
}

func (c *client) close() error { return c.conn.Close() }

// peer gives the PID of whoever made the listening end of a unix socket.
func peer(conn net.Conn) (int, error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
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
