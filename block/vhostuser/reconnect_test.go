package vhostuser

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fixture of a disk in memory, with its first queue running and in-flight memory fd.
func newHanging(t *testing.T, o Options) (x *fixture, d *memDisk, q *testQueue, flight []byte, fd int) {
	t.Helper()
	d = newMemDisk()
	x = serve(t, d, o)
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(someFeatures)
	flight, fd = fe.inflight(1)
	t.Cleanup(func() { unix.Close(fd) })
	q = fe.newQueue(0)
	q.start(0)
	return x, d, q, flight, fd
}

// put offers a request at descriptors 4*i to 4*i+2.
func (q *testQueue) put(i int, kind uint32, sector uint64, data ...piece) {
	h, s := q.header(4*i, kind, sector)
	q.chain(q.descs(), 4*i, append(append([]piece{h}, data...), s)...)
	q.offer(4 * i)
}

// A disk that hangs holds up neither messages nor the end of a queue; what it gives later does not reach the guest's
// memory any more, and is done again when the queue goes on.
func TestDiskHangs(t *testing.T) {
	x, d, q, _, _ := newHanging(t, Options{StopTimeout: 10 * time.Millisecond})
	gate := make(chan struct{})
	d.setGate(gate)
	copy(d.data[512:], "what the disk holds")
	q.put(0, typeFlush, 0)
	q.put(1, typeIn, 1, piece{dataAt, 512, true})
	fill(t, x.mem.data[dataAt+4096:dataAt+4608])
	q.put(2, typeOut, 2, piece{dataAt + 4096, 512, false})
	q.ringBell()
	// The write overtakes.
	if head, _, err := q.wait(10 * time.Second); err != nil || head != 8 || q.status(8) != statusOK {
		t.Fatalf("head %d, status %d, %v", head, q.status(8), err)
	}
	<-d.begun
	<-d.begun
	if x.askU64(getFeatures) != x.srv.features {
		t.Error("features changed")
	}
	before := bytes.Clone(x.mem.data)
	base := q.stop()
	if base != 3 {
		t.Errorf("stopped at %d", base)
	}
	x.srv.mu.Lock()
	for r := range x.srv.runs {
		defer func() { <-r.ended }()
	}
	x.srv.mu.Unlock()
	// It goes on, and must wait for the read and the flush that hang.
	q.start(base)
	d.setGate(nil)
	close(gate)
	for range 2 {
		head, _, err := q.wait(10 * time.Second)
		if err != nil || q.status(head) != statusOK {
			t.Fatalf("head %d, %v", head, err)
		}
	}
	if !bytes.HasPrefix(x.mem.data[dataAt:], []byte("what the disk holds")) || bytes.HasPrefix(before[dataAt:], []byte("what")) {
		t.Error("the read came to nothing, or too early")
	}
	want := []string{"flush", "flush", "read", "read", "write"}
	got := d.taken()
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the disk did %v, want %v", got, want)
	}
	if r := q.ring(); r.usedIdx() != 3 {
		t.Errorf("%d given back", r.usedIdx())
	}
}

// A back end is gone amid requests: the next one does those that were not given back, and no others.
func TestReconnect(t *testing.T) {
	x, d, q, flight, fd := newHanging(t, Options{})
	gate := make(chan struct{})
	d.setGate(gate)
	q.put(0, typeFlush, 0)
	q.put(1, typeOut, 2, piece{dataAt, 512, false})
	q.put(2, typeIn, 1, piece{dataAt + 4096, 512, true})
	q.ringBell()
	if head, _, err := q.wait(10 * time.Second); err != nil || head != 4 {
		t.Fatalf("head %d, %v", head, err)
	}
	<-d.begun
	<-d.begun
	q.put(1, typeOut, 3, piece{dataAt, 512, false}) // overtakes again: the descriptors are free
	q.ringBell()
	if head, _, err := q.wait(10 * time.Second); err != nil || head != 4 {
		t.Fatalf("head %d, %v", head, err)
	}
	used := q.used
	x.c.Close()
	for gone := false; !gone; time.Sleep(time.Millisecond) {
		x.srv.mu.Lock()
		gone = x.srv.session == nil
		x.srv.mu.Unlock()
	}
	// The guest goes on meanwhile.
	q.put(3, typeOut, 4, piece{dataAt, 512, false})
	q.ringBell()
	d.taken()
	d.setGate(nil)
	close(gate)

	fe := x.connect(t, x.mem)
	fe.negotiate(someFeatures)
	fe.must(setInflightFD, flight, fd)
	q.fe = fe
	q.start(used) // QEMU tells the used index of a back end that died
	var heads []int
	for range 3 {
		head, _, err := q.wait(10 * time.Second)
		if err != nil || q.status(head) != statusOK {
			t.Fatalf("head %d, %v", head, err)
		}
		heads = append(heads, head)
	}
	slices.Sort(heads)
	if !slices.Equal(heads, []int{0, 8, 12}) {
		t.Errorf("given back: %v", heads)
	}
	if _, _, err := q.wait(20 * time.Millisecond); err != errTimeout {
		t.Error("more was given back")
	}
	got := d.taken()
	if slices.Sort(got); !slices.Equal(got, []string{"flush", "read", "write"}) {
		t.Errorf("the disk did %v", got)
	}
}

// A front end without memory for what is in flight: all is done in order.
func TestInOrder(t *testing.T) {
	d := newMemDisk()
	x := serve(t, d, Options{StopTimeout: 10 * time.Millisecond})
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(someFeatures)
	q := fe.newQueue(0)
	gate := make(chan struct{})
	d.setGate(gate)
	q.start(0)
	q.put(0, typeFlush, 0)
	q.put(1, typeOut, 2, piece{dataAt, 512, false})
	q.ringBell()
	<-d.begun
	if base := q.stop(); base != 0 {
		t.Errorf("stopped at %d, with the first request not done", base)
	}
	q.start(0)
	d.setGate(nil)
	close(gate)
	for _, want := range []int{0, 4} {
		if head, _, err := q.wait(10 * time.Second); err != nil || head != want {
			t.Errorf("head %d, %v, want %d", head, err, want)
		}
	}
	if got := d.taken(); !slices.Equal(got, []string{"flush", "flush", "write"}) {
		t.Errorf("the disk did %v", got)
	}
}

// A back end that is told to end completes what is under way, and only then hangs up.
func TestShutdown(t *testing.T) {
	x, d, q, _, _ := newHanging(t, Options{StopTimeout: 10 * time.Second})
	gate := make(chan struct{})
	d.setGate(gate)
	q.put(0, typeFlush, 0)
	q.ringBell()
	<-d.begun
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		x.stop()
	}()
	time.Sleep(5 * time.Millisecond)
	close(gate)
	if n, err := x.c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if head, _, err := q.wait(0); err != nil || head != 0 || q.status(0) != statusOK {
		t.Errorf("when we hung up: head %d, status %d, %v", head, q.status(0), err)
	}
	<-stopped
}

// Death at each step of giving a request back.
func TestFlight(t *testing.T) {
	newFlight := func() *flight {
		f := &flight{b: make([]byte, inflightStride(8)), num: 8}
		if heads, ok := f.restart(100); ok || len(heads) != 0 {
			t.Errorf("fresh memory: %v, %v", heads, ok)
		}
		return f
	}
	again := func(f *flight, used uint16) []uint16 {
		g := &flight{b: f.b, num: f.num}
		heads, ok := g.restart(used)
		if !ok {
			t.Error("not known")
		}
		for _, h := range heads {
			if le.Uint64(g.b[g.entry(h)+8:]) >= g.counter {
				t.Errorf("counter %d", g.counter)
			}
		}
		return heads
	}
	f := newFlight()
	for _, h := range []uint16{5, 1, 7} {
		f.take(h)
	}
	steps := []struct {
		name string
		do   func()
		used uint16
		want []uint16
	}{
		{"taken", func() {}, 100, []uint16{5, 1, 7}},
		{"about to be given", func() { f.give(1) }, 100, []uint16{5, 1, 7}},
		{"seen by the guest", func() { f.give(1) }, 101, []uint16{5, 7}},
		{"given", func() { f.give(5); f.gave(5, 102) }, 102, []uint16{7}},
		{"taken again", func() { f.take(5) }, 102, []uint16{7, 5}},
		{"a batch of two", func() { f.give(5); f.give(7) }, 104, nil},
		{"a used index that the guest made up", func() { f.take(3) }, 60000, []uint16{3}},
	}
	for _, s := range steps {
		s.do()
		if got := again(f, s.used); !slices.Equal(got, s.want) {
			t.Errorf("%s: %v, want %v", s.name, got, s.want)
		}
	}
}

// Nothing in the memory for what is in flight makes us fail.
func FuzzFlight(f *testing.F) {
	f.Add(make([]byte, 64), uint16(0))
	good := &flight{b: make([]byte, inflightStride(8)), num: 8}
	good.restart(3)
	good.take(2)
	good.give(2)
	f.Add(good.b, uint16(4))
	f.Fuzz(func(t *testing.T, b []byte, used uint16) {
		mem := make([]byte, inflightStride(8))
		copy(mem, b)
		x := &flight{b: mem, num: 8}
		heads, ok := x.restart(used)
		if !ok && len(heads) > 0 || len(heads) > 8 {
			t.Errorf("%v, %v", heads, ok)
		}
		for i, h := range heads {
			if h >= 8 || slices.Contains(heads[:i], h) {
				t.Errorf("heads %v", heads)
			}
		}
		y := &flight{b: mem, num: 8}
		if again, _ := y.restart(used); !slices.Equal(again, heads) {
			t.Errorf("%v, then %v", heads, again)
		}
	})
}
