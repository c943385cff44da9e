package ring

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

// Reason says why writes are missing.
type Reason uint32

// The reasons.
const (
	Overflow   Reason = iota + 1 // the consumer was too slow
	Restarted                    // the receiver was started anew: what came in between is not known
	NotCaught                    // a block could not be read before a transaction changed it
	WriteError                   // a write failed: nobody knows what the disk holds there
)

func (r Reason) String() string {
	switch r {
	case Overflow:
		return "the reader did not keep up with the guest's writes"
	case Restarted:
		return "the receiver was started anew"
	case NotCaught:
		return "a block could not be read before its transaction changed it"
	case WriteError:
		return "a write to the disk failed"
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Producer writes records. Its methods are safe for concurrent use.
type Producer struct {
	s    *shared
	wake int // eventfd
	now  func() int64

	mu   sync.Mutex
	head uint64
	tail uint64 // as last seen

	open      bool          // a transaction of a journal is being written: its commit block is to come
	unflushed bool          // there are writes for which a flush is the mark
	unsaid    atomic.Uint64 // bytes of records that the consumer was not woken for
	late      atomic.Bool   // writes do not wake it; Answered does
	due       atomic.Bool   // it should
}

// urgent reports whether the consumer is to be woken for a record at once: where something has become durable or true, or the
// stream has changed its state. What the guest writes without asking for that waits for such a record, for a sixteenth of
// the ring's size, or for Tick: to wake a process for each write costs as much as the write.
//
// A journal's commit block is such a record; the flushes before and behind it, which every fsync makes, say nothing more. p.mu is
// held.
func (p *Producer) urgent(r *Record) bool {
	switch {
	case r.Kind == PreImage:
		return false
	case r.Flags&Logged != 0:
		p.open = r.Flags&More != 0
		p.unflushed = p.unflushed && p.open
		return !p.open || r.Flags&FUA != 0
	case r.Kind == Flush:
		said := p.open || !p.unflushed
		p.unflushed = p.unflushed && p.open
		return !said
	case r.Kind == Lost || r.Kind == Marker:
		return true
	}
	p.unflushed = true
	return r.Flags&FUA != 0
}

// NewProducer opens a ring for writing. What an earlier producer left unfinished is given up: there must be only one
// process that produces. files stay the caller's; Wake is used until Close.
func NewProducer(files Files) (*Producer, error) {
	s, err := open(files.Memory)
	if err != nil {
		return nil, err
	}
	p := &Producer{s: s, wake: files.Wake, now: func() int64 { return time.Now().UnixNano() }, unflushed: true} // by one before us
	p.head = s.word(hdrHead).Load()
	p.tail = s.word(hdrTail).Load()
	if p.head%headSize != 0 || p.tail%headSize != 0 || p.head-p.tail > s.size {
		s.close()
		return nil, fmt.Errorf("positions %d and %d: %w", p.tail, p.head, ErrDamaged)
	}
	for pos := p.tail; pos != p.head; {
		n := binary.LittleEndian.Uint64(s.at(pos, headSize)[recTotal:])
		if n < headSize || n%headSize != 0 || n > p.head-pos {
			s.close()
			return nil, fmt.Errorf("record of %d bytes at %d: %w", n, pos, ErrDamaged)
		}
		s.state(pos).CompareAndSwap(busy, void)
		pos += n
	}
	p.signal()
	return p, nil
}

// Close unmaps the ring. No slot may be in use.
func (p *Producer) Close() { p.s.close() }

// Slot is a record that is being made. Data is in the ring, to be filled.
type Slot struct {
	p      *Producer
	state  *atomic.Uint32
	Data   []byte
	urgent bool
	late   bool
}

// OK reports whether the slot is one: there was room.
func (s *Slot) OK() bool { return s.p != nil }

// Reserve makes a record with n bytes of data. Its place among the others is decided now. Without room it is counted as lost
// (a write) or forgotten (others), and the slot is not OK.
func (p *Producer) Reserve(r Record, n int) Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.room(total(n)) || !p.tellLost(total(n)) {
		if r.Kind <= Flush || r.Kind == PreImage {
			p.lose(1, Overflow)
		}
		return Slot{}
	}
	return p.put(r, n)
}

// Append makes a whole record, its data copied.
func (p *Producer) Append(r Record) bool {
	s := p.Reserve(r, len(r.Data))
	if !s.OK() {
		return false
	}
	copy(s.Data, r.Data)
	s.Commit()
	return true
}

// AppendAll makes whole records that follow on each other directly, or none of them.
func (p *Producer) AppendAll(list []Record) bool {
	var sum uint64
	for i := range list {
		sum += total(len(list[i].Data))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.room(sum) || !p.tellLost(sum) {
		p.lose(1, Overflow)
		return false
	}
	for i := range list {
		s := p.put(list[i], len(list[i].Data))
		copy(s.Data, list[i].Data)
		s.Commit()
	}
	return true
}

// Lose says that n writes are missing from here on.
func (p *Producer) Lose(n uint64, why Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose(n, why)
	p.tellLost(0)
}

// Tick does what is to be done now and then: it tells of losses once there is room, and that the producer lives, and wakes the
// consumer for what it was not woken for.
func (p *Producer) Tick() {
	p.s.word(hdrBeat).Store(uint64(p.now()))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tellLost(0)
	if p.unsaid.Load() > 0 {
		p.signal()
	}
}

// Size is how many bytes of records the ring takes.
func (p *Producer) Size() int64 { return int64(p.s.size) }

// Losing reports whether writes are being dropped.
func (p *Producer) Losing() bool { return p.s.word(hdrLost).Load() != 0 }

// Deserted reports whether the consumer has said that it will not come back.
func (p *Producer) Deserted() bool { return p.s.word(hdrAbsent).Load() != 0 }

// Desert drops everything from now on.
func (p *Producer) Desert() { p.s.word(hdrAbsent).Store(1) }

// room reports whether n bytes fit.
func (p *Producer) room(n uint64) bool {
	if p.Deserted() {
		return false
	}
	if p.s.size-(p.head-p.tail) >= n {
		return true
	}
	t := p.s.word(hdrTail).Load()
	if t%headSize != 0 || p.head-t > p.s.size {
		return false // a broken consumer gets nothing more
	}
	p.tail = t
	return p.s.size-(p.head-p.tail) >= n
}

func (p *Producer) lose(n uint64, why Reason) {
	w := p.s.word(hdrLost)
	if w.Load() == 0 {
		p.s.word(hdrReason).Store(uint64(why))
	}
	w.Add(n)
}

// tellLost writes the record of what was lost, with need bytes more to spare. Once records were dropped it waits until a
// quarter of the ring is free, so that they are not dropped one by one. It is false as long as the loss is not told.
func (p *Producer) tellLost(need uint64) bool {
	w := p.s.word(hdrLost)
	n := w.Load()
	if n == 0 {
		return true
	}
	if !p.room(max(p.s.size/4, need+headSize)) {
		return false
	}
	s := p.put(Record{Kind: Lost, Len: int64(n), Extra: uint32(p.s.word(hdrReason).Load())}, 0)
	s.Commit()
	w.Store(0)
	return true
}

// put writes a record's head and moves on. There is room.
func (p *Producer) put(r Record, n int) Slot {
	size := total(n)
	b := p.s.at(p.head, headSize)
	state := p.s.state(p.head)
	state.Store(busy)
	le := binary.LittleEndian
	le.PutUint16(b[recKind:], uint16(r.Kind))
	le.PutUint16(b[recFlags:], r.Flags)
	le.PutUint64(b[recTotal:], size)
	if r.Time == 0 {
		r.Time = p.now()
	}
	le.PutUint64(b[recTime:], uint64(r.Time))
	le.PutUint64(b[recOff:], uint64(r.Off))
	le.PutUint64(b[recLen:], uint64(r.Len))
	le.PutUint64(b[recData:], uint64(n))
	le.PutUint32(b[recExtra:], r.Extra)
	data := p.s.at(p.head+headSize, uint64(n))
	p.head += size
	p.s.word(hdrHead).Store(p.head)
	return Slot{p, state, data[:n:n], p.urgent(&r), r.Kind == Write && p.late.Load()}
}

// Commit hands the record over.
func (s *Slot) Commit() {
	s.state.Store(ready)
	s.done()
}

// Abandon takes the record back: nobody will see it.
func (s *Slot) Abandon() {
	s.state.Store(void)
	s.done()
}

// done wakes the consumer if it should be.
func (s *Slot) done() {
	n := s.p.unsaid.Add(total(len(s.Data)))
	switch {
	case !s.urgent && n <= s.p.s.size/16:
	case s.late:
		s.p.due.Store(true)
	default:
		s.p.signal()
	}
}

// WakeLate has a write wake the consumer only when Answered says that the guest was told of it: to wake a process takes
// about as long as all else that is done for a write, and the guest waits. Other records wake it as before.
func (p *Producer) WakeLate() { p.late.Store(true) }

// Answered wakes the consumer for writes that should have, after WakeLate. Should it never be called, Tick does so.
func (p *Producer) Answered() {
	if p.due.Load() && p.due.Swap(false) {
		p.signal()
	}
}

// signal wakes the consumer if it sleeps.
func (p *Producer) signal() {
	p.unsaid.Store(0)
	w := p.s.word(hdrWaiting)
	if w.Load() != 0 && w.Swap(0) != 0 {
		// It does not block: should its counter be full, the consumer is awake anyhow.
		one := [8]byte{1}
		hot.Now(unix.SYS_WRITE, uintptr(p.wake), uintptr(unsafe.Pointer(&one)), 8, 0, 0, 0)
	}
}
