package nbd

import (
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/internal/hot"
)

// write handles a write: header taken, payload still to come.
func (c *serverConn) write(q *request) error {
	p := Payload{r: c.in, n: int(min(q.len, maxPayload))}
	if no, why := c.check(q); no != 0 {
		if q.len > maxPayload { // reading it away would take forever
			return fmt.Errorf("%w: %s", ErrProtocol, why)
		}
		if err := p.Discard(); err != nil {
			return err
		}
		return c.fail(q, no, why)
	}
	c.in.expect(int(q.len))
	var err error
	switch {
	case q.len == 0:
	case c.payload != nil:
		err = c.payload.WritePayload(&p, int64(q.off), q.flags&FUA)
	default:
		err = c.writeAt(&p, int64(q.off), q.flags)
	}
	if err := p.Discard(); err != nil {
		return err
	}
	return c.done(q, err)
}

// writeAt writes to a device that knows no payloads.
func (c *serverConn) writeAt(p *Payload, off int64, f Flags) error {
	for p.Len() > 0 {
		b, err := p.Next(NextMax)
		if err != nil {
			return err
		}
		if _, err := c.writer.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if f&FUA != 0 {
		return c.flusher.Flush()
	}
	return nil
}

// zeroes is what zeroes are written from, and never written to.
var zeroes [64 << 10]byte

// writeZeroes writes zeroes to a device that has no quicker way.
func (c *serverConn) writeZeroes(off, n int64, f Flags) error {
	for n > 0 {
		m := int(min(n, int64(len(zeroes))))
		p := Payload{r: &reader{buf: zeroes[:m], w: m}, n: m}
		var err error
		if c.payload != nil {
			err = c.payload.WritePayload(&p, off, f&FUA)
		} else {
			err = c.writeAt(&p, off, 0)
		}
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	if c.payload == nil && f&FUA != 0 {
		return c.flusher.Flush()
	}
	return nil
}

// read answers a read.
func (c *serverConn) read(q *request) error {
	off, n := int64(q.off), int(q.len)
	switch {
	case n == 0 && !c.structured:
		return c.done(q, nil)
	case n == 0:
		return c.readEnd(q)
	case n <= inline:
		return c.readInline(q, off, n)
	}
	if c.structured && c.extenter != nil && q.flags&flagDF == 0 {
		exts, err := c.extenter.Extents(c.exts[:0], off, int64(n), 64)
		if err == nil {
			c.exts = exts
			off, n, err = c.readExtents(q, off, n)
		}
		if err != nil || n == 0 {
			return err
		}
	}
	if more, err := c.readLong(q, off, n); !more {
		return err
	}
	return c.readEnd(q)
}

// readEnd ends a structured reply.
func (c *serverConn) readEnd(q *request) error {
	if !c.structured {
		return nil
	}
	if err := c.room(structuredLen); err != nil {
		return err
	}
	c.out = appendChunk(c.out, chunkDone, chunkNone, q.cookie, 0)
	return nil
}

// readInline reads behind the reply's header in out.
func (c *serverConn) readInline(q *request, off int64, n int) error {
	if err := c.room(structuredLen + 8 + n); err != nil {
		return err
	}
	was := len(c.out)
	c.header(q, off, n, chunkDone)
	b := c.out[len(c.out) : len(c.out)+n]
	if c.filer != nil {
		if f, fileOff, ok := c.filer.File(off, n); ok && c.readNow(f, b, fileOff) {
			c.out = c.out[:len(c.out)+n]
			return nil
		}
	}
	if err := readFull(c.dev, b, off); err != nil {
		c.out = c.out[:was]
		return c.fail(q, wireErrno(err), err.Error())
	}
	c.out = c.out[:len(c.out)+n]
	return nil
}

// readNow reads b from a file if it is in the page cache. If not, it has the disk begin with the requests behind this one.
func (c *serverConn) readNow(f *os.File, b []byte, off int64) bool {
	if c.noNow {
		return false
	}
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	// The offset is in two halves, on 64 bits all in the first.
	n, no := hot.Syscall(unix.SYS_PREADV2, f.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	switch {
	case no == unix.EAGAIN || no == 0 && int(n) < len(b):
		c.prefetch()
	case no != 0:
		c.noNow = true
	}
	return no == 0 && int(n) == len(b)
}

// prefetch has the disk work at all the reads that have come already, while the first of them is waited for: requests are
// handled one after the other, but the disk can do many at once.
func (c *serverConn) prefetch() {
	if c.cacher == nil {
		return
	}
	const most = 64
	b := c.in.buf[c.in.r:c.in.w]
	for range most {
		if len(b) < requestLen {
			return
		}
		q, ok := parseRequest(b)
		if !ok {
			return
		}
		b = b[requestLen:]
		if q.typ == cmdWrite {
			if uint64(q.len) > uint64(len(b)) {
				return
			}
			b = b[q.len:]
		} else if no, _ := c.check(&q); q.typ == cmdRead && no == 0 {
			c.cacher.Cache(int64(q.off), int64(q.len))
		}
	}
}

// header puts that of a piece of data into out, for which there is room.
func (c *serverConn) header(q *request, off int64, n int, flags uint16) {
	if c.structured {
		c.out = appendChunk(c.out, flags, chunkData, q.cookie, 8+n)
		c.out = be.AppendUint64(c.out, uint64(off))
	} else {
		c.out = appendSimple(c.out, 0, q.cookie)
	}
}

// readExtents answers with the data that is there, and by name for what reads as zeroes, as far as c.exts go. It gives
// what is left; none, if the request was answered.
func (c *serverConn) readExtents(q *request, off int64, n int) (int64, int, error) {
	for _, e := range c.exts {
		m := int(min(e.Len, int64(n)))
		if m <= 0 {
			break
		}
		if !e.Zero && m == n {
			break // the rest is data
		}
		if e.Zero {
			if err := c.room(structuredLen + 12); err != nil {
				return 0, 0, err
			}
			flags := uint16(0)
			if m == n {
				flags = chunkDone
			}
			c.out = appendChunk(c.out, flags, chunkHole, q.cookie, 12)
			c.out = be.AppendUint64(c.out, uint64(off))
			c.out = be.AppendUint32(c.out, uint32(m))
		} else if more, err := c.readLong(q, off, m); !more {
			return 0, 0, err
		}
		off, n = off+int64(m), n-m
	}
	return off, n, nil
}

// readLong sends a piece of data that is part of a reply. more: the reply goes on; else it is over, with an error that the
// client was told, or one that ends the connection.
func (c *serverConn) readLong(q *request, off int64, n int) (more bool, err error) {
	if err := c.room(structuredLen + 8); err != nil {
		return false, err
	}
	was := len(c.out)
	c.header(q, off, n, 0)
	sent := 0 // of the data, once the header is out
	if c.filer != nil {
		if f, fileOff, ok := c.filer.File(off, n); ok {
			if !c.readNow(f, c.last[:], fileOff+int64(n)-1) && !c.noNow && c.cacher != nil {
				c.cacher.Cache(off, int64(n))
			}
			if err := c.flushOut(true); err != nil {
				return false, err
			}
			was = -1
			var err error
			if sent, err = c.st.sendFile(int(f.Fd()), fileOff, n); err == errNoSendFile {
				c.filer = nil
			}
			// Whatever else it was shows again below.
		}
	}
	for sent < n {
		if cap(c.out)-len(c.out) < min(n-sent, pieceMin) {
			if err := c.flushOut(true); err != nil {
				return false, err
			}
			was = -1
		}
		b := c.out[len(c.out):min(cap(c.out), len(c.out)+n-sent)]
		if err := readFull(c.dev, b, off+int64(sent)); err != nil {
			if was >= 0 { // nothing went out yet
				c.out = c.out[:was]
				return false, c.fail(q, wireErrno(err), err.Error())
			}
			if !c.structured {
				return false, fmt.Errorf("amid a reply: %w", err)
			}
			if err := c.pad(n - sent); err != nil {
				return false, err
			}
			return false, c.fail(q, wireErrno(err), err.Error())
		}
		c.out = c.out[:len(c.out)+len(b)]
		sent += len(b)
	}
	return true, nil
}

// pieceMin is the least room in out to read a piece into.
const pieceMin = 128 << 10

// pad sends n zeroes.
func (c *serverConn) pad(n int) error {
	for n > 0 {
		if err := c.room(min(n, len(zeroes))); err != nil {
			return err
		}
		m := min(n, len(zeroes))
		c.out = append(c.out, zeroes[:m]...)
		n -= m
	}
	return nil
}

// readFull reads all of b.
func readFull(d block.Device, b []byte, off int64) error {
	n, err := d.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || err == io.EOF:
		return fmt.Errorf("%w: %d of %d bytes at %d", io.ErrUnexpectedEOF, n, len(b), off)
	}
	return err
}

// blockStatus answers what is known of a range, of base:allocation.
func (c *serverConn) blockStatus(q *request) error {
	const most = 4096 // extents of one reply
	limit := most
	if q.flags&flagReqOne != 0 {
		limit = 1
	}
	exts, err := c.extenter.Extents(c.exts[:0], int64(q.off), int64(q.len), limit)
	if err != nil {
		return c.fail(q, wireErrno(err), err.Error())
	}
	c.exts = exts
	left := int64(q.len)
	k := 0
	for ; k < min(len(exts), limit) && left > 0; k++ {
		e := &exts[k]
		// The last may exceed the request, but not the export, and one that was asked for as one not even that.
		e.Len = min(e.Len, left) &^ int64(c.minBlock-1)
		if e.Len <= 0 {
			break
		}
		left -= e.Len
	}
	exts = exts[:k]
	if k == 0 { // nothing is known, which is right to say
		exts = append(exts, Extent{Len: int64(q.len)})
	}
	if err := c.room(structuredLen + 4 + 8*len(exts)); err != nil {
		return err
	}
	c.out = appendChunk(c.out, chunkDone, chunkStatus, q.cookie, 4+8*len(exts))
	c.out = be.AppendUint32(c.out, allocationID)
	for _, e := range exts {
		state := uint32(0)
		if e.Hole {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		c.out = be.AppendUint32(c.out, uint32(e.Len))
		c.out = be.AppendUint32(c.out, state)
	}
	return nil
}
