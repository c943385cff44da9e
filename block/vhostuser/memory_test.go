package vhostuser

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// region1 is a single memory region of a message.
func region1(gpa, size, user, off uint64) []byte {
	b := make([]byte, 8)
	for _, v := range []uint64{gpa, size, user, off} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// The memory table changes while requests come and go, at once and in steps.
func TestMemoryChanges(t *testing.T) {
	var changes atomic.Int64
	x, q := newFixture(t, Options{MemoryChanged: func() { changes.Add(1) }}, someFeatures)
	fd := int(x.mem.f.Fd())
	high := region1(highAt, guestRAM-lowSize, userBase+lowSize, lowSize)
	more := region1(8<<30, 1<<20, userBase+1<<40, 0)
	done := make(chan int)
	halt := make(chan struct{})
	go func() {
		n := 0
		for {
			select {
			case <-halt:
				done <- n
				return
			default:
			}
			if status, _ := q.do(typeIn, 1, piece{dataAt, 512, true}); status != statusOK {
				t.Errorf("status %d", status)
			}
			n++
		}
	}()
	for range 20 {
		x.sendTable()
		x.must(addMemReg, more, fd)
		x.must(remMemReg, high)
		x.must(addMemReg, high, fd)
		x.must(remMemReg, more, fd) // with a descriptor, as some send it
	}
	close(halt)
	if n := <-done; n == 0 || changes.Load() < 80 {
		t.Errorf("%d requests, %d changes", n, changes.Load())
	}
	x.sendTable()
	if status, _ := q.do(typeIn, 1, piece{highAt, 512, true}); status != statusOK {
		t.Errorf("status %d", status)
	}
	// The memory with the ring is away for a moment, as when QEMU changes its size.
	low := region1(lowSize/2, lowSize/2, userBase+lowSize/2, lowSize/2)
	x.must(remMemReg, low)
	h, s := q.header(0, typeIn, 1)
	q.chain(q.descs(), 0, h, piece{dataAt, 512, true}, s)
	q.offer(0)
	q.ringBell()
	time.Sleep(5 * time.Millisecond)
	x.must(addMemReg, low, fd)
	if _, _, err := q.wait(10 * time.Second); err != nil || q.status(0) != statusOK {
		t.Errorf("status %d, %v", q.status(0), err)
	}
	q.stop()
	x.srv.session.memMu.Lock()
	defer x.srv.session.memMu.Unlock()
	if now := x.srv.session.mem; now.refs.Load() != 1 || now.regions[0].refs.Load() != 1 {
		t.Errorf("%d and %d references at rest", now.refs.Load(), now.regions[0].refs.Load())
	}
}

func TestBadTables(t *testing.T) {
	g := newGuestMemory(t)
	fd := int(g.f.Fd())
	table := func(regions ...[]byte) []byte {
		b := state(len(regions), 0)
		for _, r := range regions {
			b = append(b, r[8:]...)
		}
		return b
	}
	ok := region1(0, 1<<20, userBase, 0)
	tests := []struct {
		name string
		data []byte
		fds  []int
	}{
		{"short", []byte{1, 0}, nil},
		{"no descriptor", table(ok), nil},
		{"too many descriptors", table(ok), []int{fd, fd}},
		{"nine", table(ok, ok, ok, ok, ok, ok, ok, ok, ok), nil},
		{"cut", table(ok)[:30], []int{fd}},
		{"huge number", state(1<<31-1, 0), nil},
		{"overlap", table(ok, region1(1<<20-4096, 4096, userBase, 0)), []int{fd, fd}},
		{"longer than its file", table(region1(0, guestRAM, userBase, 4096)), []int{fd}},
		{"empty", table(region1(0, 0, userBase, 0)), []int{fd}},
		{"wraps", table(region1(1<<64-4096, 1<<20, userBase, 0)), []int{fd}},
		{"user wraps", table(region1(0, 1<<20, 1<<64-4096, 0)), []int{fd}},
		{"offset", table(region1(0, 4096, userBase, 1<<63)), []int{fd}},
		{"size", table(region1(0, 1<<63, userBase, 0)), []int{fd}},
	}
	x := serve(t, newMemDisk(), Options{})
	fe := x.connect(t, g)
	fe.negotiate(someFeatures)
	for _, tt := range tests {
		if fe.do(setMemTable, tt.data, tt.fds...) == 0 {
			t.Errorf("%s: taken", tt.name)
		}
	}
	if fe.do(remMemReg, region1(0, 4096, userBase, 0)) == 0 || fe.do(addMemReg, ok, fd) == 0 || fe.do(addMemReg, ok) == 0 {
		t.Error("a bad change was taken")
	}
	// The table from before is still there.
	q := fe.newQueue(0)
	q.start(0)
	if status, _ := q.do(typeIn, 0, piece{dataAt, 512, true}); status != statusOK {
		t.Errorf("status %d", status)
	}
}

// The front end's table is the guest's memory.
func TestMemory(t *testing.T) {
	x, _ := newFixture(t, Options{}, someFeatures)
	m, err := x.srv.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fill(t, x.mem.data[lowSize-100:lowSize+100])
	got := make([]byte, 100)
	for i, pa := range []mem.PA{lowSize - 100, highAt} {
		if _, err := m.ReadPhys(got, pa); err != nil || !bytes.Equal(got, x.mem.data[lowSize-100+100*i:][:100]) {
			t.Errorf("at %#x: %v", uint64(pa), err)
		}
	}
	if _, err := m.ReadPhys(got, lowSize); !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("in the hole: %v", err)
	}
	x.c.Close()
	x.stop()
	if _, err := m.ReadPhys(got, highAt); err != nil {
		t.Errorf("after the front end went: %v", err)
	}
	if _, err := x.srv.Memory(); err == nil {
		t.Error("memory without a front end")
	}
}

// The guest's memory file is cut short under us: an error, not the end of the process.
func TestMemoryCut(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int64
	}{{"data", dataAt + 4096}, {"rings", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{}
			x, q := newFixture(t, Options{Observer: rec}, someFeatures)
			h, s := q.header(0, typeOut, 0)
			q.chain(q.descs(), 0, h, piece{lowSize - 4096, 4096, false}, s)
			errfd, _ := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			defer unix.Close(errfd)
			x.must(setVringErr, u64(0), errfd)
			if err := x.mem.f.Truncate(tt.size); err != nil {
				t.Fatal(err)
			}
			if tt.size > 0 { // not before: a queue that is just watched needs no bell
				q.offer(0)
			}
			q.ringBell()
			var b [8]byte
			for range 1000 {
				if n, _ := unix.Read(errfd, b[:]); n == 8 {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			errs := x.errs.all()
			if len(errs) != 1 || !errors.Is(errs[0], mem.ErrUnreachable) {
				t.Errorf("reported %v", errs)
			}
			x.srv.order.Lock()
			defer x.srv.order.Unlock()
			if tt.size > 0 && rec.abandoned != 1 {
				t.Error("the observer's memory was not given back")
			}
			if x.askU64(getFeatures) != x.srv.features {
				t.Error("the front end gets no answer")
			}
		})
	}
}

// TestMemoryCutAmidFlush: the memory goes while the queue waits for a flush and another may serve the ring.
func TestMemoryCutAmidFlush(t *testing.T) {
	x, d, q, _, _ := newHanging(t, Options{})
	gate := make(chan struct{})
	d.setGate(gate)
	h, _ := q.header(0, typeFlush, 0)
	q.chain(q.descs(), 0, h, piece{lowSize - 1, 1, true})
	q.offer(0)
	q.ringBell()
	<-d.begun
	if err := x.mem.f.Truncate(dataAt); err != nil {
		t.Fatal(err)
	}
	x.srv.mu.Lock()
	for r := range x.srv.runs {
		defer func() { <-r.ended }()
	}
	x.srv.mu.Unlock()
	close(gate)
	for range 1000 {
		if len(x.errs.all()) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if errs := x.errs.all(); len(errs) != 1 || !errors.Is(errs[0], mem.ErrUnreachable) {
		t.Errorf("reported %v", errs)
	}
	if x.askU64(getFeatures) != x.srv.features {
		t.Error("the front end gets no answer")
	}
}

func TestTableSlice(t *testing.T) {
	tab := &table{}
	for i := range 40 { // pairs that touch, with holes between
		at := uint64(i/2)*0x3000 + uint64(i%2)*0x1000
		tab.regions = append(tab.regions, &region{gpa: at, size: 0x1000, user: 1<<40 + at, data: bytes.Repeat([]byte{byte(i)}, 0x1000)})
	}
	for at := uint64(0); at < 21*0x3000; at += 0x7ff {
		b := tab.slice(at, 0x1800)
		i, off := int(at/0x3000*2+at%0x3000/0x1000), at%0x1000
		if at%0x3000 >= 0x2000 || i >= 40 {
			if b != nil {
				t.Errorf("memory at %#x", at)
			}
			continue
		}
		if uint64(len(b)) != min(0x1800, 0x1000-off) || b[0] != byte(i) {
			t.Errorf("%d bytes of region %d at %#x", len(b), b[0], at)
		}
		if u := tab.user(1<<40+at, 8); (u == nil) != (off > 0xff8) {
			t.Errorf("user address %#x: %d bytes", at, len(u))
		}
	}
}
