package tap

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/ring"
)

// A process that lives is not over because a signal comes to who asks, as Go's runtime sends to its own threads. A
// reader would wait for another receiver, and none would come.
func TestLifeAmidSignals(t *testing.T) {
	var l life
	l.of(os.Getpid())
	defer l.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, stop, stopped := unix.Gettid(), make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), thread, syscall.SIGURG)
			}
		}
	}()
	over := 0
	for range 300_000 {
		if l.over() {
			over++
		}
	}
	close(stop)
	<-stopped
	if over > 0 {
		t.Errorf("over %d times", over)
	}
}

// A read amid which the receiver was killed waits for the next one, and then is known to be of another time.
func TestReadWithoutReceiver(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	tap, err := Serve(t.Context(), ln, Service{Image: image}, Options{InProcess: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	read := func() (what byte, inexact bool) {
		b := make([]byte, 512)
		if _, err := tap.Device().ReadAt(b, 4096); err != nil {
			t.Error(err)
		}
		return b[0], tap.Inexact()
	}
	if what, inexact := read(); what != 7 || inexact {
		t.Fatalf("%d, inexact %v", what, inexact)
	}
	stand := exec.Command("true") // in the receiver's place
	if err := stand.Start(); err != nil {
		t.Fatal(err)
	}
	tap.take(message{Kind: msgReceiver, PID: stand.Process.Pid}) // still there, or not waited for
	if err := stand.Wait(); err != nil {
		t.Fatal(err)
	}
	done := make(chan bool, 1)
	go func() {
		_, inexact := read()
		done <- inexact
	}()
	select {
	case <-done:
		t.Fatal("read without a receiver")
	case <-time.After(50 * time.Millisecond):
	}
	p, err := ring.NewProducer(tap.files) // as the next one begins
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Lose(1, ring.Restarted)
	tap.take(message{Kind: msgReceiver, PID: os.Getpid()})
	if !<-done {
		t.Error("what was read without a receiver counts")
	}
	// Nobody waits for a receiver that there will not be.
	tap.take(message{Kind: msgReceiver, PID: stand.Process.Pid})
	tap.fail(errReceiverGone)
	read()
}
