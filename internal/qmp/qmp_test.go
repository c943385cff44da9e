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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve answers as a monitor does: answer gives the lines for a command. It tells each descriptor that came with one.
func serve(t *testing.T, greeting string, answer func(command string, id int) string) (path string, files chan *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "m")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	files = make(chan *os.File, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, greeting)
		r := bufio.NewScanner(rights{conn.(*net.UnixConn), files})
		for r.Scan() {
			var req request
			if json.Unmarshal(r.Bytes(), &req) != nil {
				return
			}
			if req.Execute == "qmp_capabilities" {
				fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\n", req.ID)
				continue
			}
			io.WriteString(conn, answer(req.Execute, req.ID))
		}
	}()
	return path, files
}

// rights reads and collects descriptors.
type rights struct {
	conn  *net.UnixConn
	files chan *os.File
}

func (r rights) Read(p []byte) (int, error) {
	oob := make([]byte, 64)
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, oob)
	if msgs, perr := unix.ParseSocketControlMessage(oob[:oobn]); perr == nil {
		for _, m := range msgs {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				r.files <- os.NewFile(uintptr(fd), "passed")
			}
		}
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

const hello = `{"QMP": {"version": {}, "capabilities": []}}`

func TestRun(t *testing.T) {
	path, _ := serve(t, hello, func(c string, id int) string {
		switch c {
		case "query-status":
			return fmt.Sprintf(`{"event": "RESUME"}`+"\n"+`{"return": {"status": "running"}, "id": %d}`+"\n", id)
		case "human-monitor-command":
			return fmt.Sprintf(`{"return": "text\r\n", "id": %d}`+"\n", id)
		}
		return fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "no %s"}, "id": %d}`+"\n", c, id)
	})
	ctx := t.Context()
	c, err := Dial(ctx, path, func(pid int) error {
		if pid != os.Getpid() {
			return fmt.Errorf("peer %d", pid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s, err := Status(ctx, c); s != "running" || err != nil {
		t.Error(s, err)
	}
	if s, err := Human(ctx, c, "info"); s != "text\r\n" || err != nil {
		t.Error(s, err)
	}
	var refused *Error
	if _, err := c.Run(ctx, "nonsense", nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" || refused.Command != "nonsense" {
		t.Error(err)
	}
}

func TestPassFile(t *testing.T) {
	path, files := serve(t, hello, func(c string, id int) string { return fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", id) })
	c, err := Dial(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := c.PassFile(t.Context(), "x", w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got := <-files
	fmt.Fprint(got, "here")
	got.Close()
	if b, err := io.ReadAll(r); string(b) != "here" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestDialRefuses(t *testing.T) {
	wrong := errors.New("wrong process")
	none := func(string, int) string { return "" }
	for _, x := range []struct {
		name, greeting string
		check          func(int) error
		want           string
	}{
		{"wrong peer", hello, func(int) error { return wrong }, "wrong process"},
		{"not a monitor", `{"hello": 1}`, nil, "not a QMP monitor"},
		{"no JSON", `SSH-2.0`, nil, "not understood"},
		{"silent", "", nil, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			path, _ := serve(t, x.greeting, none)
			if _, err := Dial(ctx, path, x.check); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want %q", err, x.want)
			}
		})
	}
}

// Whoever holds the monitor makes us wait: that has a name.
func TestBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path, nil); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
}

// TestRelay asks through another program.
func TestRelay(t *testing.T) {
	left := false
	r := &Relay{
		Pass: func(_ context.Context, line string, f *os.File) (string, error) {
			switch {
			case strings.Contains(line, "query-status"):
				return `{"return":{"status":"running"},"id":"libvirt-1"}`, nil
			case strings.Contains(line, `"getfd","arguments":{"fdname":"x"}`):
				fmt.Fprintln(f, "passed")
				return `{"return":{}}`, nil
			case strings.Contains(line, "stop"):
				return "", io.ErrClosedPipe
			case strings.Contains(line, "cont"):
				return "{}", nil
			}
			return `{"id":"libvirt-2","error":{"class":"GenericError","desc":"no"}}`, nil
		},
		Leave: func() error { left = true; return nil },
	}
	if s, err := Status(t.Context(), r); s != "running" || err != nil {
		t.Error(s, err)
	}
	var refused *Error
	if _, err := r.Run(t.Context(), "block-job-cancel", nil); !errors.As(err, &refused) || refused.Desc != "no" {
		t.Error(err)
	}
	if _, err := r.Run(t.Context(), "stop", nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if _, err := r.Run(t.Context(), "cont", nil); err == nil {
		t.Error("no answer is taken for one")
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := r.PassFile(t.Context(), "x", out); err != nil {
		t.Error(err)
	}
	out.Close()
	if b, err := io.ReadAll(in); string(b) != "passed\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if err := r.Close(); err != nil || !left {
		t.Error(err, left)
	}
}
