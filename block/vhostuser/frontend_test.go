package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
)

var le = binary.LittleEndian

// Layout of the test guest's memory: two regions of one memfd that touch, and a third far above. Each queue has a page
// for its descriptors, one for each ring, and data begins at dataAt.
const (
	guestRAM = 4 << 20
	lowSize  = 2 << 20
	highAt   = 4 << 30
	userBase = 0x7f12_3400_0000
	queueAt  = 0x10000
	dataAt   = 1 << 20
	ringSize = 16
)

// guestMemory is the memory of a guest that the tests play.
type guestMemory struct {
	f    *os.File
	data []byte
}

func newGuestMemory(t testing.TB) *guestMemory {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	if err := f.Truncate(guestRAM); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(fd, 0, guestRAM, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(data); f.Close() })
	return &guestMemory{f, data}
}

// regions are 0 to 1 MiB, 1 to 2 MiB, and the rest from 4 GiB on.
func (g *guestMemory) regions() []byte {
	var b []byte
	add := func(gpa, size, off uint64) {
		for _, v := range []uint64{gpa, size, userBase + off, off} {
			b = le.AppendUint64(b, v)
		}
	}
	add(0, lowSize/2, 0)
	add(lowSize/2, lowSize/2, lowSize/2)
	add(highAt, guestRAM-lowSize, lowSize)
	return b
}

// frontEnd is QEMU's part, as far as the tests need it.
type frontEnd struct {
	t   testing.TB
	c   *net.UnixConn
	mem *guestMemory
	vqs []*testQueue
	mu  sync.Mutex
}

// testQueue is the guest's driver of a queue.
type testQueue struct {
	fe         *frontEnd
	index      int
	at         int // of its pages in the guest's memory
	num        uint16
	kick, call int
	avail      uint16
	used       uint16
}

func (fe *frontEnd) send(r request, flags uint32, payload []byte, fds ...int) {
	fe.t.Helper()
	b := le.AppendUint32(nil, uint32(r))
	b = le.AppendUint32(b, version|flags)
	b = le.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := fe.c.WriteMsgUnix(append(b, payload...), oob, nil); err != nil {
		fe.t.Fatalf("%v: %v", r, err)
	}
}

// recv reads a reply, and the descriptor that comes with it.
func (fe *frontEnd) recv(r request) ([]byte, int) {
	fe.t.Helper()
	fe.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf, oob := make([]byte, headerSize+maxPayload), make([]byte, 64)
	n, oobn, _, _, err := fe.c.ReadMsgUnix(buf, oob)
	if err != nil || n < headerSize {
		fe.t.Fatalf("%v: reply of %d bytes, %v", r, n, err)
	}
	if request(le.Uint32(buf)) != r || le.Uint32(buf[4:]) != version|flagReply || int(le.Uint32(buf[8:])) != n-headerSize {
		fe.t.Fatalf("%v: reply % x", r, buf[:n])
	}
	fd := -1
	if oobn > 0 {
		list, _ := unix.ParseSocketControlMessage(oob[:oobn])
		fds, _ := unix.ParseUnixRights(&list[0])
		fd = fds[0]
	}
	return buf[headerSize:n], fd
}

func (fe *frontEnd) ask(r request, payload []byte) []byte {
	fe.t.Helper()
	fe.send(r, 0, payload)
	b, _ := fe.recv(r)
	return b
}

func (fe *frontEnd) askU64(r request) uint64 {
	fe.t.Helper()
	return le.Uint64(fe.ask(r, nil))
}

// do sends a request that is acknowledged, and gives the acknowledgement: 0 is fine.
func (fe *frontEnd) do(r request, payload []byte, fds ...int) uint64 {
	fe.t.Helper()
	fe.send(r, flagNeedReply, payload, fds...)
	b, _ := fe.recv(r)
	return le.Uint64(b)
}

func (fe *frontEnd) must(r request, payload []byte, fds ...int) {
	fe.t.Helper()
	if v := fe.do(r, payload, fds...); v != 0 {
		fe.t.Fatalf("%v: refused (%d)", r, v)
	}
}

func u64(v uint64) []byte { return le.AppendUint64(nil, v) }

func state(i, v int) []byte { return le.AppendUint32(le.AppendUint32(nil, uint32(i)), uint32(v)) }

// negotiate does what comes before the queues.
func (fe *frontEnd) negotiate(features uint64) {
	fe.t.Helper()
	if have := fe.askU64(getFeatures); have&features != features {
		fe.t.Fatalf("features %#x, want %#x", have, features)
	}
	fe.send(setProtocolFeatures, 0, u64(fe.askU64(getProtocolFeatures)))
	fe.must(setOwner, nil)
	fe.must(setFeatures, u64(features))
	fe.sendTable()
}

func (fe *frontEnd) sendTable() {
	fe.t.Helper()
	fd := int(fe.mem.f.Fd())
	fe.must(setMemTable, append(state(3, 0), fe.mem.regions()...), fd, fd, fd)
}

// inflight gets and gives back the memory for requests in flight.
func (fe *frontEnd) inflight(queues int) (desc []byte, fd int) {
	fe.t.Helper()
	b := make([]byte, 16)
	b = le.AppendUint16(b, uint16(queues))
	fe.send(getInflightFD, 0, append(le.AppendUint16(b, ringSize), 0, 0, 0, 0)) // padded, as QEMU's is
	desc, fd = fe.recv(getInflightFD)
	if fd < 0 {
		fe.t.Fatal("no in-flight memory")
	}
	desc = append([]byte(nil), desc...)
	fe.must(setInflightFD, desc, fd)
	return desc, fd
}

func (fe *frontEnd) newQueue(i int) *testQueue {
	q := &testQueue{fe: fe, index: i, at: queueAt + i*0x4000, num: ringSize}
	q.kick, _ = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	q.call, _ = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	fe.t.Cleanup(func() { unix.Close(q.kick); unix.Close(q.call) })
	fe.vqs = append(fe.vqs, q)
	return q
}

func (q *testQueue) addrs() []byte {
	b := state(q.index, 0)
	for _, off := range []int{0, 0x2000, 0x1000, 0} { // descriptors, used, available, log
		b = le.AppendUint64(b, uint64(userBase+q.at+off))
	}
	return b
}

// start starts the queue at an index of the available ring.
func (q *testQueue) start(base uint16) {
	q.fe.t.Helper()
	q.fe.must(setVringNum, state(q.index, int(q.num)))
	q.fe.must(setVringBase, state(q.index, int(base)))
	q.fe.must(setVringAddr, q.addrs())
	q.fe.must(setVringKick, u64(uint64(q.index)), q.kick)
	q.fe.must(setVringCall, u64(uint64(q.index)), q.call)
	q.fe.must(setVringEnable, state(q.index, 1))
}

func (q *testQueue) stop() uint16 {
	q.fe.t.Helper()
	b := q.fe.ask(getVringBase, state(q.index, 0))
	return uint16(le.Uint32(b[4:]))
}

func (q *testQueue) descs() []byte { return q.fe.mem.data[q.at:] }

// ring is the test's view of the rings, with the same loads and stores as ours.
func (q *testQueue) ring() ring {
	d := q.fe.mem.data[q.at:]
	n := uint32(q.num)
	return ring{num: n, desc: d[:n*descSize], avail: d[0x1000 : 0x1000+6+2*n], used: d[0x2000 : 0x2000+6+8*n]}
}

// piece is a descriptor to write.
type piece struct {
	addr  uint64
	n     int
	write bool
}

func putDesc(b []byte, i int, addr uint64, n int, flags, next int) {
	b = b[i*descSize:]
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], uint32(n))
	le.PutUint16(b[12:], uint16(flags))
	le.PutUint16(b[14:], uint16(next))
}

// chain writes a chain from descriptor head on.
func (q *testQueue) chain(table []byte, head int, pieces ...piece) {
	for i, p := range pieces {
		flags := 0
		if i < len(pieces)-1 {
			flags |= descNext
		}
		if p.write {
			flags |= descWrite
		}
		putDesc(table, head+i, p.addr, p.n, flags, head+i+1)
	}
}

// offer puts a chain into the available ring, without a kick.
func (q *testQueue) offer(head int) {
	r := q.ring()
	le.PutUint16(r.avail[4+2*(uint32(q.avail)&(r.num-1)):], uint16(head))
	q.avail++
	le.PutUint16(r.avail[2:], q.avail)
}

func (q *testQueue) ringBell() { ring8(q.kick) }

var errTimeout = errors.New("nothing was given back")

// wait waits for the next used request.
func (q *testQueue) wait(patience time.Duration) (head, n int, err error) {
	r := q.ring()
	for end := time.Now().Add(patience); r.usedIdx() == q.used; {
		if time.Now().After(end) {
			return 0, 0, errTimeout
		}
		time.Sleep(50 * time.Microsecond)
	}
	b := r.used[4+8*(uint32(q.used)&(r.num-1)):]
	q.used++
	return int(le.Uint32(b)), int(le.Uint32(b[4:])), nil
}

// header writes a request's header and clears its status, both at a place of head's own, and gives their pieces.
func (q *testQueue) header(head int, kind uint32, sector uint64) (h, status piece) {
	at := dataAt - 0x8000 + q.index*0x400 + head*32
	b := q.fe.mem.data[at:]
	le.PutUint32(b, kind)
	le.PutUint32(b[4:], 0)
	le.PutUint64(b[8:], sector)
	b[16] = 0xff
	return piece{uint64(at), 16, false}, piece{uint64(at + 16), 1, true}
}

func (q *testQueue) status(head int) byte {
	return q.fe.mem.data[dataAt-0x8000+q.index*0x400+head*32+16]
}

// do runs one request and gives its status and length.
func (q *testQueue) do(kind uint32, sector uint64, data ...piece) (status byte, n int) {
	q.fe.t.Helper()
	h, s := q.header(0, kind, sector)
	q.chain(q.descs(), 0, append(append([]piece{h}, data...), s)...)
	q.offer(0)
	q.ringBell()
	head, n, err := q.wait(10 * time.Second)
	if err != nil || head != 0 {
		q.fe.t.Fatalf("request %d at %d: head %d, %v", kind, sector, head, err)
	}
	return q.status(0), n
}

// place is the guest-physical address of an offset in the guest's memory.
func place(off int) uint64 {
	if off >= lowSize {
		return highAt + uint64(off-lowSize)
	}
	return uint64(off)
}

// fixture is a server of a raw image, and a front end that is connected to it.
type fixture struct {
	*frontEnd
	srv   *Server
	image string
	path  string // of the socket
	stop  func()
	errs  *errorList
}

type errorList struct {
	mu   sync.Mutex
	list []error
}

func (l *errorList) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, err)
}

func (l *errorList) all() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]error(nil), l.list...)
}

const diskSize = 8 << 20

func newImage(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	data := make([]byte, diskSize)
	for i := 0; i < len(data); i += 8 {
		le.PutUint64(data[i:], uint64(i)|0xabcd<<48)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// serve starts a server for a disk.
func serve(t testing.TB, d block.Disk, o Options) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "vu")
	if err != nil {
		t.Fatal(err)
	}
	x := &fixture{path: filepath.Join(dir, "s"), errs: &errorList{}}
	o.Report = x.errs.add
	if x.srv, err = New(d, o); err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: x.path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.srv.Serve(ctx, ln)
	}()
	x.stop = func() { cancel(); <-done }
	t.Cleanup(func() { x.stop(); os.RemoveAll(dir) })
	return x
}

// connect makes a new front end with the given memory.
func (x *fixture) connect(t testing.TB, g *guestMemory) *frontEnd {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: x.path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	x.frontEnd = &frontEnd{t: t, c: c, mem: g}
	return x.frontEnd
}

const someFeatures = featVersion1 | featProtocol | featIndirect | featFlush | featDiscard | featWriteZeroes

// newFixture is a raw image with one queue that runs.
func newFixture(t testing.TB, o Options, features uint64) (*fixture, *testQueue) {
	t.Helper()
	image := newImage(t)
	d, err := block.OpenRaw(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	x := serve(t, d, o)
	x.image = image
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(features)
	fe.inflight(4)
	q := fe.newQueue(0)
	q.start(0)
	return x, q
}
