package xenblk

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"vmscope/block"
)

// Options are how a disk is served. The zero value of each field is a good default.
type Options struct {
	Observer block.Observer // sees the writes
	ReadOnly bool
	// Queues is how many rings a front end is offered; default one for each processor, at most 4.
	Queues int
	// NoPersistent tells front ends to take grants back after each request: their pages are then copied by the hypervisor,
	// and none is mapped.
	NoPersistent bool
	// Connected is called, if set, when a guest begins to use the disk, and what it returns when that ends.
	Connected func(v Vbd) (left func())
	// Report gets what went wrong and could be told to nobody else: *RequestError, *RingError, *VbdError. It may be called by
	// several goroutines, and must not wait.
	Report func(error)
}

// RequestError says that a request failed, for what the disk says or because it makes no sense. The guest was told.
type RequestError struct {
	Domain uint16
	Queue  int
	Op     uint8 // as blkif.h counts them
	Off    int64 // bytes, where that is known
	Err    error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("xen-block: domain %d, queue %d, request of kind %d at %d: %v", e.Domain, e.Queue, e.Op, e.Off, e.Err)
}

// Unwrap gives the reason.
func (e *RequestError) Unwrap() error { return e.Err }

// RingError says that a connection was ended: the guest made nonsense of its ring, or an event channel broke.
type RingError struct {
	Domain uint16
	Queue  int
	Err    error
}

func (e *RingError) Error() string {
	return fmt.Sprintf("xen-block: domain %d, queue %d: %v", e.Domain, e.Queue, e.Err)
}

// Unwrap gives the reason.
func (e *RingError) Unwrap() error { return e.Err }

// Server serves one disk, to one vbd at a time.
type Server struct {
	disk    block.Disk
	now     block.NowReader
	size    int64 // whole sectors
	opts    Options
	buffers sync.Pool
	tokens  chan struct{} // bounds what goes on beside the queues

	order     sync.Mutex // of what the observer sees; guards published
	published block.Write
}

// maxQueues bounds what a front end may ask for. It is told a smaller number, but may have been told another by a back end
// that was there before.
const maxQueues = 64

// New serves a disk. Bytes behind the last whole sector are not there for the guest.
func New(disk block.Disk, o Options) (*Server, error) {
	if o.Queues == 0 {
		o.Queues = min(runtime.NumCPU(), 4)
	}
	if o.Queues < 1 || o.Queues > maxQueues {
		return nil, fmt.Errorf("xen-block: %d queues, want 1 to %d", o.Queues, maxQueues)
	}
	s := &Server{
		disk: disk, opts: o, size: disk.Size() / sector * sector, tokens: make(chan struct{}, maxBeside),
	}
	s.now, _ = disk.(block.NowReader)
	s.buffers.New = func() any { b := make([]byte, 0, 64<<10); return &b }
	return s, nil
}

func (s *Server) report(err error) {
	if s.opts.Report != nil && err != nil {
		s.opts.Report(err)
	}
}

// buffer gives n bytes, at most those of one request.
func (s *Server) buffer(n int) *[]byte {
	b := s.buffers.Get().(*[]byte)
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

func (s *Server) release(b *[]byte) { s.buffers.Put(b) }

// readRest reads into v what lies behind the first done bytes.
func (s *Server) readRest(v [][]byte, off int64, done int) error {
	off += int64(done)
	for len(v) > 0 && done >= len(v[0]) {
		done -= len(v[0])
		v = v[1:]
	}
	if len(v) == 0 {
		return nil
	}
	v = append([][]byte{v[0][done:]}, v[1:]...)
	if d, ok := s.disk.(block.VecReader); ok {
		_, err := d.ReadVecAt(v, off)
		return err
	}
	for _, b := range v {
		if err := block.ReadFull(s.disk, b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// publish hands w to the observer; s.order is held.
func (s *Server) publish(w block.Write) {
	w.Time = time.Now()
	s.published = w // in one place, so that none is allocated
	s.opts.Observer.Publish(&s.published)
	s.published.Data = nil
}

func (s *Server) publishFlush() {
	if s.opts.Observer == nil {
		return
	}
	s.order.Lock()
	defer s.order.Unlock()
	s.publish(block.Write{Op: block.OpFlush})
}
