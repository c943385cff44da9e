package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
)

// Consumer reads records. Its methods are for one goroutine at a time.
type Consumer struct {
	s    *shared
	wake *os.File
	tail uint64 // of the record that was given last, or of the next
	held uint64 // size of the record that was given last and is not released
	seen uint64 // how far Scan has looked
}

// NewConsumer opens a ring for reading from where an earlier consumer was. files stay the caller's; Wake is used until
// Close.
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
	return &Consumer{s: s, wake: files.Wake, tail: t, seen: t}, nil
}

// Close unmaps the ring: data that was given is void.
func (c *Consumer) Close() { c.s.close() }

// Leave tells the producer that nobody reads any more.
func (c *Consumer) Leave() {
	c.s.word(hdrAbsent).Store(1)
}

// Pos is the position of the record that Next gave last.
func (c *Consumer) Pos() uint64 { return c.tail }

// Backlog is how much of the ring is filled: bytes, of how many.
func (c *Consumer) Backlog() (n, of int64) {
	return int64(min(c.s.word(hdrHead).Load()-c.tail, c.s.size)), int64(c.s.size)
}

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
	if head%headSize != 0 || head-c.tail > c.s.size {
		return 0, fmt.Errorf("positions %d and %d: %w", c.tail, head, ErrDamaged)
	}
	return head, nil
}

// release frees the record that was given last.
func (c *Consumer) release() {
	if c.held > 0 {
		c.tail += c.held
		c.held = 0
		c.s.word(hdrTail).Store(c.tail)
	}
}

// Poll gives the next record if it is there. The one before it is void.
func (c *Consumer) Poll() (r Record, ok bool, err error) {
	c.release()
	for {
		head, err := c.top()
		if err != nil || head == c.tail {
			return Record{}, false, err
		}
		r, state, size, err := c.record(c.tail, head)
		if err != nil {
			return Record{}, false, err
		}
		switch state {
		case busy:
			return Record{}, false, nil
		case void:
			c.held = size
			c.release()
			continue
		}
		c.held = size
		return r, true, nil
	}
}

// Next waits for the next record. When ctx ends, the error is its; Next may be called again with another.
func (c *Consumer) Next(ctx context.Context) (Record, error) {
	for {
		r, ok, err := c.Poll()
		if ok || err != nil {
			return r, err
		}
		if err := c.sleep(ctx); err != nil {
			return Record{}, err
		}
	}
}

// sleep returns when there may be a record.
func (c *Consumer) sleep(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := c.s.word(hdrWaiting)
	w.Store(1)
	if head := c.s.word(hdrHead).Load(); head != c.tail && (head-c.tail > c.s.size || c.s.state(c.tail).Load() != busy) {
		w.Store(0)
		return nil
	}
	c.wake.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.wake.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [8]byte
	_, err := c.wake.Read(b[:])
	w.Store(0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if err := ctx.Err(); err != nil {
			return err
		}
		return nil // an earlier context's
	}
	return err
}

// Scan calls f for every record ahead that Scan has not seen yet, also those that are not ready to be given: f may keep
// nothing of r but its position. It may be called between two Next.
func (c *Consumer) Scan(f func(pos uint64, r Record)) error {
	head, err := c.top()
	if err != nil {
		return err
	}
	if c.seen-c.tail > c.s.size { // consumed meanwhile
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
		if state == ready || state == busy && r.Kind != PreImage {
			f(c.seen, r)
		} else if state == busy {
			return nil // a pre-image that is being written: nobody's write waits on it yet
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
