package gdb

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestWaker has a stub break off before it answers that the guest runs: that must be tried again, and not for ever.
func TestWaker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stub")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []bool{false, true, false}
	go func() {
		for _, answer := range answers {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s := &conn{Conn: c, r: newConn(c).r, until: time.Now().Add(time.Minute)}
			for asked := ""; ; {
				b, err := s.receive()
				if asked = string(b); err != nil || asked == "D" && !answer {
					break
				}
				says := "OK"
				if asked == "qSupported:xmlRegisters=i386" {
					says = "PacketSize=1000"
				}
				if s.send(says) != nil || asked == "D" {
					break
				}
			}
			c.Close()
		}
	}()
	w := new(waker)
	if w.wake(path) || w.began.IsZero() {
		t.Error("it takes a guest for awake of which it does not know")
	}
	if !w.wake(path) {
		t.Error("it goes on when the guest runs")
	}
	w.began = time.Now().Add(-maxWait - time.Minute)
	if !w.wake(path) {
		t.Error("it tries for ever")
	}
}
