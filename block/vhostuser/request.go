package vhostuser

import (
	"encoding/binary"
	"errors"
	"time"

	"vmscope/block"
	"vmscope/mem"
)

// Kinds and results of requests (virtio 1.2, 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOErr       = 1
	statusUnsupported = 2

	zeroesUnmap = 1 // flag of a segment

	sector   = 512
	idLength = 20

	maxSegments   = 32 // of a discard or write-zeroes
	segmentLength = 16
	// pieceSize bounds what goes to the observer at once, and the memory for reads that take I/O.
	pieceSize = 1 << 20
)

// op is one request under way.
type op struct {
	chain
	status []byte // one byte of the guest
	kind   uint32
	off    int64
}

// start reads the request's header. ok is false where the answer is known at once.
func (o *op) start(size int64) (status byte, ok bool) {
	o.status = nil
	if !o.noEnd {
		o.status = o.last()
	}
	var header [16]byte
	if o.bad != nil || o.status == nil || !o.take(header[:]) {
		return statusIOErr, false
	}
	o.kind = binary.LittleEndian.Uint32(header[:])
	at := binary.LittleEndian.Uint64(header[8:])
	if o.kind == typeIn || o.kind == typeOut {
		n := sizeOf(o.read)
		if o.kind == typeIn {
			n = sizeOf(o.write)
		}
		// Written so that nothing can overflow: size is at most 2^63-1.
		if n%sector != 0 || at > uint64(size)/sector || n > size-int64(at)*sector {
			return statusIOErr, false
		}
		o.off = int64(at) * sector
	}
	return statusOK, true
}

// result is the status of an error.
func result(err error) byte {
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, errors.ErrUnsupported):
		return statusUnsupported
	}
	return statusIOErr
}

// do serves a request. later means that it goes on beside the queue and is completed there; n is the number of bytes
// that were written to the guest, its status aside.
func (r *run) do(o *op) (status byte, n int64, later bool) {
	srv := r.q.s.srv
	switch o.kind {
	case typeIn:
		return r.doRead(o)
	case typeOut:
		if srv.opts.ReadOnly {
			return statusIOErr, 0, false
		}
		if err := srv.write(o); err != nil {
			return r.failed("write", o, err), 0, false
		}
		return statusOK, 0, false
	case typeFlush:
		if srv.opts.ReadOnly {
			return statusOK, 0, false
		}
		srv.publishFlush()
		flush := func() (byte, int64) { return r.failed("flush", o, srv.disk.Flush()), 0 }
		if r.aside(o, flush) || r.beside(o, flush) {
			return statusOK, 0, true
		}
		status, _ = flush()
		return status, 0, false
	case typeGetID:
		var id [idLength]byte
		copy(id[:], srv.opts.Serial)
		rest := id[:]
		for _, b := range o.write {
			m := copy(b, rest)
			rest, n = rest[m:], n+int64(m)
		}
		return statusOK, n, false
	case typeDiscard, typeWriteZeroes:
		return r.failed("discard", o, srv.clear(o)), 0, false
	}
	return statusUnsupported, 0, false
}

// doRead reads from the page cache at once, and what is not there beside the queue.
func (r *run) doRead(o *op) (status byte, n int64, later bool) {
	srv := r.q.s.srv
	want := sizeOf(o.write)
	if want == 0 {
		return statusOK, 0, false
	}
	done, err := srv.readNow(o.write, o.off)
	if err == nil && int64(done) < want {
		rest, at := skip(o.write, done), o.off+int64(done)
		if srv.now != nil && r.beside(o, func() (byte, int64) {
			return r.failed("read", o, r.readBounced(rest, at)), want
		}) {
			return statusOK, 0, true
		}
		err = srv.readVec(rest, at)
	}
	return r.failed("read", o, err), want, false
}

// failed tells of an error of the disk, and gives the guest's status for it. nil is fine.
func (r *run) failed(what string, o *op, err error) byte {
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		r.q.s.srv.report(&RequestError{Op: what, Off: o.off, Queue: r.q.index, Err: err})
	}
	return result(err)
}

func sizeOf(list [][]byte) int64 { return size(list) }

// skip cuts the first n bytes off.
func skip(v [][]byte, n int) [][]byte {
	for len(v) > 0 && n >= len(v[0]) {
		n -= len(v[0])
		v = v[1:]
	}
	if n > 0 {
		v = append([][]byte{v[0][n:]}, v[1:]...)
	}
	return v
}

// readNow reads what takes no I/O; of a disk that cannot tell, nothing.
func (s *Server) readNow(v [][]byte, off int64) (int, error) {
	if s.now == nil {
		return 0, nil
	}
	return s.now.ReadVecNow(v, off)
}

// readVec reads into the guest's memory.
func (s *Server) readVec(v [][]byte, off int64) error {
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

// readBounced reads into memory of ours and copies from there, as long as the queue has not been stopped: the memory is
// the guest's to use again then, and a disk that is slow must not write there.
func (r *run) readBounced(v [][]byte, off int64) error {
	buf := r.q.s.srv.bounce.Get().(*[pieceSize]byte)
	defer r.q.s.srv.bounce.Put(buf)
	for len(v) > 0 {
		n := int(min(sizeOf(v), pieceSize))
		if err := block.ReadFull(r.q.s.srv.disk, buf[:n], off); err != nil {
			return err
		}
		r.mu.Lock()
		dead := r.dead
		if !dead {
			v = func() [][]byte {
				defer r.mu.Unlock() // also where the memory faults
				return scatter(v, buf[:n])
			}()
		} else {
			r.mu.Unlock()
			return nil
		}
		off += int64(n)
	}
	return nil
}

// scatter copies p to the start of v and gives the rest of v.
func scatter(v [][]byte, p []byte) [][]byte {
	for len(p) > 0 {
		n := copy(v[0], p)
		p = p[n:]
		if n == len(v[0]) {
			v = v[1:]
		} else {
			v = append([][]byte{v[0][n:]}, v[1:]...)
		}
	}
	return v
}

// write takes a guest's write to the disk, in pieces.
func (s *Server) write(o *op) error {
	if s.opts.Observer == nil {
		return s.writeVec(o.read, o.off)
	}
	s.order.Lock()
	defer s.order.Unlock()
	off := o.off
	for left := sizeOf(o.read); left > 0; {
		n := int(min(left, pieceSize))
		if err := s.writePiece(o, off, n); err != nil {
			return err
		}
		off, left = off+int64(n), left-int64(n)
	}
	return nil
}

func (s *Server) writePiece(o *op, off int64, n int) (err error) {
	data := s.opts.Observer.Reserve(off, n)
	done := false
	defer func() { // also where the guest's memory faults
		if !done {
			s.opts.Observer.Abandon(off, int64(n), data)
		}
	}()
	if data == nil {
		err = s.writeVec(o.cut(n), off)
	} else {
		data = data[:n]
		if !o.take(data) {
			return mem.ErrInconsistent // cannot be: the sizes were summed up
		}
		_, err = s.disk.WriteAt(data, off)
	}
	if err != nil {
		return err
	}
	done = true
	s.publish(block.Write{Time: time.Now(), Op: block.OpWrite, Off: off, Len: int64(n), Data: data})
	return nil
}

// cut takes the next n bytes of what the device reads, in place.
func (c *chain) cut(n int) (v [][]byte) {
	all := c.read
	for i, b := range all {
		if len(b) > n {
			if n == 0 {
				c.read = all[i:]
				return all[:i]
			}
			v = append(append(v, all[:i]...), b[:n])
			c.read = append([][]byte{b[n:]}, all[i+1:]...)
			return v
		}
		n -= len(b)
	}
	c.read = nil
	return all
}

func (s *Server) writeVec(v [][]byte, off int64) error {
	if d, ok := s.disk.(block.VecWriter); ok {
		_, err := d.WriteVecAt(v, off)
		return err
	}
	for _, b := range v {
		if _, err := s.disk.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// publish hands w to the observer; s.order is held.
func (s *Server) publish(w block.Write) {
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
	s.publish(block.Write{Time: time.Now(), Op: block.OpFlush})
}

// clear does a discard or write-zeroes: a list of {u64 sector, u32 sectors, u32 flags}.
func (s *Server) clear(o *op) error {
	n := sizeOf(o.read)
	if n == 0 || n%segmentLength != 0 || n > maxSegments*segmentLength {
		return mem.ErrInconsistent
	}
	if s.opts.ReadOnly {
		return mem.ErrInconsistent
	}
	var list [maxSegments * segmentLength]byte
	o.take(list[:n])
	// All segments are looked at before the first is done.
	for i := 0; i < int(n); i += segmentLength {
		at, count, flags := parseSegment(list[i:])
		switch {
		case flags&^zeroesUnmap != 0 || o.kind == typeDiscard && flags != 0:
			return errors.ErrUnsupported
		case at > uint64(s.size)/sector || int64(count)*sector > s.size-int64(at)*sector:
			return block.ErrOutOfRange
		}
	}
	for i := 0; i < int(n); i += segmentLength {
		at, count, flags := parseSegment(list[i:])
		if err := s.clearOne(o.kind, int64(at)*sector, int64(count)*sector, flags != 0); err != nil {
			return err
		}
	}
	return nil
}

func parseSegment(b []byte) (at uint64, count, flags uint32) {
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
}

func (s *Server) clearOne(kind uint32, off, n int64, unmap bool) error {
	what := block.OpZeroes
	if kind == typeDiscard {
		what = block.OpDiscard
	}
	if s.opts.Observer != nil {
		s.order.Lock()
		defer s.order.Unlock()
	}
	var err error
	switch kind {
	case typeDiscard:
		d, ok := s.disk.(block.Discarder)
		if !ok {
			return errors.ErrUnsupported
		}
		err = d.Discard(off, n)
	default:
		z, ok := s.disk.(block.Zeroer)
		if !ok {
			return errors.ErrUnsupported
		}
		err = z.WriteZeroes(off, n, unmap)
	}
	if s.opts.Observer == nil {
		return err
	}
	if err != nil {
		s.opts.Observer.Abandon(off, n, nil)
		return err
	}
	s.publish(block.Write{Time: time.Now(), Op: what, Off: off, Len: n})
	return nil
}
