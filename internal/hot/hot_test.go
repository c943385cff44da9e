package hot

import (
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

// A bell rings for what is there already, and for what comes later, again and again.
func TestBell(t *testing.T) {
	r, w := pipe(t)
	b, err := NewBell(r)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	buf := make([]byte, 1)
	for i := range 100 {
		if i%2 == 0 {
			unix.Write(w, buf)
		} else {
			go func() {
				runtime.Gosched()
				unix.Write(w, []byte{1})
			}()
		}
		if err := b.Wait(); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 { // not read: it rings at once
			if err := b.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := unix.Read(r, buf); n != 1 {
			t.Fatal(n, err)
		}
	}
	closed := make(chan error)
	go func() { closed <- b.Wait() }()
	runtime.Gosched()
	b.Close()
	if err := <-closed; err == nil {
		t.Error("closed while it waits, and rang")
	}
}

// What the runtime does not know of leaves it a P: with more calls than that, a collection still comes to its end.
func TestSyscall(t *testing.T) {
	Dedicate()
	defer most.Store(0)
	if !Dedicated() {
		t.Error("not dedicated")
	}
	r, w := pipe(t)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) + 2 {
		wg.Go(func() {
			buf := make([]byte, 1)
			for {
				n, no := Syscall(unix.SYS_READ, uintptr(r), uintptr(unsafe.Pointer(&buf[0])), 1, 0, 0, 0)
				if no != unix.EINTR {
					if n != 1 {
						t.Error(n, no)
					}
					return
				}
			}
		})
	}
	for range runtime.GOMAXPROCS(0) + 2 {
		runtime.Gosched()
		if n, err := unix.Write(w, []byte{1}); n != 1 {
			t.Error(err)
		}
	}
	wg.Wait()
	runtime.GC()
	if n := now.Load(); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

// After a call that took long the next is told to the runtime, and after one that did not, not.
func TestPace(t *testing.T) {
	var p Pace
	r, w := pipe(t)
	read := func() {
		t.Helper()
		var b [1]byte
		if n, no := p.Syscall(unix.SYS_READ, uintptr(r), uintptr(unsafe.Pointer(&b)), 1); n != 1 || no != 0 {
			t.Fatalf("%d bytes, %v", n, no)
		}
	}
	for range 3 {
		go func() {
			time.Sleep(2 * Slow)
			unix.Write(w, make([]byte, 1))
		}()
		read()
		if !p.slow.Load() {
			t.Error("a call that took long was forgotten")
		}
		for try := 0; p.slow.Load(); try++ { // the machine may be slow now and then
			if try == 1000 {
				t.Fatal("calls that take no time are taken for slow")
			}
			unix.Write(w, make([]byte, 1))
			read()
		}
	}
}
