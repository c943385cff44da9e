package nbd

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// serveEnv makes the test's program a server of its own, so that it can be killed and its time measured: SOCKET, then FILE.
const serveEnv = "VMSCOPE_NBD_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		if err := serveFile(os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveFile serves a file on a Unix socket until SIGTERM. The socket may be inherited as descriptor 3, if its name is "-".
func serveFile(sock, file string) error {
	var ln net.Listener
	var err error
	if sock == "-" {
		ln, err = net.FileListener(os.NewFile(3, "listener"))
	} else {
		ln, err = net.Listen("unix", sock)
	}
	if err != nil {
		return err
	}
	d, err := OpenFile(file, false)
	if err != nil {
		return err
	}
	defer d.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := &Server{Exports: []Export{{Device: d}}, Dedicated: true}
	return s.Serve(ctx, ln)
}

// startServer runs serveFile as a process and waits until it listens.
func startServer(t testing.TB, file string) (sock string, cmd *exec.Cmd) {
	t.Helper()
	sock = filepath.Join(socketDir(t), "s")
	cmd = exec.Command("/proc/self/exe", sock, file)
	cmd.Env = append(os.Environ(), serveEnv+"=1")
	cmd.Stderr = os.Stderr
	startTool(t, cmd, sock)
	return sock, cmd
}

// startTool starts a server and waits for its socket. It is killed at the test's end.
func startTool(t testing.TB, cmd *exec.Cmd, sock string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 500 {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen on %s", cmd.Path, sock)
}

// socketDir is a directory whose name is short enough for a Unix socket's.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tool finds a program that a test needs. Without it the test is skipped, or fails where all must run.
func tool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		guestlab.SkipOrFail(t, name+" is not installed: run scripts/deps")
	}
}

// run runs a program that must succeed, and gives its output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	tool(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// serve serves exports in this process, and gives the Unix socket.
func serve(t testing.TB, s *Server) (sock string) {
	t.Helper()
	sock = filepath.Join(socketDir(t), "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, ln)
	return sock
}

func serveOn(t testing.TB, s *Server, ln net.Listener) {
	done := make(chan error)
	go func() { done <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func unixURI(sock, export string) string {
	return Address{Network: "unix", Addr: sock, Export: export}.URI()
}

func dialTest(t testing.TB, uri string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), uri, Options{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// imageFile makes a file of random data with a hole in the middle.
func imageFile(t testing.TB, size int64) (name string, content []byte) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "image")
	content = randomBytes(int(size))
	hole := content[size/4 : size/2]
	clear(hole)
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(size)
	for _, r := range [][2]int64{{0, size / 4}, {size / 2, size}} {
		if _, err := f.WriteAt(content[r[0]:r[1]], r[0]); err != nil {
			t.Fatal(err)
		}
	}
	return name, content
}
