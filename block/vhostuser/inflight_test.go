package vhostuser

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInflightRoom hands a buffer back as QEMU does: with the size of queues that it named, and rings that are larger.
func TestInflightRoom(t *testing.T) {
	x, err := newInflight(2, 128)
	if err != nil {
		t.Fatal(err)
	}
	defer x.release()
	f, err := x.queue(1, 256)
	if err != nil {
		t.Fatal(err)
	}
	f.take(255)
	fd, err := unix.Dup(int(x.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := openInflight(os.NewFile(uintptr(fd), "inflight"), 0, uint64(len(x.data)), 2, 128)
	if err != nil {
		t.Fatal(err)
	}
	defer again.release()
	for i, want := range []bool{false, true} {
		f, err := again.queue(i, 256)
		if err != nil {
			t.Fatal(err)
		}
		if is := f.isSet(255); is != want {
			t.Errorf("queue %d, entry 255: in flight %v, want %v", i, is, want)
		}
	}
	if _, err := again.queue(0, 2*roomyQueue); !errors.Is(err, ErrProtocol) {
		t.Errorf("a ring with more entries than there is room for: %v", err)
	}
	if _, err := again.queue(2, 8); !errors.Is(err, ErrProtocol) {
		t.Errorf("a third queue: %v", err)
	}
}
