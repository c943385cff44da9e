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
	s := &Server{Exports: []Export{{Device: d}}}
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
