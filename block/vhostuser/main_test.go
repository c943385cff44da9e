package vhostuser

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/block"
)

// backEnd is the environment variable that makes this test binary a back end in a process of its own, so that it can be
// killed: "listen" or "connect", the socket, the image, with spaces between, and options.
const backEnd = "VMSCOPE_TEST_VHOST_USER"

func TestMain(m *testing.M) {
	if v := os.Getenv(backEnd); v != "" {
		if err := runBackEnd(strings.Fields(v)); err != nil && err != context.Canceled {
			fmt.Fprintln(os.Stderr, "back end:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runBackEnd(args []string) error {
	mode, socket, image := args[0], args[1], args[2]
	disk, err := block.OpenRaw(image)
	if err != nil {
		return err
	}
	o := Options{Report: func(err error) { fmt.Fprintln(os.Stderr, "back end:", err) }}
	if len(args) > 3 && args[3] == "copy" {
		o.Observer = &slots{}
	}
	srv, err := New(disk, o)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	fmt.Println("ready")
	if mode == "connect" {
		return srv.Connect(ctx, socket)
	}
	os.Remove(socket) // of the one before, which was killed
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return err
	}
	return srv.Serve(ctx, ln)
}

// slots is an Observer that takes all content into a ring of buffers, as a tap does.
type slots struct {
	buf  [16 << 20]byte
	next int
	mu   sync.Mutex
	seen int64
}

func (s *slots) Reserve(_ int64, n int) []byte {
	if s.next+n > len(s.buf) {
		s.next = 0
	}
	b := s.buf[s.next : s.next+n]
	s.next += (n + 63) &^ 63
	return b
}

func (s *slots) Publish(w *block.Write) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen += w.Len
}

func (s *slots) Abandon(int64, int64, []byte) {}
