package xenblk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"vmscope/block"
	"vmscope/internal/xenbus"
	"vmscope/internal/xenbus/xenbustest"
)

const (
	guestPages = 256
	guestID    = 7
	backPath   = "/local/domain/0/backend/vbd/7/51712"
	frontPath  = "/local/domain/7/device/vbd/51712"
	image      = "/srv/disk.img"
)

var le = binary.LittleEndian

// guest is a domain's memory, of which each page is granted by its number, and its event channels.
type guest struct {
	mem []byte

	mu     sync.Mutex
	mapped map[*byte]int // pages
	ports  map[uint32]*fakePort
}

func newGuest() *guest {
	return &guest{mem: make([]byte, guestPages*pageSize), mapped: map[*byte]int{}, ports: map[uint32]*fakePort{}}
}

var errGrant = errors.New("no such grant")

func (g *guest) Map(domain uint16, refs []uint32) ([]byte, error) {
	for i, r := range refs {
		if domain != guestID || r != refs[0]+uint32(i) || r >= guestPages {
			return nil, errGrant
		}
	}
	at := int(refs[0]) * pageSize
	mem := g.mem[at : at+len(refs)*pageSize]
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mapped[&mem[0]] += len(refs)
	return mem, nil
}

func (g *guest) Unmap(mem []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mapped[&mem[0]] -= len(mem) / pageSize; g.mapped[&mem[0]] == 0 {
		delete(g.mapped, &mem[0])
	}
	return nil
}

func (g *guest) mappings() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.mapped)
}

func (g *guest) Copy(domain uint16, list []Copy) error {
	g.mu.Lock() // requests of one guest may well use the same page
	defer g.mu.Unlock()
	for _, c := range list {
		if domain != guestID || c.Ref >= guestPages || c.Off < 0 || c.Off+len(c.Mem) > pageSize {
			return errGrant
		}
		page := g.mem[int(c.Ref)*pageSize+c.Off:][:len(c.Mem)]
		if c.ToGuest {
			copy(page, c.Mem)
		} else {
			copy(c.Mem, page)
		}
	}
	return nil
}

// fakePort is both ends of an event channel.
type fakePort struct {
	back, front chan struct{} // calls to either side
	closed      chan struct{}
	once        sync.Once
}

func (g *guest) port(n uint32) *fakePort {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ports[n] == nil {
		g.ports[n] = &fakePort{back: make(chan struct{}, 1), front: make(chan struct{}, 1)}
	}
	return g.ports[n]
}

func (g *guest) Bind(domain uint16, n uint32) (Port, error) {
	if domain != guestID || n >= 1000 {
		return nil, errors.New("no such port")
	}
	p := g.port(n)
	return &fakePort{back: p.back, front: p.front, closed: make(chan struct{})}, nil
}

func call(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *fakePort) Wait() error {
	select {
	case <-p.back:
		return nil
	case <-p.closed:
		return os.ErrClosed
	}
}
func (p *fakePort) Notify() error { call(p.front); return nil }
func (p *fakePort) Close() error  { p.once.Do(func() { close(p.closed) }); return nil }

// frontRing is the guest's side of a ring.
type frontRing struct {
	g      *guest
	layout layout
	mem    []byte
	size   uint32
	prod   uint32
	cons   uint32
	port   *fakePort
	next   uint64
	ops    map[uint64]byte // of requests, as their answers must bear them: Linux gives a disk up otherwise
}

func (g *guest) newRing(ref, pages int, l layout, port uint32) *frontRing {
	mem := g.mem[ref*pageSize:][:pages*pageSize]
	clear(mem)
	r := &frontRing{g: g, layout: l, mem: mem, size: slots(len(mem), l.slot), port: g.port(port), ops: map[uint64]byte{}}
	r.word(reqEvent).Store(1)
	r.word(rspEvent).Store(1)
	return r
}

func (r *frontRing) word(off int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&r.mem[off]))
}

// put puts in a request that f lays out, and gives its id. What is behind the first four bytes has the offsets of 64 bits.
func (r *frontRing) put(op, second byte, third uint16, at uint64, f func(rest []byte)) uint64 {
	r.next++
	b := r.mem[slotsAt+int(r.prod&(r.size-1))*r.layout.slot:][:r.layout.slot]
	clear(b)
	b[0], b[1] = op, second
	le.PutUint16(b[2:], third)
	le.PutUint64(b[8-r.layout.less:], r.next)
	le.PutUint64(b[16-r.layout.less:], at)
	f(b[24-r.layout.less:])
	r.prod++
	r.ops[r.next] = op
	if op == opIndirect {
		r.ops[r.next] = second
	}
	return r.next
}

func (r *frontRing) rw(op byte, at uint64, segs ...segment) uint64 {
	return r.put(op, byte(len(segs)), 0, at, func(b []byte) { putSegments(b, segs) })
}

func putSegments(b []byte, segs []segment) {
	for i, s := range segs {
		le.PutUint32(b[i*8:], s.ref)
		b[i*8+4], b[i*8+5] = s.first, s.last
	}
}

func (r *frontRing) indirect(op byte, at uint64, page uint32, segs ...segment) uint64 {
	putSegments(r.g.mem[page*pageSize:], segs)
	return r.put(opIndirect, op, uint16(len(segs)), at, func(b []byte) { le.PutUint32(b[4:], page) })
}

func (r *frontRing) discard(at, n uint64) uint64 {
	return r.put(opDiscard, 0, 0, at, func(b []byte) { le.PutUint64(b, n) })
}

func (r *frontRing) push() {
	old := r.word(reqProd).Load()
	r.word(reqProd).Store(r.prod)
	if r.prod-r.word(reqEvent).Load() < r.prod-old {
		call(r.port.back)
	}
}

type response struct {
	id     uint64
	op     byte
	status int16
}

// wait waits for the next answer, as a guest does: by event.
func (r *frontRing) wait(t testing.TB) response {
	t.Helper()
	for {
		if r.word(rspProd).Load() != r.cons {
			b := r.mem[slotsAt+int(r.cons&(r.size-1))*r.layout.slot:]
			r.cons++
			return response{le.Uint64(b), b[8], int16(le.Uint16(b[10:]))}
		}
		r.word(rspEvent).Store(r.cons + 1)
		if r.word(rspProd).Load() != r.cons {
			continue
		}
		select {
		case <-r.port.front:
		case <-time.After(20 * time.Second):
			t.Fatal("no answer")
		}
	}
}

func (r *frontRing) do(t testing.TB, want int16, put func() uint64) {
	t.Helper()
	id := put()
	r.push()
	if got := r.wait(t); got.id != id || got.op != r.ops[id] || got.status != want {
		t.Errorf("answer %+v to request %d, want status %d and operation %d", got, id, want, r.ops[id])
	}
}

// bench is a back end with a guest and a toolstack.
type bench struct {
	t     testing.TB
	g     *guest
	store *xenbustest.Store
	disk  block.Disk
	srv   *Server
	errs  chan error
	end   func()
	ended chan struct{}
}

func newBench(t testing.TB, d block.Disk, o Options) *bench {
	b := &bench{t: t, g: newGuest(), store: xenbustest.New(), disk: d, errs: make(chan error, 1000)}
	o.Report = func(err error) {
		select {
		case b.errs <- err:
		default:
		}
	}
	var err error
	if b.srv, err = New(d, o); err != nil {
		t.Fatal(err)
	}
	return b
}

// serve begins to serve; end ends that as Ctrl-C would.
func (b *bench) serve() {
	conn, err := b.store.Dial()
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := xenbus.New(conn)
	b.ended = make(chan struct{})
	ended := b.ended
	go func() {
		defer close(ended)
		b.srv.Serve(ctx, &Host{Store: c, Grants: b.g, Events: b.g}, func(v Vbd) bool { return v.Target == image })
		c.Close()
	}()
	b.end = func() { cancel(); <-ended }
	b.t.Cleanup(b.end)
}

func (b *bench) set(path string, v any) { b.store.Set(path, fmt.Sprint(v)) }

// attach does what libxl does for a new disk.
func (b *bench) attach() {
	b.set(frontPath+"/backend", backPath)
	b.set(frontPath+"/state", stateInitialising)
	for k, v := range map[string]any{"frontend": frontPath, "frontend-id": guestID, "params": image, "mode": "w", "online": 1, "dev": "xvda"} {
		b.set(backPath+"/"+k, v)
	}
	b.set(backPath+"/state", stateInitialising)
}

func (b *bench) value(path string) int {
	b.t.Helper()
	v, _ := b.store.Value(path)
	n, _ := strconv.Atoi(v)
	return n
}

// until waits for our end's state.
func (b *bench) until(state int) {
	b.t.Helper()
	for range 2000 {
		if b.value(backPath+"/state") == state {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.t.Fatalf("the back end is in state %d, not %d", b.value(backPath+"/state"), state)
}

// connect does what a front end does: rings of 2^order pages, or of one in the old way (-1).
func (b *bench) connect(l layout, queues, order int, persistent bool) (rings []*frontRing) {
	b.t.Helper()
	b.set(frontPath+"/protocol", l.name)
	if persistent {
		b.set(frontPath+"/feature-persistent", 1)
	}
	if queues > 1 {
		b.set(frontPath+"/multi-queue-num-queues", queues)
	}
	pages, ref := 1, 1
	if order >= 0 {
		pages = 1 << order
		b.set(frontPath+"/ring-page-order", order)
	}
	for i := range queues {
		dir := frontPath
		if queues > 1 {
			dir += fmt.Sprintf("/queue-%d", i)
		}
		b.set(dir+"/event-channel", 10+i)
		for p := range pages {
			name := dir + "/ring-ref"
			if order >= 0 {
				name += strconv.Itoa(p)
			}
			b.set(name, ref+p)
		}
		rings = append(rings, b.g.newRing(ref, pages, l, uint32(10+i)))
		ref += pages
	}
	b.set(frontPath+"/state", stateInitialised)
	b.until(stateConnected)
	b.set(frontPath+"/state", stateConnected)
	return rings
}
