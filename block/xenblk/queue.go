package xenblk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmscope/block"
)

// queue serves one ring, in a goroutine of its own. Reads that take I/O, and flushes, go on beside it.
type queue struct {
	srv      *Server
	domain   uint16
	index    int
	host     *Host
	readOnly bool
	mem      []byte // of the ring
	ring     *ring
	port     Port
	pages    *pages // nil: the front end does not use grants again

	stop   atomic.Bool
	beside sync.WaitGroup
	ended  chan struct{}
}

var errReadOnly = fmt.Errorf("the disk is read-only: %w", syscall.EROFS)

// maxBeside bounds what goes on beside all queues of a disk: each has a thread.
const maxBeside = 64

// newQueue binds the port of a ring and maps it.
func newQueue(ctx context.Context, srv *Server, h *Host, v Vbd, index int, k ringKeys, l layout, persistent bool) (_ *queue, err error) {
	q := &queue{
		srv: srv, domain: v.Domain, index: index, host: h, readOnly: srv.opts.ReadOnly || v.ReadOnly(), ended: make(chan struct{}),
	}
	// First the port: as long as another back end has requests under way it keeps it, and may change the ring.
	if q.port, err = bind(ctx, h.Events, v.Domain, k.port); err != nil {
		return nil, fmt.Errorf("queue %d: %w", index, err)
	}
	if q.mem, err = h.Grants.Map(v.Domain, k.refs); err == nil {
		if q.ring, err = newRing(q.mem, l); err != nil {
			h.Grants.Unmap(q.mem)
		}
	}
	if err != nil {
		q.port.Close()
		return nil, fmt.Errorf("queue %d: %w", index, err)
	}
	if persistent {
		q.pages = newPages(h.Grants, v.Domain)
	}
	return q, nil
}

// bindPatience is how long who was there before us may take to let go of a port.
const bindPatience = 5 * time.Second

func bind(ctx context.Context, e Events, domain uint16, port uint32) (Port, error) {
	for end := time.Now().Add(bindPatience); ; {
		p, err := e.Bind(domain, port)
		if err == nil || time.Now().After(end) {
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// start begins to serve; broken is called if the queue ends by itself.
func (q *queue) start(broken func(error)) {
	go func() {
		defer close(q.ended)
		if err := q.run(); err != nil && !q.stop.Load() {
			broken(&RingError{q.domain, q.index, err})
		}
	}()
}

// close ends the queue, once what is under way is done.
func (q *queue) close() {
	q.stop.Store(true)
	q.port.Close()
	<-q.ended
	q.beside.Wait()
	q.release()
}

// drop gives back a queue that was not started.
func (q *queue) drop() {
	q.port.Close()
	q.release()
}

func (q *queue) release() {
	q.pages.close()
	q.host.Grants.Unmap(q.mem)
}

func (q *queue) run() error {
	// Somebody may have been here before us, and have ended between an answer and the call.
	if err := q.port.Notify(); err != nil {
		return err
	}
	var slot [maxSlot]byte
	var r request
	for {
		for !q.stop.Load() {
			index, ok, err := q.ring.take(&slot)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			q.serve(index, &slot, &r)
		}
		if q.stop.Load() {
			return nil
		}
		if !q.ring.sleep() {
			continue
		}
		if err := q.port.Wait(); err != nil {
			return err
		}
	}
}

// token is what an answer needs of a request that goes on beside the queue.
type token struct {
	index uint32
	id    uint64
	op    uint8
	off   int64
}

// answer answers a request: err is the disk's, or says that the request makes no sense.
func (q *queue) answer(t token, err error) {
	status := int16(statusOK)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		status = statusUnsupported
	case err != nil:
		status = statusError
		q.srv.report(&RequestError{q.domain, q.index, t.op, t.off, err})
	}
	if q.ring.answer(t.index, t.id, t.op, status) {
		if err := q.port.Notify(); err != nil && !errors.Is(err, os.ErrClosed) {
			q.srv.report(&RingError{q.domain, q.index, err})
		}
	}
}

// later does the rest of a request beside the queue, or here if too much goes on there already.
func (q *queue) later(t token, rest func() error) {
	select {
	case q.srv.tokens <- struct{}{}:
		q.beside.Go(func() {
			defer func() { <-q.srv.tokens }()
			q.answer(t, rest())
		})
	default:
		q.answer(t, rest())
	}
}

// serve serves one request, the bytes of slot.
func (q *queue) serve(index uint32, slot *[maxSlot]byte, r *request) {
	err := q.ring.layout.parse(slot[:], r)
	t := token{index: index, id: r.id, op: r.op}
	if err == nil && r.pages != nil {
		err = q.readSegments(r)
	}
	if err != nil {
		q.answer(t, err)
		return
	}
	size := r.size()
	switch r.op {
	case opRead, opWrite, opBarrier, opFlush:
		if t.off, err = r.inside(uint64(size), q.srv.size); err != nil && size > 0 {
			q.answer(t, err)
			return
		}
	}
	switch r.op {
	case opRead:
		q.read(t, r, size)
	case opWrite:
		q.answer(t, q.write(r, t.off, size))
	case opFlush:
		if q.readOnly {
			q.answer(t, errReadOnly)
			return
		}
		if size == 0 {
			q.srv.publishFlush()
			q.later(t, q.srv.disk.Flush)
			return
		}
		err = q.flush()
		if err == nil {
			err = q.write(r, t.off, size)
		}
		q.answer(t, err)
	case opBarrier:
		err = q.flush()
		if err == nil {
			err = q.write(r, t.off, size)
		}
		if err == nil {
			err = q.flush()
		}
		q.answer(t, err)
	case opDiscard:
		q.answer(t, q.discard(r, &t))
	default:
		q.answer(t, errors.ErrUnsupported)
	}
}

// readSegments copies the segments of an indirect request, and checks them.
func (q *queue) readSegments(r *request) error {
	buf := q.srv.buffer(r.count * segmentLength)
	defer q.srv.release(buf)
	if mem := q.pages.of(r.pages[0]); mem != nil {
		copy(*buf, mem)
	} else if err := q.host.Grants.Copy(q.domain, []Copy{{Ref: r.pages[0], Mem: *buf}}); err != nil {
		return err
	}
	return r.take(*buf, r.count)
}

// views are the places of a request's segments in pages that are mapped. all tells whether all of them are.
func (q *queue) views(r *request) (v [][]byte, all bool) {
	if q.pages == nil {
		return nil, false
	}
	v, all = make([][]byte, len(r.segs)), true
	for i, s := range r.segs {
		if mem := q.pages.of(s.ref); mem != nil {
			v[i] = mem[s.off() : s.off()+s.len()]
		} else {
			all = false
		}
	}
	return v, all
}

// move copies all of a request's content between buf and the guest, once. v are the pages that are mapped, or nil.
func (q *queue) move(segs []segment, v [][]byte, buf []byte, toGuest bool) error {
	list := make([]Copy, 0, len(segs))
	for i, s := range segs {
		b := buf[:s.len()]
		buf = buf[s.len():]
		switch {
		case v == nil || v[i] == nil:
			list = append(list, Copy{s.ref, s.off(), b, toGuest})
		case toGuest:
			copy(v[i], b)
		default:
			copy(b, v[i])
		}
	}
	return q.host.Grants.Copy(q.domain, list)
}

// read reads from the page cache at once, and what is not there beside the queue.
func (q *queue) read(t token, r *request, size int) {
	s := q.srv
	v, all := q.views(r)
	var buf *[]byte
	into := v
	if !all {
		buf = s.buffer(size)
		into = [][]byte{*buf}
	}
	segs := append([]segment(nil), r.segs...) // r is used again
	done := 0
	finish := func() error {
		err := s.readRest(into, t.off, done)
		if buf != nil {
			if err == nil {
				err = q.move(segs, v, *buf, true)
			}
			s.release(buf)
		}
		return err
	}
	if s.now != nil {
		var err error
		if done, err = s.now.ReadVecNow(into, t.off); err != nil {
			done = 0 // the reader behind it says what is wrong
		}
	}
	if done < size {
		q.later(t, finish)
		return
	}
	q.answer(t, finish())
}

func (q *queue) flush() error {
	if q.readOnly {
		return errReadOnly
	}
	q.srv.publishFlush()
	return q.srv.disk.Flush()
}

// write takes a guest's write to the disk.
func (q *queue) write(r *request, off int64, size int) (err error) {
	s := q.srv
	if q.readOnly {
		return errReadOnly
	}
	v, all := q.views(r)
	var data []byte
	if s.opts.Observer != nil {
		s.order.Lock()
		defer s.order.Unlock()
		data = s.opts.Observer.Reserve(off, size)
		defer func() {
			if err != nil {
				s.opts.Observer.Abandon(off, int64(size), data)
			} else {
				s.publish(block.Write{Op: block.OpWrite, Off: off, Len: int64(size), Data: data})
			}
		}()
	}
	if d, ok := s.disk.(block.VecWriter); ok && data == nil && all {
		_, err = d.WriteVecAt(v, off) // nobody looks at it: once from there is once
		return err
	}
	from := data
	if from == nil {
		buf := s.buffer(size)
		defer s.release(buf)
		from = *buf
	}
	from = from[:size]
	if err = q.move(r.segs, v, from, false); err != nil {
		return err
	}
	_, err = s.disk.WriteAt(from, off)
	return err
}

// discard does a discard.
func (q *queue) discard(r *request, t *token) (err error) {
	s := q.srv
	d, ok := s.disk.(block.Discarder)
	switch {
	case !ok:
		return errors.ErrUnsupported
	case q.readOnly:
		return errReadOnly
	case r.n > uint64(s.size)/sector:
		return errRange
	}
	n := int64(r.n) * sector
	if t.off, err = r.inside(uint64(n), s.size); err != nil || n == 0 {
		return err
	}
	if s.opts.Observer == nil {
		return d.Discard(t.off, n)
	}
	s.order.Lock()
	defer s.order.Unlock()
	if err := d.Discard(t.off, n); err != nil {
		s.opts.Observer.Abandon(t.off, n, nil)
		return err
	}
	s.publish(block.Write{Op: block.OpDiscard, Off: t.off, Len: n})
	return nil
}
