package vhostuser

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
	"vmscope/mem"
)

// queue is what the front end has said of one virtqueue. But where noted, it is the message loop's alone.
type queue struct {
	s       *session
	index   int
	num     uint32
	addr    ringAddr
	hasAddr bool
	base    uint16
	on      atomic.Bool
	run     atomic.Pointer[run] // nil while stopped

	mu   sync.Mutex
	call int // descriptor to tell the guest by; -1: it polls
	err  int // to tell the front end of a broken ring
}

// run is a started queue: from SET_VRING_KICK to GET_VRING_BASE. One goroutine takes the requests from the ring, in their
// order. Writes are done by it; what may take long (flushes, and reads that take I/O) goes on beside it, if the front
// end has given memory to note what is in flight. Without that, everything is done in order, since only that could be
// told after a crash.
type run struct {
	q      *queue
	events bool      // VIRTIO_RING_F_EVENT_IDX
	kick   int       // descriptor, ours; -1: none, the ring is polled
	drain  bool      // it is no eventfd and must be read
	poll   int       // epoll descriptor
	bell   *hot.Bell // for poll; nil in a process that is not dedicated
	relief *hot.Bell // for poll, while the goroutine waits for a flush; see aside. nil if the ring is polled
	alarm  int       // eventfd: look at halt, the queue's on, and the memory table
	halt   atomic.Bool
	ended  chan struct{} // closed when nothing of it is under way any more
	before []*run        // whose requests may still be under way: they come first

	turn   sync.Mutex // held by who serves the ring; guards away and broken
	away   bool       // the goroutine waits for a flush
	broken error      // what whoever stood in for it came upon

	mu       sync.Mutex // guards what follows
	dead     bool       // the ring is not ours any more: the guest's memory is not written
	closed   bool       // so are the descriptors
	tab      *table
	ring     ring
	taken    uint16 // index of the available ring: of the next request to take
	used     uint16 // index of the used ring: of the next request to give back
	told     uint16 // used, when the guest was told last
	quiet    uint16 // flags in the used ring
	inflight *inflight
	flight   flight
	busy     []bool // by head
	pending  int
	unsaid   int // bytes and requests given back since the guest was told
	free     []*op
	besides  sync.WaitGroup
}

// start begins to serve a queue that is kicked by a descriptor, which it owns from then on. The front end waits for it.
func (q *queue) start(kick int) error {
	r := &run{q: q, kick: kick, poll: -1, alarm: -1, ended: make(chan struct{})}
	if err := r.prepare(); err != nil {
		r.close()
		return err
	}
	q.run.Store(r)
	q.s.srv.began(r)
	go r.serve()
	return nil
}

// prepare takes what a run needs; what it took before an error, close gives back.
func (r *run) prepare() (err error) {
	q := r.q
	if q.num == 0 || !q.hasAddr {
		return fmt.Errorf("%w: queue %d started without size or addresses", ErrProtocol, q.index)
	}
	r.events = q.s.features&featEventIdx != 0
	r.taken = q.base
	r.busy = make([]bool, q.num)
	r.before = q.s.srv.unfinished()
	if r.tab, err = q.s.table(); err != nil {
		return err
	}
	if r.ring, err = r.tab.newRing(q.addr, q.num, r.events); err != nil {
		return err
	}
	r.inflight = q.s.inflight.acquire()
	if r.flight, err = r.inflight.queue(q.index, q.num); err != nil {
		return err
	}
	return r.watch()
}

// close lets go of what a run holds.
func (r *run) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead, r.closed = true, true
	if r.tab != nil {
		r.tab.release()
	}
	r.inflight.release()
	for _, b := range []*hot.Bell{r.bell, r.relief} {
		if b != nil {
			b.Close()
		}
	}
	for _, fd := range []int{r.poll, r.alarm, r.kick} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// stop ends a run and gives the index from which on the ring is to be served the next time. A request that is under way
// is waited for, but not for ever: the front end stands still meanwhile. What is not done by then stays noted as in flight.
func (r *run) stop(until time.Time) (base uint16) {
	r.halt.Store(true)
	r.wake()
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-r.ended:
	case <-t.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = true
	if !r.flight.on() {
		return r.taken - uint16(r.pending) // in order: these are the last ones
	}
	return r.taken
}

// serve is the run's goroutine.
func (r *run) serve() {
	defer close(r.ended)
	for _, b := range r.before {
		<-b.ended
	}
	r.before = nil
	if r.relief != nil {
		r.besides.Add(1)
		go r.standIn()
	}
	r.turn.Lock()
	err := mem.Guard(r.loop)
	r.turn.Unlock()
	if r.relief != nil {
		r.relief.Close() // nobody need stand in any more
	}
	// Kicks that were seen and not read would wake QEMU when it takes the descriptor back, and there start an old guest's
	// device again. Whoever serves the ring next looks at it before it waits.
	if r.kick >= 0 && !r.drain {
		var b [8]byte
		unix.Read(r.kick, b[:])
	}
	r.besides.Wait()
	r.q.s.srv.finished(r)
	if err != nil {
		r.q.s.srv.report(&RingError{Queue: r.q.index, Err: err})
		r.q.signal(&r.q.err)
	}
	r.close()
}

// errStopped ends the loop without harm.
var errStopped = errors.New("stopped")

func (r *run) loop() error {
	if err := r.restart(); err != nil {
		return stopped(err)
	}
	for {
		if err := r.drainRing(); err != nil {
			return stopped(err)
		}
		if err := r.wait(); err != nil {
			return stopped(err)
		}
	}
}

func stopped(err error) error {
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// restart finds out where the ring stands and does what a back end before us had not finished.
func (r *run) restart() error {
	for _, head := range r.resume() {
		for !r.q.on.Load() {
			if err := r.sleep(); err != nil {
				return err
			}
		}
		if r.halt.Load() {
			return errStopped
		}
		if err := r.handle(head); err != nil {
			return err
		}
	}
	// Whoever died before us may have died before it told the guest.
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(true)
	return nil
}

// resume reads the indexes and gives the requests that are in flight.
func (r *run) resume() []uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = r.ring.usedIdx()
	r.told = r.used
	if !r.flight.on() {
		return nil
	}
	heads, ok := r.flight.restart(r.used)
	if !ok {
		return nil
	}
	for _, head := range heads {
		r.busy[head] = true
	}
	r.pending = len(heads)
	r.taken = r.used + uint16(len(heads))
	return heads
}

// drainRing takes requests as long as there are any.
func (r *run) drainRing() error {
	for {
		if r.halt.Load() {
			return errStopped
		}
		if r.broken != nil {
			return r.broken
		}
		if !r.q.on.Load() {
			return nil
		}
		if err := r.refresh(); err != nil {
			return err
		}
		n := r.ring.available() - r.taken
		if n == 0 {
			return nil
		}
		if uint32(n) > r.ring.num {
			return fmt.Errorf("vhost-user: available index jumped to %d, taken %d, ring of %d: %w", r.taken+n, r.taken, r.ring.num, mem.ErrInconsistent)
		}
		if err := r.accept(); err != nil {
			return err
		}
	}
}

// accept takes the next request from the ring and does it.
func (r *run) accept() error {
	r.hush()
	head, err := r.next()
	if err != nil {
		return err
	}
	return r.handle(head)
}

func (r *run) next() (head uint16, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return 0, errStopped
	}
	head = r.ring.head(r.taken)
	if uint32(head) >= r.ring.num || r.busy[head] {
		return 0, fmt.Errorf("vhost-user: request %d starts at descriptor %d of %d, which is none or in use: %w", r.taken, head, r.ring.num, mem.ErrInconsistent)
	}
	r.flight.take(head)
	r.busy[head] = true
	r.taken++
	r.pending++
	return head, nil
}

// handle does the request at head, which was taken.
func (r *run) handle(head uint16) error {
	o := r.newOp()
	if err := o.gather(&r.ring, r.tab, head); err != nil || o.bad != nil {
		if err := r.gatherAgain(o, head, err); err != nil {
			return err
		}
	}
	status, ok := o.start(r.q.s.srv.size)
	n, later := int64(0), false
	if ok {
		status, n, later = r.do(o)
	}
	if !later {
		r.complete(o, status, n, false)
	}
	return nil
}

// gatherAgain waits a little where memory is missing that the front end may be about to bring: it changes its table in
// steps where it has slots.
func (r *run) gatherAgain(o *op, head uint16, err error) error {
	for range 10 {
		if err == nil && o.bad == nil || err != nil && !errors.Is(err, mem.ErrNoRAM) || !r.q.s.slots.Load() || r.halt.Load() {
			return err
		}
		time.Sleep(10 * time.Millisecond)
		if rerr := r.refresh(); rerr != nil {
			return rerr
		}
		err = o.gather(&r.ring, r.tab, head)
	}
	return err
}

// refresh finds the ring in the memory of now.
func (r *run) refresh() error {
	if !r.q.s.changed(r.tab) {
		return nil
	}
	for try := 0; ; try++ {
		t, err := r.q.s.table()
		if err != nil {
			return err
		}
		rg, err := t.newRing(r.q.addr, r.ring.num, r.events)
		if err == nil {
			r.mu.Lock()
			old := r.tab
			r.tab, r.ring = t, rg
			r.mu.Unlock()
			old.release()
			return nil
		}
		t.release()
		if try == 10 || !r.q.s.slots.Load() || r.halt.Load() {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// newOp gives a request of those that were used before.
func (r *run) newOp() *op {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.free); n > 0 {
		o := r.free[n-1]
		r.free = r.free[:n-1]
		return o
	}
	return new(op)
}

// beside does the rest of a request in a goroutine of its own; false if that cannot be, or not now.
func (r *run) beside(o *op, rest func() (status byte, n int64)) bool {
	if !r.flight.on() || !r.q.s.srv.enter() {
		return false
	}
	tab := r.tab.acquire() // o is another request's once this one is complete
	r.besides.Add(1)
	go func() {
		defer r.besides.Done()
		err := mem.Guard(func() error {
			defer r.q.s.srv.leave()
			defer tab.release()
			status, n := rest()
			r.complete(o, status, n, true)
			return nil
		})
		if err != nil {
			r.q.s.srv.report(&RingError{Queue: r.q.index, Err: err})
		}
	}()
	return true
}

// complete gives a request back to the guest. n bytes were written for it, and its status.
func (r *run) complete(o *op, status byte, n int64, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return
	}
	if status != statusOK {
		n = 0
	}
	if o.status != nil {
		o.status[0] = status
		n++
	}
	r.ring.putUsed(r.used, o.head, uint32(min(n, 1<<32-1)))
	r.flight.give(o.head)
	r.used++
	r.ring.publish(r.used, r.quiet)
	r.flight.gave(o.head, r.used)
	r.busy[o.head] = false
	r.pending--
	r.unsaid += int(n) + sayRequest
	r.free = append(r.free, o)
	if tell || r.unsaid >= sayAfter {
		r.tell(false)
	}
}

// The guest is told of what was done at the latest after so many bytes, where each request counts as sayRequest: an
// interrupt costs a guest as much as some thousand bytes.
const (
	sayRequest = 16 << 10
	sayAfter   = 256 << 10
)

// tell interrupts the guest if it wants to hear of what was given back. r.mu is held.
func (r *run) tell(always bool) {
	if r.dead {
		return
	}
	r.unsaid = 0
	want := always
	if r.events {
		want = want || r.told != r.used && crossed(r.ring.usedEvent(), r.used, r.told)
	} else {
		want = want || r.told != r.used && !r.ring.noInterrupt()
	}
	r.told = r.used
	if want {
		r.q.signal(&r.q.call)
	}
}

// hush asks the guest not to kick as long as we look by ourselves.
func (r *run) hush() {
	if r.events || r.quiet != 0 { // with events, an old avail_event does it
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dead {
		r.quiet = usedNoNotify
		r.ring.publish(r.used, r.quiet)
	}
}

// listen asks the guest to kick, and reports whether there is nothing to do by then.
func (r *run) listen() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return true
	}
	r.tell(false)
	if r.events {
		r.ring.setAvailEvent(r.taken)
	} else if r.quiet != 0 {
		r.quiet = 0
		r.ring.publish(r.used, 0)
	}
	return r.ring.available() == r.taken || !r.q.on.Load()
}

// signal writes to the queue's call or error descriptor.
func (q *queue) signal(fd *int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if *fd >= 0 {
		ring8(*fd)
	}
}

// setFD replaces the queue's call or error descriptor.
func (q *queue) setFD(fd *int, to int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = to
}
