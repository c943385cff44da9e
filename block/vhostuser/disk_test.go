package vhostuser

import (
	"errors"
	"sync"
	"testing"

	"vmscope/block"
)

// memDisk is a disk in memory that can be made to hang or to fail.
type memDisk struct {
	mu    sync.Mutex
	data  block.Bytes
	fail  error
	gate  chan struct{} // if not nil, each read and flush waits for a token
	begun chan string   // what waits at the gate says so
	log   []string
}

func newMemDisk() *memDisk { return newMemDiskOf(diskSize) }

func newMemDiskOf(size int) *memDisk {
	return &memDisk{data: make(block.Bytes, size), begun: make(chan string, 100)}
}

func (d *memDisk) enter(what string) error {
	d.mu.Lock()
	gate, fail := d.gate, d.fail
	d.log = append(d.log, what)
	d.mu.Unlock()
	if gate != nil {
		d.begun <- what
		<-gate
	}
	return fail
}

func (d *memDisk) setGate(g chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = g
}

func (d *memDisk) taken() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.log
	d.log = nil
	return l
}

func (d *memDisk) Size() int64 { return d.data.Size() }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter("read"); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data.ReadAt(p, off)
}

// ReadVecNow finds nothing in its cache.
func (d *memDisk) ReadVecNow([][]byte, int64) (int, error) { return 0, nil }

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, "write")
	if d.fail != nil {
		return 0, d.fail
	}
	return copy(d.data[off:], p), nil
}

func (d *memDisk) Flush() error { return d.enter("flush") }

func (d *memDisk) Discard(off, n int64) error { return d.WriteZeroes(off, n, true) }

func (d *memDisk) WriteZeroes(off, n int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	clear(d.data[off : off+n])
	return nil
}

// The guest hears of the disk's errors, the observer gets its memory back, and Report is told.
func TestDiskErrors(t *testing.T) {
	d, rec := newMemDisk(), &recorder{}
	x := serve(t, d, Options{Observer: rec})
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(someFeatures)
	q := fe.newQueue(0)
	q.start(0)
	fault := errors.New("platter fell off")
	d.mu.Lock()
	d.fail = fault
	d.mu.Unlock()
	for _, kind := range []uint32{typeIn, typeOut, typeFlush} {
		var data []piece
		if kind != typeFlush {
			data = []piece{{dataAt, 512, kind == typeIn}}
		}
		if status, _ := q.do(kind, 0, data...); status != statusIOErr {
			t.Errorf("request %d: status %d", kind, status)
		}
	}
	x.srv.order.Lock()
	defer x.srv.order.Unlock()
	if len(rec.seen()) != 1 || rec.abandoned != 1 { // the flush, which is told before it is done
		t.Errorf("seen %v, %d abandoned", rec.seen(), rec.abandoned)
	}
	errs := x.errs.all()
	if len(errs) != 3 {
		t.Fatalf("reported %v", errs)
	}
	for _, err := range errs {
		var re *RequestError
		if !errors.As(err, &re) || !errors.Is(err, fault) {
			t.Error(err)
		}
	}
}
