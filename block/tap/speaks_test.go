package tap

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestSpeaks tells a client from who only looks whether somebody listens.
func TestSpeaks(t *testing.T) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	connect := func() (client net.Conn, server *net.UnixConn) {
		t.Helper()
		client, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if server, err = ln.AcceptUnix(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close(); server.Close() })
		return client, server
	}
	client, server := connect()
	client.Close()
	if speaks(t.Context(), server) {
		t.Error("one that has left speaks")
	}
	client, server = connect()
	go func() {
		time.Sleep(10 * time.Millisecond) // it is waited for
		client.Write([]byte("hello"))
	}()
	if !speaks(t.Context(), server) {
		t.Error("one that speaks does not")
	}
	var b [5]byte
	if n, err := server.Read(b[:]); err != nil || string(b[:n]) != "hello" {
		t.Errorf("%q is left to read, %v", b[:n], err)
	}
	_, server = connect()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if speaks(ctx, server) {
		t.Error("one that is silent speaks")
	}
}
