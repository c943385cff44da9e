package nbd

import (
	"cmp"
	"fmt"
	"slices"
	"syscall"
)

// reply takes one reply, or one chunk of one.
func (c *Client) reply(in *reader) error {
	b, err := in.peek(simpleLen)
	if err != nil {
		return err
	}
	switch be.Uint32(b) {
	case magicSimple:
		no, cookie := be.Uint32(b[4:]), be.Uint64(b[8:])
		in.skip(simpleLen)
		k := c.claim(cookie)
		if k == nil {
			return fmt.Errorf("%w: reply to an unknown request %#x", ErrProtocol, cookie)
		}
		return c.simple(in, k, no)
	case magicStructured:
		if !c.info.Structured {
			break
		}
		if b, err = in.peek(structuredLen); err != nil {
			return unexpected(err)
		}
		ch := chunk{be.Uint16(b[4:]), be.Uint16(b[6:]), be.Uint32(b[16:])}
		cookie := be.Uint64(b[8:])
		in.skip(structuredLen)
		k := c.claim(cookie)
		if k == nil {
			return fmt.Errorf("%w: chunk for an unknown request %#x", ErrProtocol, cookie)
		}
		if err := c.chunk(in, k, ch); err != nil {
			return err
		}
		done := ch.flags&chunkDone != 0
		if done && k.err == nil {
			if k.err = k.complete(); k.err != nil {
				return k.err
			}
		}
		c.release(k, done)
		return nil
	}
	return fmt.Errorf("%w: reply's magic is %#x", ErrProtocol, be.Uint32(b))
}

// simple takes what follows a simple reply's header.
func (c *Client) simple(in *reader, k *call, no uint32) error {
	switch {
	case no != 0:
		k.refused(no, "")
	case k.q.typ == cmdBlockStatus, k.q.typ == cmdRead && c.info.Structured:
		return fmt.Errorf("%w: simple reply to %s", ErrProtocol, cmdName(k.q.typ))
	case k.q.typ == cmdRead:
		if err := c.into(in, k, 0, int(k.q.len)); err != nil {
			return err
		}
	}
	c.release(k, true)
	return nil
}

// into receives n bytes for the read k, from off on. Nobody wants them if k was abandoned.
func (c *Client) into(in *reader, k *call, off, n int) error {
	if k.buf == nil {
		return in.discard(n)
	}
	return in.readFull(k.buf[off : off+n])
}

func (k *call) refused(no uint32, msg string) {
	if no == 0 || no > 4095 { // "SHOULD treat an unexpected error value as if it had been EINVAL"
		no = uint32(syscall.EINVAL)
	}
	k.err = &Error{cmdName(k.q.typ), int64(k.q.off), int64(k.q.len), syscall.Errno(no), msg}
}

// chunk is a chunk's header.
type chunk struct {
	flags, typ uint16
	len        uint32
}

const (
	maxErrors = 64      // error chunks of one reply
	maxStatus = 8 << 20 // bytes of block status of one reply
)

// chunk takes what follows a chunk's header.
func (c *Client) chunk(in *reader, k *call, ch chunk) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: chunk of type %d, %d bytes, for %s of %d bytes at %d: %s", ErrProtocol, ch.typ, ch.len,
			cmdName(k.q.typ), k.q.len, k.q.off, why)
	}
	n := int(ch.len)
	switch {
	case ch.typ == chunkNone:
		if n != 0 || ch.flags&chunkDone == 0 {
			return bad("malformed")
		}
	case ch.typ == chunkData && k.q.typ == cmdRead:
		if n < 9 {
			return bad("malformed")
		}
		off, err := take64(in)
		if err != nil {
			return err
		}
		if !k.covers(off, n-8) {
			return bad("outside of the request, or twice")
		}
		return c.into(in, k, int(off-k.q.off), n-8)
	case ch.typ == chunkHole && k.q.typ == cmdRead:
		if n != 12 {
			return bad("malformed")
		}
		b, err := in.peek(12)
		if err != nil {
			return unexpected(err)
		}
		off, m := be.Uint64(b), int(be.Uint32(b[8:]))
		in.skip(12)
		if m == 0 || !k.covers(off, m) {
			return bad("outside of the request, or twice")
		}
		if k.buf != nil {
			clear(k.buf[off-k.q.off:][:m])
		}
	case ch.typ == chunkStatus && k.q.typ == cmdBlockStatus:
		if n < 12 || n > maxStatus || n%8 != 4 {
			return bad("malformed")
		}
		return c.status(in, k, n, bad)
	case ch.typ&chunkErrBit != 0:
		if n < 6 || n > maxOption {
			return bad("malformed")
		}
		if k.errors++; k.errors > maxErrors {
			return bad("too many errors")
		}
		b, err := in.peek(6)
		if err != nil {
			return unexpected(err)
		}
		no, m := be.Uint32(b), int(be.Uint16(b[4:]))
		in.skip(6)
		if m > n-6 || m > maxString {
			return bad("malformed")
		}
		if b, err = in.peek(m); err != nil && m > 0 {
			return unexpected(err)
		}
		if k.err == nil {
			k.refused(no, string(b[:m]))
		}
		in.skip(m)
		return in.discard(n - 6 - m)
	default:
		return bad("not expected")
	}
	return nil
}

func take64(in *reader) (uint64, error) {
	b, err := in.peek(8)
	if err != nil {
		return 0, unexpected(err)
	}
	in.skip(8)
	return be.Uint64(b), nil
}

// covers reports whether n bytes at off are wanted and were not there yet, and counts them.
func (k *call) covers(off uint64, n int) bool {
	if off < k.q.off || off-k.q.off > uint64(k.q.len) || uint64(n) > uint64(k.q.len)-(off-k.q.off) {
		return false
	}
	return k.got.add(int(off-k.q.off), n)
}

// complete says what lacks for success.
func (k *call) complete() error {
	switch k.q.typ {
	case cmdRead:
		if !k.got.all(int(k.q.len)) {
			return fmt.Errorf("%w: success of a read without all of its data", ErrProtocol)
		}
	case cmdBlockStatus:
		if len(k.exts) == 0 {
			return fmt.Errorf("%w: success without a block's status", ErrProtocol)
		}
	}
	return nil
}

// status takes the descriptors of base:allocation.
func (c *Client) status(in *reader, k *call, n int, bad func(string) error) error {
	b, err := in.peek(4)
	if err != nil {
		return unexpected(err)
	}
	id := be.Uint32(b)
	in.skip(4)
	if id != c.metaID || len(k.exts) > 0 {
		return bad("for another context, or twice")
	}
	left := int64(k.q.len)
	for n -= 4; n > 0; n -= 8 {
		if b, err = in.peek(8); err != nil {
			return unexpected(err)
		}
		e := Extent{Len: int64(be.Uint32(b)), Hole: b[7]&stateHole != 0, Zero: b[7]&stateZero != 0}
		in.skip(8)
		if e.Len == 0 || left <= 0 {
			return bad("an extent of no use")
		}
		left -= e.Len
		if left < 0 {
			e.Len += left
		}
		if len(k.exts) < k.max {
			k.exts = append(k.exts, e)
		}
	}
	return nil
}

// spans are disjoint ranges in order.
type spans [][2]int

// maxSpans bounds the pieces of a reply that do not touch each other.
const maxSpans = 1024

// add adds n bytes at off; false if they are there already, in part, or if there are too many pieces.
func (s *spans) add(off, n int) bool {
	i, found := slices.BinarySearchFunc(*s, off, func(r [2]int, off int) int { return cmp.Compare(r[0], off) })
	end := off + n
	if found || i > 0 && (*s)[i-1][1] > off || i < len(*s) && (*s)[i][0] < end {
		return false
	}
	before, behind := i > 0 && (*s)[i-1][1] == off, i < len(*s) && (*s)[i][0] == end
	switch {
	case before && behind:
		(*s)[i-1][1] = (*s)[i][1]
		*s = slices.Delete(*s, i, i+1)
	case before:
		(*s)[i-1][1] = end
	case behind:
		(*s)[i][0] = off
	case len(*s) >= maxSpans:
		return false
	default:
		*s = slices.Insert(*s, i, [2]int{off, end})
	}
	return true
}

// all reports whether all of n bytes are there.
func (s spans) all(n int) bool { return len(s) == 1 && s[0] == [2]int{0, n} }
