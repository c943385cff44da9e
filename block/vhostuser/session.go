package vhostuser

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Feature bits: of the block device, of virtio, and of vhost-user's own extensions.
const (
	featSegMax      = 1 << 2
	featReadOnly    = 1 << 5
	featBlockSize   = 1 << 6
	featFlush       = 1 << 9
	featQueues      = 1 << 12
	featDiscard     = 1 << 13
	featWriteZeroes = 1 << 14
	featIndirect    = 1 << 28
	featEventIdx    = 1 << 29
	featProtocol    = 1 << 30
	featVersion1    = 1 << 32

	protoQueues   = 1 << 0
	protoReplyAck = 1 << 3
	protoConfig   = 1 << 9
	protoInflight = 1 << 12
	protoReset    = 1 << 13
	protoSlots    = 1 << 15
	protoStatus   = 1 << 16

	protocolFeatures = protoQueues | protoReplyAck | protoConfig | protoInflight | protoReset | protoSlots | protoStatus
)

const maxQueues = 256 // an index in a message has 8 bits

// session is one connection of a front end.
type session struct {
	srv      *Server
	w        wire
	features uint64
	proto    uint64
	status   uint64
	queues   []*queue
	inflight *inflight   // nil: none was given
	slots    atomic.Bool // the memory table changes in steps
	hung     time.Time   // when a queue's stop was not waited for to its end

	memMu  sync.Mutex
	mem    *table                // nil before the front end has told
	memNow atomic.Pointer[table] // the same, for comparison only
}

// serve answers the front end until it goes. Nothing here waits for the disk but stop, and that not for long: QEMU
// stands still until it has its answer.
func (s *session) serve() error {
	for {
		m, err := s.w.read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		answered, err := s.handle(&m)
		m.closeFDs()
		if err == nil && answered {
			continue
		}
		ack := s.proto&protoReplyAck != 0 && m.flags&flagNeedReply != 0 && !answered
		switch {
		case err != nil && !ack:
			// There is no way to tell but to hang up.
			return fmt.Errorf("%v: %w", m.req, err)
		case err != nil:
			s.srv.report(fmt.Errorf("%v: %w", m.req, err))
			err = s.w.replyU64(m.req, 1)
		case ack:
			err = s.w.replyU64(m.req, 0)
		}
		if err != nil {
			return err
		}
	}
}

// end stops all queues, with time for what is under way until then.
func (s *session) end(until time.Time) {
	s.haltAll()
	for _, q := range s.queues {
		if r := q.run.Swap(nil); r != nil {
			r.stop(until)
		}
		q.setFD(&q.call, -1)
		q.setFD(&q.err, -1)
	}
	s.memMu.Lock()
	t := s.mem
	s.mem = nil
	s.memMu.Unlock()
	if t != nil {
		t.release()
	}
	s.inflight.release()
	s.inflight = nil
}

// handle does one request. answered: its own reply was sent.
func (s *session) handle(m *message) (answered bool, err error) {
	reply := func(v uint64) (bool, error) { return true, s.w.replyU64(m.req, v) }
	switch m.req {
	case getFeatures:
		return reply(s.srv.features)
	case setFeatures:
		return false, s.setFeatures(m)
	case getProtocolFeatures:
		return reply(protocolFeatures)
	case setProtocolFeatures:
		v, err := m.u64()
		if err == nil && v&^protocolFeatures != 0 {
			err = fmt.Errorf("%w: protocol features %#x were not offered", ErrProtocol, v&^protocolFeatures)
		}
		if err != nil {
			return false, err
		}
		s.proto = v
		s.slots.Store(v&protoSlots != 0)
		return false, nil
	case setOwner, resetOwner: // the latter is deprecated and without effect
		return false, nil
	case getQueueNum:
		return reply(uint64(len(s.queues)))
	case getMaxMemSlots:
		return reply(maxSlots)
	case setMemTable:
		return false, s.setTable(m)
	case addMemReg:
		return false, s.addRegion(m)
	case remMemReg:
		return false, s.removeRegion(m)
	case getConfig:
		return true, s.getConfig(m)
	case setConfig: // nothing in it can be written
		return false, fmt.Errorf("%w: configuration is read-only", ErrProtocol)
	case getInflightFD:
		return true, s.newInflight(m)
	case setInflightFD:
		return false, s.setInflight(m)
	case resetDevice:
		s.halt(time.Now().Add(s.srv.opts.StopTimeout))
		s.features, s.status = 0, 0
		return false, nil
	case setStatus:
		v, err := m.u64()
		s.status = v
		return false, err
	case getStatus:
		return reply(s.status)
	case setVringNum, setVringBase, setVringEnable, getVringBase:
		return s.vringState(m)
	case setVringAddr:
		return false, s.vringAddr(m)
	case setVringKick, setVringCall, setVringErr:
		return false, s.vringFD(m)
	}
	return false, fmt.Errorf("%w: %v is not known", ErrProtocol, m.req)
}

func (s *session) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if v&^s.srv.features != 0 {
		return fmt.Errorf("%w: features %#x were not offered", ErrProtocol, v&^s.srv.features)
	}
	s.features = v
	if v&featProtocol == 0 { // then there is no SET_VRING_ENABLE
		for _, q := range s.queues {
			q.enable(true)
		}
	}
	return nil
}

// haltAll lets all queues know at once that they will be stopped.
func (s *session) haltAll() {
	for _, q := range s.queues {
		if r := q.run.Load(); r != nil {
			r.halt.Store(true)
			r.wake()
		}
	}
}

// halt stops all queues and turns them off.
func (s *session) halt(until time.Time) {
	s.haltAll()
	for _, q := range s.queues {
		if r := q.run.Swap(nil); r != nil {
			q.base = r.stop(until)
		}
		q.on.Store(false)
	}
}

// stop stops a queue. The front end stops one after the other: if the disk hangs, it is the first that is waited for.
func (s *session) stop(q *queue) {
	r := q.run.Swap(nil)
	if r == nil {
		return
	}
	until := time.Now().Add(s.srv.opts.StopTimeout)
	if time.Since(s.hung) < 5*time.Second {
		until = time.Now()
	}
	q.base = r.stop(until)
	select {
	case <-r.ended:
	default:
		s.hung = time.Now()
	}
}

func (s *session) queue(i uint32) (*queue, error) {
	if uint64(i) >= uint64(len(s.queues)) {
		return nil, fmt.Errorf("%w: queue %d of %d", ErrProtocol, i, len(s.queues))
	}
	return s.queues[i], nil
}

func (q *queue) enable(on bool) {
	q.on.Store(on)
	if r := q.run.Load(); r != nil {
		r.wake()
	}
}

// vringState does the requests about a queue's number.
func (s *session) vringState(m *message) (answered bool, err error) {
	i, v, err := m.state()
	if err != nil {
		return false, err
	}
	q, err := s.queue(i)
	if err != nil {
		return false, err
	}
	if q.run.Load() != nil && (m.req == setVringNum || m.req == setVringBase) {
		return false, fmt.Errorf("%w: %v of queue %d, which runs", ErrProtocol, m.req, i)
	}
	switch m.req {
	case setVringNum:
		if v == 0 || v > maxQueueSize || v&(v-1) != 0 {
			return false, fmt.Errorf("%w: queue %d of %d entries", ErrProtocol, i, v)
		}
		q.num = v
	case setVringBase:
		q.base = uint16(v)
	case setVringEnable:
		q.enable(v != 0)
	case getVringBase:
		s.stop(q)
		q.setFD(&q.call, -1)
		b := binary.LittleEndian.AppendUint32(nil, i)
		return true, s.w.reply(m.req, binary.LittleEndian.AppendUint32(b, uint32(q.base)), nil)
	}
	return false, nil
}

// vringAddr takes the addresses of a ring: u32 index, u32 flags, u64 descriptors, used, available, log.
func (s *session) vringAddr(m *message) error {
	if len(m.data) != 40 {
		return m.badSize()
	}
	le := binary.LittleEndian
	q, err := s.queue(le.Uint32(m.data))
	if err != nil {
		return err
	}
	a := ringAddr{desc: le.Uint64(m.data[8:]), used: le.Uint64(m.data[16:]), avail: le.Uint64(m.data[24:])}
	if q.run.Load() != nil {
		if a == q.addr { // only the flags for the migration's log changed, which there is none of
			return nil
		}
		return fmt.Errorf("%w: addresses of queue %d, which runs", ErrProtocol, q.index)
	}
	t, err := s.table()
	if err != nil {
		return err
	}
	defer t.release()
	if _, err := t.newRing(a, max(q.num, 1), false); err != nil {
		return err
	}
	q.addr, q.hasAddr = a, true
	return nil
}

// vringFD takes a queue's descriptor: bits 0 to 7 of the payload are its index, bit 8 says that there is none.
func (s *session) vringFD(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	q, err := s.queue(uint32(v & 0xff))
	if err != nil {
		return err
	}
	fd := -1
	if v&(1<<8) == 0 {
		if fd, err = m.fd(); err != nil {
			return err
		}
	}
	switch m.req {
	case setVringCall:
		q.setFD(&q.call, fd)
		q.signal(&q.call) // what was said on the one before may not have been heard
	case setVringErr:
		q.setFD(&q.err, fd)
	case setVringKick:
		s.stop(q) // if it runs, this is another descriptor for it
		return q.start(fd)
	}
	return nil
}

// getConfig answers with a part of the configuration: u32 offset, u32 size, u32 flags, bytes.
func (s *session) getConfig(m *message) error {
	if len(m.data) < 12 {
		return m.badSize()
	}
	le := binary.LittleEndian
	off, n := uint64(le.Uint32(m.data)), uint64(le.Uint32(m.data[4:]))
	if n != uint64(len(m.data)-12) || off+n > 256 {
		return s.w.reply(m.req, nil, nil) // which is how an error is told
	}
	config := make([]byte, 256)
	copy(config, s.srv.config)
	return s.w.reply(m.req, append(m.data[:12:12], config[off:off+n]...), nil)
}

// newInflight makes the memory for what is in flight, which the front end hands back with SET_INFLIGHT_FD.
func (s *session) newInflight(m *message) error {
	queues, queueSize, err := inflightShape(m)
	if err != nil {
		return err
	}
	x, err := newInflight(queues, queueSize)
	if err != nil {
		return err
	}
	defer x.release()
	payload := make([]byte, len(m.data)) // as long as what was sent
	copy(payload, x.describe())
	return s.w.reply(m.req, payload, x.file)
}

// inflightShape reads {u64 size, u64 offset, u16 queues, u16 queue size}.
func inflightShape(m *message) (queues, queueSize int, err error) {
	if len(m.data) != 20 && len(m.data) != 24 { // QEMU's structure ends with padding
		return 0, 0, m.badSize()
	}
	le := binary.LittleEndian
	queues, queueSize = int(le.Uint16(m.data[16:])), int(le.Uint16(m.data[18:]))
	if queues < 1 || queues > maxQueues || queueSize < 1 || queueSize > maxQueueSize {
		return 0, 0, fmt.Errorf("%w: %v for %d queues of %d", ErrProtocol, m.req, queues, queueSize)
	}
	return queues, queueSize, nil
}

func (s *session) setInflight(m *message) error {
	queues, queueSize, err := inflightShape(m)
	if err != nil {
		return err
	}
	fd, err := m.fd()
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	f := os.NewFile(uintptr(fd), "vhost-user inflight")
	x, err := openInflight(f, le.Uint64(m.data[8:]), le.Uint64(m.data), queues, queueSize)
	if err != nil {
		return err
	}
	s.inflight.release() // runs have their own reference
	s.inflight = x
	return nil
}
