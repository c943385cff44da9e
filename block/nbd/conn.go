package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Sizes of a connection's buffers.
const (
	inSize  = NextMax + 64<<10 // requests and small payloads
	outSize = 256 << 10        // replies, and what is read for them
	// inline is up to what length data goes through out, so that many replies are one send. Longer data is sent from the
	// file, or by itself.
	inline = 32 << 10
)

// serverConn is one connection in the transmission phase. Its goroutine does all: it receives, works, and replies. Only
// what drain and abort do comes from others.
type serverConn struct {
	mu     sync.Mutex
	raw    net.Conn // until st is there
	st     stream
	ending atomic.Int32

	caps
	closing    *atomic.Bool // the server's
	structured bool
	meta       bool // block status may be asked for
	in         *reader
	out        []byte // replies that were not sent yet
	exts       []Extent
	last       [1]byte // of a range, which tells whether it is in memory
	noNow      bool    // that cannot be asked
}

const (
	endDrain = 1
	endAbort = 2
)

// drain makes the connection end when all that came from it is answered.
func (c *serverConn) drain() { c.end(endDrain) }

// abort breaks the connection off.
func (c *serverConn) abort() { c.end(endAbort) }

func (c *serverConn) end(how int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending.Store(max(how, c.ending.Load()))
	switch {
	case c.st == nil:
		c.raw.SetDeadline(longAgo)
	case how == endDrain:
		c.st.drain()
	default:
		c.st.abort()
	}
}

// hold is a source that sends what is due before it waits for more, so that no reply waits for a request.
type hold struct {
	st stream
	c  *serverConn
}

func (h *hold) recv(a, b []byte) (int, error) {
	if err := h.c.flushOut(false); err != nil {
		return 0, err
	}
	return h.st.recv(a, b)
}

// serve answers requests until the connection ends.
func (c *serverConn) serve(ss *session) error {
	st, err := newStream(ss.conn)
	if err != nil {
		return err
	}
	defer st.close()
	c.mu.Lock()
	c.st = st
	c.mu.Unlock()
	if how := c.ending.Load(); how != 0 { // it came before st was there
		c.end(how)
	}
	c.caps = ss.caps
	c.closing = &ss.srv.closing
	c.structured = ss.structured
	c.meta = ss.structured && ss.metaFor == ss.export
	c.in = newReader(&hold{st, c}, inSize)
	c.out = make([]byte, 0, outSize)
	for {
		b, err := c.in.peek(requestLen)
		if err != nil {
			if c.ending.Load() != 0 {
				return ErrShutdown
			}
			if err == io.EOF {
				return errNoGoodbye
			}
			return fmt.Errorf("nbd: waiting for a request: %w", err)
		}
		q, ok := parseRequest(b)
		if !ok {
			return fmt.Errorf("%w: request's magic is %#x", ErrProtocol, be.Uint32(b))
		}
		c.in.skip(requestLen)
		if q.typ == cmdDisc {
			return c.flushOut(false)
		}
		if err := c.handle(&q); err != nil {
			return fmt.Errorf("nbd: %s of %d bytes at %d: %w", cmdName(q.typ), q.len, q.off, err)
		}
	}
}

var errNoGoodbye = errors.New("nbd: the client left without a goodbye")

// handle answers one request. Its error ends the connection.
func (c *serverConn) handle(q *request) error {
	if q.typ == cmdWrite {
		return c.write(q)
	}
	if no, why := c.check(q); no != 0 {
		return c.fail(q, no, why)
	}
	switch q.typ {
	case cmdRead:
		return c.read(q)
	case cmdBlockStatus:
		return c.blockStatus(q)
	case cmdFlush, cmdTrim, cmdWriteZeroes:
		// These may take long: those who wait for earlier replies get them now.
		if err := c.flushOut(false); err != nil {
			return err
		}
	}
	return c.done(q, c.change(q))
}

// change does what is answered without data.
func (c *serverConn) change(q *request) error {
	off, n := int64(q.off), int64(q.len)
	switch q.typ {
	case cmdFlush:
		return c.flusher.Flush()
	case cmdTrim:
		if n == 0 {
			return nil
		}
		return c.trimmer.Trim(off, n, q.flags)
	case cmdCache:
		return c.cacher.Cache(off, n)
	}
	if n == 0 {
		return nil
	}
	if c.zeroer == nil {
		return c.writeZeroes(off, n, q.flags)
	}
	return c.zeroer.Zero(off, n, q.flags)
}

// allowed are the flags that a command may have. FUA may be anywhere ("existing clients are known to").
var allowed = [...]Flags{
	cmdRead:        FUA | flagDF,
	cmdWrite:       FUA,
	cmdFlush:       FUA,
	cmdTrim:        FUA,
	cmdCache:       FUA,
	cmdWriteZeroes: FUA | NoHole | FastZero,
	cmdBlockStatus: FUA | flagReqOne,
}

// check says why a request cannot be; 0 if it can.
func (c *serverConn) check(q *request) (syscall.Errno, string) {
	if c.closing.Load() {
		return syscall.ESHUTDOWN, "the server is about to go"
	}
	if int(q.typ) >= len(allowed) || q.typ == cmdDisc {
		return syscall.EINVAL, "unknown command"
	}
	fl := allowed[q.typ]
	if c.flags&tfFUA == 0 {
		fl &^= FUA
	}
	if c.flags&tfDF == 0 {
		fl &^= flagDF
	}
	if c.flags&tfFastZero == 0 {
		fl &^= FastZero
	}
	if q.flags&^fl != 0 {
		return syscall.EINVAL, "flag that this command does not have"
	}
	outside := syscall.EINVAL
	switch q.typ {
	case cmdFlush:
		if c.flags&tfFlush == 0 {
			return syscall.EINVAL, "flush was not offered"
		}
		if q.off != 0 || q.len != 0 {
			return syscall.EINVAL, "a flush has no range"
		}
		return 0, ""
	case cmdWrite, cmdWriteZeroes, cmdTrim:
		if c.flags&tfReadOnly != 0 {
			return syscall.EPERM, "the export is read-only"
		}
		if q.typ == cmdTrim {
			if c.flags&tfTrim == 0 {
				return syscall.EINVAL, "trim was not offered"
			}
			break
		}
		outside = syscall.ENOSPC
	case cmdCache:
		if c.flags&tfCache == 0 {
			return syscall.EINVAL, "cache was not offered"
		}
	case cmdBlockStatus:
		if !c.meta {
			return syscall.EINVAL, "no metadata context was selected"
		}
		if q.len == 0 {
			return syscall.EINVAL, "no range"
		}
	}
	switch {
	case q.off > uint64(c.size) || uint64(q.len) > uint64(c.size)-q.off:
		return outside, "outside of the export"
	case (q.off|uint64(q.len))&uint64(c.minBlock-1) != 0:
		return syscall.EINVAL, "not aligned to the minimum block size"
	case q.typ == cmdRead && int64(q.len) > int64(c.maxPayload):
		if q.flags&flagDF != 0 {
			return syscall.EOVERFLOW, "too long for one piece"
		}
		return syscall.EINVAL, "longer than the maximum block size"
	case q.typ == cmdWrite && int64(q.len) > int64(c.maxPayload):
		return syscall.EINVAL, "longer than the maximum block size"
	}
	return 0, ""
}

// done answers a request that has no data to answer with.
func (c *serverConn) done(q *request, err error) error {
	if err != nil {
		return c.fail(q, wireErrno(err), err.Error())
	}
	if err := c.room(simpleLen); err != nil {
		return err
	}
	// A simple reply is right also where structured ones were agreed on, and shorter.
	c.out = appendSimple(c.out, 0, q.cookie)
	return nil
}

// fail answers with an error.
func (c *serverConn) fail(q *request, no syscall.Errno, why string) error {
	const most = 256 // bytes of why
	if err := c.room(structuredLen + 6 + most); err != nil {
		return err
	}
	if !c.structured {
		c.out = appendSimple(c.out, no, q.cookie)
		return nil
	}
	if len(why) > most {
		why = why[:most]
	}
	c.out = appendChunk(c.out, chunkDone, chunkError, q.cookie, 6+len(why))
	c.out = be.AppendUint32(c.out, uint32(no))
	c.out = be.AppendUint16(c.out, uint16(len(why)))
	c.out = append(c.out, why...)
	return nil
}

// room makes room for n bytes in out, n being at most outSize.
func (c *serverConn) room(n int) error {
	if cap(c.out)-len(c.out) >= n {
		return nil
	}
	return c.flushOut(false)
}

// flushOut sends what out holds. more: data follows at once.
func (c *serverConn) flushOut(more bool) error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.st.send(c.out, more)
	c.out = c.out[:0]
	if err != nil {
		return fmt.Errorf("nbd: replying: %w", err)
	}
	if c.answerer != nil && !more {
		c.answerer.Answered()
	}
	return nil
}
