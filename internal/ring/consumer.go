package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

// Consumer reads records. Its methods are for one goroutine at a time, but for Wait, which may run beside Scan and At.
type Consumer struct {
	s    *shared
	wake *os.File
	bell syscall.RawConn // of wake
	cur  uint64          // of the next record
	tail uint64          // all below it was released
	seen uint64          // how far Scan has looked
	// kept are the positions of the records from tail to cur, behind the first gone ones.
	kept []uint64
	gone int
	// hold is the first of the pre-images that belong to the next write to a journal, if held: they stay until that was worked
	// on, however many they are, whatever lies in between, and however full the ring is. over: it was given.
	hold       uint64
	held, over bool
	// Lag is how many bytes of records that were given stay in the ring, as long as it is not half full. Set it before
	// the first Next.
	Lag int
}

// NewConsumer opens a ring for reading from where an earlier consumer was. files stay the caller's.
func NewConsumer(files Files) (*Consumer, error) {
	s, err := open(files.Memory)
	if err != nil {
		return nil, err
	}
	t := s.word(hdrTail).Load()
	if t%headSize != 0 {
		s.close()
		return nil, fmt.Errorf("position %d: %w", t, ErrDamaged)
	}
	wake, err := unix.FcntlInt(uintptr(files.Wake), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.close()
		return nil, os.NewSyscallError("dup", err)
	}
	c := &Consumer{s: s, wake: os.NewFile(uintptr(wake), "wake"), cur: t, tail: t, seen: t}
	if c.bell, err = c.wake.SyscallConn(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close unmaps the ring: data that was given is void.
func (c *Consumer) Close() {
	c.wake.Close()
	c.s.close()
}

// Leave tells the producer that nobody reads any more.
func (c *Consumer) Leave() {
	c.s.word(hdrAbsent).Store(1)
}

// Pos is the position of the record that comes next. Positions rise, and wrap at 2^64.
func (c *Consumer) Pos() uint64 { return c.cur }

// Tail is the position of the oldest record that is still in the ring.
func (c *Consumer) Tail() uint64 { return c.tail }

// Backlog is how much of the ring was not read yet: bytes, of how many.
func (c *Consumer) Backlog() (n, of int64) {
	return int64(min(c.s.word(hdrHead).Load()-c.cur, c.s.size)), int64(c.s.size)
}

// Losing reports whether records were dropped of which the ring does not tell yet.
func (c *Consumer) Losing() bool { return c.s.word(hdrLost).Load() != 0 }

// Beat is when the producer last said that it lives.
func (c *Consumer) Beat() time.Time { return time.Unix(0, int64(c.s.word(hdrBeat).Load())) }

// record reads the record at pos, which is not trusted: it lies below head.
func (c *Consumer) record(pos, head uint64) (r Record, state uint32, size uint64, err error) {
	state = c.s.state(pos).Load()
	b := c.s.at(pos, headSize)
	le := binary.LittleEndian
	size = le.Uint64(b[recTotal:])
	n := le.Uint64(b[recData:])
	r = Record{
		Kind: Kind(le.Uint16(b[recKind:])), Flags: le.Uint16(b[recFlags:]), Extra: le.Uint32(b[recExtra:]),
		Time: int64(le.Uint64(b[recTime:])), Off: int64(le.Uint64(b[recOff:])), Len: int64(le.Uint64(b[recLen:])),
	}
	if size < headSize || size%headSize != 0 || size > head-pos || n > size-headSize || r.Kind == 0 || r.Kind >= kinds ||
		r.Off < 0 || r.Len < 0 || r.Off+r.Len < 0 || n > 0 && int64(n) != r.Len || state != busy && state != ready && state != void {
		return r, 0, 0, fmt.Errorf("record at %d (kind %d, %d bytes, %d of data): %w", pos, r.Kind, size, n, ErrDamaged)
	}
	if n > 0 {
		r.Data = c.s.at(pos+headSize, n)[:n:n]
	}
	return r, state, size, nil
}

// top is the position behind the last record.
func (c *Consumer) top() (uint64, error) {
	head := c.s.word(hdrHead).Load()
	if head%headSize != 0 || head-c.tail > c.s.size || head-c.tail < c.cur-c.tail {
		return 0, fmt.Errorf("positions %d, %d and %d: %w", c.tail, c.cur, head, ErrDamaged)
	}
	return head, nil
}

// release frees what need not stay.
func (c *Consumer) release(head uint64) {
	lag := uint64(max(c.Lag, 0))
	if head-c.tail > c.s.size/2 {
		lag = 0
	}
	// The record that they belong to was worked on, or is lost, which is told when there is room.
	if c.over || c.held && c.cur == head && c.s.word(hdrLost).Load() != 0 {
		c.held, c.over = false, false
	}
	n := c.gone
	for n < len(c.kept) && c.cur-c.kept[n] > lag && !(c.held && int64(c.kept[n]-c.hold) >= 0) {
		n++
	}
	if n == c.gone {
		return
	}
	c.tail, c.gone = c.cur, n
	if n < len(c.kept) {
		c.tail = c.kept[n]
	}
	if c.gone > len(c.kept)/2 {
		c.kept, c.gone = c.kept[:copy(c.kept, c.kept[c.gone:])], 0
	}
	c.s.word(hdrTail).Store(c.tail)
}

// note takes down what a record that is given means for what is held.
func (c *Consumer) note(pos uint64, r *Record) {
	switch {
	case r.Kind != PreImage:
		c.over = c.over || c.held && (r.Flags&Logged != 0 || r.Kind == Lost)
	case !c.held || c.over:
		c.hold, c.held, c.over = pos, true, false
	}
}

// Poll gives the next record if it is there. The one before it is void, unless Lag keeps it.
func (c *Consumer) Poll() (r Record, ok bool, err error) {
	head, err := c.top()
	if err != nil {
		return Record{}, false, err
	}
	c.release(head)
	for c.cur != head {
		r, state, size, err := c.record(c.cur, head)
		if err != nil {
			return Record{}, false, err
		}
		if state == busy {
			return Record{}, false, nil
		}
		c.kept = append(c.kept, c.cur)
		if state != void {
			c.note(c.cur, &r)
		}
		c.cur += size
		if state == void {
			c.release(head)
			continue
		}
		return r, true, nil
	}
	return Record{}, false, nil
}

// Next waits for the next record. When ctx ends, the error is its; Next may be called again with another.
func (c *Consumer) Next(ctx context.Context) (Record, error) {
	for {
		r, ok, err := c.Poll()
		if ok || err != nil {
			return r, err
		}
		if err := c.Wait(ctx); err != nil {
			return Record{}, err
		}
	}
}

// Wait returns when there may be a record, or when ctx has ended, with its error.
func (c *Consumer) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := c.s.word(hdrWaiting)
	w.Store(1)
	if head := c.s.word(hdrHead).Load(); head != c.cur && c.s.state(c.cur).Load() != busy {
		w.Store(0)
		return nil
	}
	c.wake.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.wake.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// Go's runtime is not told of the read, which never waits: each one that comes behind a rest would wake its monitor.
	err := c.bell.Read(func(fd uintptr) bool {
		var b [8]byte
		_, no := hot.Now(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), 8, 0, 0, 0)
		return no != unix.EAGAIN && no != unix.EINTR
	})
	w.Store(0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err() // nil: it was an earlier context's
	}
	return err
}

// Wake makes a Wait return.
func (c *Consumer) Wake() { c.wake.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Scan calls f for every record that Scan has not seen yet, up to the newest, also those that are not ready to be given: f
// may keep nothing of r but its position. It may be called between two Next.
func (c *Consumer) Scan(f func(pos uint64, r Record)) error {
	head, err := c.top()
	if err != nil {
		return err
	}
	if c.seen-c.tail > c.s.size { // released meanwhile
		c.seen = c.tail
	}
	if head-c.seen > c.s.size {
		return fmt.Errorf("positions %d and %d: %w", c.seen, head, ErrDamaged)
	}
	for c.seen != head {
		r, state, size, err := c.record(c.seen, head)
		if err != nil {
			return err
		}
		if state == busy && r.Kind == PreImage {
			return nil // nobody's write waits on it yet
		}
		if state != void {
			f(c.seen, r)
		}
		c.seen += size
	}
	return nil
}

// At gives the data of a record that Scan has shown and that was not released.
func (c *Consumer) At(pos uint64) (Record, error) {
	head, err := c.top()
	if err != nil {
		return Record{}, err
	}
	if pos-c.tail >= head-c.tail {
		return Record{}, fmt.Errorf("position %d is not in the ring: %w", pos, ErrDamaged)
	}
	r, _, _, err := c.record(pos, head)
	return r, err
}
