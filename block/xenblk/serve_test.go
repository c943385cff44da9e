package xenblk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"vmscope/block"
)

// memDisk is a disk in memory. It fails, or waits, where it is told to.
type memDisk struct {
	mu      sync.Mutex
	data    block.Bytes
	fail    error
	flushes int
	gate    chan struct{} // if not nil, a flush waits for a token
}

func (d *memDisk) Size() int64 { return d.data.Size() }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return 0, d.fail
	}
	return d.data.ReadAt(p, off)
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return 0, d.fail
	}
	return copy(d.data[off:], p), nil
}

func (d *memDisk) Flush() error {
	d.mu.Lock()
	gate := d.gate
	d.flushes++
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fail
}

func (d *memDisk) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return d.fail
}

func (d *memDisk) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

const diskSize = 4 << 20

func newDisk() *memDisk { return &memDisk{data: make(block.Bytes, diskSize)} }

// model is an Observer that does to its own disk what it sees. It wants what lies in the first half.
type model struct {
	data    []byte
	flushes int
	unseen  int
}

func (m *model) Reserve(off int64, n int) []byte {
	if off >= diskSize/2 {
		return nil
	}
	return make([]byte, n)
}

func (m *model) Publish(w *block.Write) {
	switch {
	case w.Op == block.OpFlush:
		m.flushes++
	case w.Op == block.OpDiscard:
		clear(m.data[w.Off:w.End()])
	case w.Data == nil:
		m.unseen++
	default:
		copy(m.data[w.Off:w.End()], w.Data)
	}
}

func (m *model) Abandon(int64, int64, []byte) {}

func TestRequests(t *testing.T) {
	for _, l := range []layout{layout64, layout32} {
		for _, c := range []struct {
			queues, order int
			persistent    bool
		}{{1, -1, false}, {1, -1, true}, {1, 0, false}, {2, 2, true}, {4, 4, false}} {
			t.Run(fmt.Sprintf("%s %d queues 2^%d persistent=%v", l.name, c.queues, c.order, c.persistent), func(t *testing.T) {
				d, m := newDisk(), &model{data: make([]byte, diskSize)}
				b := newBench(t, d, Options{Observer: m, Queues: 4})
				b.serve()
				b.attach()
				b.until(stateInitWait)
				if b.value(backPath+"/max-ring-page-order") != 4 || b.value(backPath+"/multi-queue-max-queues") != 4 {
					t.Error("the offers are not there before the front end is told to go on")
				}
				rings := b.connect(l, c.queues, c.order, c.persistent)
				if n := b.value(backPath + "/sectors"); n != diskSize/512 {
					t.Errorf("%d sectors", n)
				}
				for i, r := range rings {
					testRing(t, b, r, uint64(i)*512)
				}
				b.end()
				if !bytes.Equal(m.data[:diskSize/2], d.data[:diskSize/2]) {
					t.Error("the observer saw another disk")
				}
				if m.flushes != d.flushes || m.unseen == 0 {
					t.Errorf("%d flushes, %d seen; %d writes without content", d.flushes, m.flushes, m.unseen)
				}
				if n := b.g.mappings(); n != 0 {
					t.Errorf("%d mappings are left", n)
				}
			})
		}
	}
}

// testRing does requests of all kinds, on sectors from base on.
func testRing(t *testing.T, b *bench, r *frontRing, base uint64) {
	t.Helper()
	d := b.disk.(*memDisk)
	const page = 100 // of data
	data := b.g.mem[page*pageSize:][:64*pageSize]
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	on := func(at uint64, n int) []byte { return d.data[at*512:][:n] }
	// Parts of pages, one behind the other on the disk.
	segs := []segment{{page, 3, 7}, {page + 1, 0, 0}, {page + 2, 0, 7}}
	r.do(t, statusOK, func() uint64 { return r.rw(opWrite, base+8, segs...) })
	want := append(append(bytes.Clone(data[3*512:4096]), data[4096:4096+512]...), data[8192:12288]...)
	if !bytes.Equal(on(base+8, len(want)), want) {
		t.Error("the disk has something else")
	}
	into := []segment{{page + 40, 1, 7}, {page + 41, 0, 6}}
	r.do(t, statusOK, func() uint64 { return r.rw(opRead, base+8, into...) })
	if got := append(bytes.Clone(data[40*4096+512:41*4096]), data[41*4096:41*4096+7*512]...); !bytes.Equal(got, want) {
		t.Error("read something else")
	}
	// More segments than fit into a request; the far half is what nobody looks at.
	segs = nil
	for i := range 64 {
		segs = append(segs, segment{uint32(page + i), 0, 7})
	}
	far := uint64(diskSize/2/512) + base
	content := bytes.Clone(data)
	r.do(t, statusOK, func() uint64 { return r.indirect(opWrite, far, 80, segs...) })
	if !bytes.Equal(on(far, len(content)), content) {
		t.Error("an indirect write: the disk has something else")
	}
	clear(data)
	r.do(t, statusOK, func() uint64 { return r.indirect(opRead, far, 80, segs...) })
	if !bytes.Equal(data, content) {
		t.Error("an indirect read: something else")
	}
	n := d.flushes
	r.do(t, statusOK, func() uint64 { return r.rw(opFlush, 0) })
	r.do(t, statusOK, func() uint64 { return r.rw(opBarrier, base, segment{page, 0, 0}) })
	r.do(t, statusOK, func() uint64 { return r.rw(opFlush, base+1, segment{page, 1, 1}) })
	if d.flushes != n+4 || !bytes.Equal(on(base, 1024), data[:1024]) {
		t.Errorf("%d flushes, want 4; or the writes beside them are missing", d.flushes-n)
	}
	r.do(t, statusOK, func() uint64 { return r.discard(base, 16) })
	if !bytes.Equal(on(base, 8192), make([]byte, 8192)) {
		t.Error("discarded, and there")
	}
	// Many at once, all of them answered, in their order.
	for round := range 20 {
		first := r.next + 1
		for i := range r.size {
			if i%3 == 0 {
				r.rw(opFlush, 0)
			} else {
				r.rw(opRead, (base+uint64(i))%1000, segment{page, 0, byte(round % 8)})
			}
		}
		r.push()
		for i := range r.size {
			if got := r.wait(t); got.id != first+uint64(i) || got.status != statusOK {
				t.Fatalf("answer %+v, want one to %d", got, first+uint64(i))
			}
		}
	}
}

// What makes no sense is answered as such, and changes nothing.
func TestBadRequests(t *testing.T) {
	d, m := newDisk(), &model{data: make([]byte, diskSize)}
	b := newBench(t, d, Options{Observer: m})
	b.serve()
	b.attach()
	b.until(stateInitWait)
	r := b.connect(layout64, 1, -1, false)[0]
	const end = diskSize / 512
	var eleven []segment
	for range 11 {
		eleven = append(eleven, segment{100, 0, 7})
	}
	copy(b.g.mem[100*pageSize:], bytes.Repeat([]byte{0xee}, pageSize))
	for name, put := range map[string]func() uint64{
		"no segments":           func() uint64 { return r.rw(opWrite, 0) },
		"twelve segments":       func() uint64 { return r.put(opWrite, 12, 0, 0, func(b []byte) { putSegments(b, eleven) }) },
		"backwards":             func() uint64 { return r.rw(opWrite, 0, segment{100, 5, 4}) },
		"beyond the page":       func() uint64 { return r.rw(opWrite, 0, segment{100, 0, 8}) },
		"beyond the disk":       func() uint64 { return r.rw(opWrite, end-1, segment{100, 0, 1}) },
		"at the disk's end":     func() uint64 { return r.rw(opWrite, end, segment{100, 0, 0}) },
		"far away":              func() uint64 { return r.rw(opRead, 1<<63, segment{100, 0, 0}) },
		"wraps":                 func() uint64 { return r.rw(opWrite, ^uint64(0), segment{100, 0, 1}) },
		"a bad grant":           func() uint64 { return r.rw(opWrite, 0, segment{guestPages + 5, 0, 7}) },
		"read to a bad grant":   func() uint64 { return r.rw(opRead, 0, segment{1 << 31, 0, 7}) },
		"discard beyond":        func() uint64 { return r.discard(end-1, 2) },
		"discard wraps":         func() uint64 { return r.discard(8, ^uint64(0)-4) },
		"discard huge":          func() uint64 { return r.discard(0, 1<<55) },
		"flush with bad data":   func() uint64 { return r.rw(opFlush, end, segment{100, 0, 0}) },
		"indirect flush":        func() uint64 { return r.indirect(opFlush, 0, 80, segment{100, 0, 0}) },
		"indirect none":         func() uint64 { return r.indirect(opWrite, 0, 80) },
		"indirect indirect":     func() uint64 { return r.indirect(opIndirect, 0, 80, segment{100, 0, 0}) },
		"indirect bad segments": func() uint64 { return r.indirect(opWrite, 0, 80, segment{100, 0, 0}, segment{100, 0, 200}) },
		"indirect too many": func() uint64 {
			return r.put(opIndirect, opWrite, maxIndirect+1, 0, func(b []byte) { le.PutUint32(b[4:], 80) })
		},
		"indirect bad page": func() uint64 {
			return r.put(opIndirect, opWrite, 1, 0, func(b []byte) { le.PutUint32(b[4:], 1<<30) })
		},
	} {
		t.Run(name, func(t *testing.T) { r.do(t, statusError, put) })
	}
	r.do(t, statusUnsupported, func() uint64 { return r.rw(4, 0, segment{100, 0, 0}) })
	r.do(t, statusUnsupported, func() uint64 { return r.put(opDiscard, discardSecure, 0, 8, func(b []byte) { le.PutUint64(b, 8) }) })
	r.do(t, statusUnsupported, func() uint64 { return r.rw(200, 0, segment{100, 0, 0}) })
	if !bytes.Equal(d.data, make([]byte, diskSize)) || !bytes.Equal(m.data, d.data) {
		t.Error("something was written")
	}
	d.setFail(errors.New("broken"))
	r.do(t, statusError, func() uint64 { return r.rw(opWrite, 0, segment{100, 0, 0}) })
	r.do(t, statusError, func() uint64 { return r.rw(opRead, 0, segment{100, 0, 0}) })
	r.do(t, statusError, func() uint64 { return r.rw(opFlush, 0) })
	d.setFail(nil)
	r.do(t, statusOK, func() uint64 { return r.rw(opWrite, end-8, segment{100, 0, 7}) })
}

func TestReadOnly(t *testing.T) {
	t.Run("by option", func(t *testing.T) { testReadOnly(t, Options{ReadOnly: true}, "w") })
	t.Run("by disk line", func(t *testing.T) { testReadOnly(t, Options{}, "r") })
}

func testReadOnly(t *testing.T, o Options, mode string) {
	d := newDisk()
	b := newBench(t, d, o)
	b.attach()
	b.set(backPath+"/mode", mode)
	b.serve()
	b.until(stateInitWait)
	r := b.connect(layout64, 1, 0, true)[0]
	if b.value(backPath+"/info") != infoReadOnly || b.value(backPath+"/feature-discard") != 0 {
		t.Error("the front end is not told")
	}
	copy(b.g.mem[100*pageSize:], "text")
	for _, put := range []func() uint64{
		func() uint64 { return r.rw(opWrite, 0, segment{100, 0, 0}) }, func() uint64 { return r.rw(opBarrier, 0, segment{100, 0, 0}) },
		func() uint64 { return r.rw(opFlush, 0, segment{100, 0, 0}) }, func() uint64 { return r.discard(0, 1) },
	} {
		r.do(t, statusError, put)
	}
	r.do(t, statusOK, func() uint64 { return r.rw(opRead, 0, segment{100, 0, 0}) })
	if !bytes.Equal(d.data, make([]byte, diskSize)) || b.g.mem[100*pageSize] != 0 {
		t.Error("something was written, or not read")
	}
}
