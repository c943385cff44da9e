package nbd

import (
	"fmt"
	"io"
)

// source is where bytes come from: a socket or a TLS connection.
type source interface {
	// recv receives at least one byte into a, and what there is beyond it into b, which may be empty. It may leave b.
	recv(a, b []byte) (int, error)
}

// reader buffers what a source gives, so that many small requests are received at once, and hands large payloads past
// its buffer.
type reader struct {
	src  source
	buf  []byte
	r, w int // buf[r:w] was received and not taken
	// ahead is how much to receive beyond what is asked for: all that is there, or, where the last payload was large,
	// little more than a header, so that the next payload is not received into buf and copied.
	ahead int
}

// aheadLarge is ahead between large payloads.
const aheadLarge = requestLen

func newReader(src source, size int) *reader {
	return &reader{src: src, buf: make([]byte, size), ahead: size}
}

// expect tells that a payload of n bytes comes, and probably more like it.
func (r *reader) expect(n int) {
	if r.ahead = len(r.buf); n > len(r.buf)/8 { // 1 MiB holds many shorter ones
		r.ahead = aheadLarge
	}
}

// peek gives the next n bytes (at most the buffer's size) without taking them. io.EOF only if the source ended before
// the first of them.
func (r *reader) peek(n int) ([]byte, error) {
	for r.w-r.r < n {
		if r.r == r.w {
			r.r, r.w = 0, 0
		} else if len(r.buf)-r.r < n {
			r.w = copy(r.buf, r.buf[r.r:r.w])
			r.r = 0
		}
		end := min(r.r+max(n, r.ahead), len(r.buf))
		m, err := r.src.recv(r.buf[r.w:end], nil)
		if err != nil {
			if err == io.EOF && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		r.w += m
	}
	return r.buf[r.r : r.r+n], nil
}

// skip takes n bytes that peek gave.
func (r *reader) skip(n int) { r.r += n }

// readFull fills b, from the buffer first, then straight from the source.
func (r *reader) readFull(b []byte) error {
	n := copy(b, r.buf[r.r:r.w])
	r.r += n
	for b = b[n:]; len(b) > 0; {
		r.r, r.w = 0, 0
		n, err := r.src.recv(b, r.buf[:r.ahead])
		if err != nil {
			return unexpected(err)
		}
		if n > len(b) {
			r.w = n - len(b)
			return nil
		}
		b = b[n:]
	}
	return nil
}

// discard takes and drops n bytes.
func (r *reader) discard(n int) error {
	for n > 0 {
		m := min(n, len(r.buf))
		if r.w > r.r {
			m = min(n, r.w-r.r)
		}
		if _, err := r.peek(m); err != nil {
			return unexpected(err)
		}
		r.skip(m)
		n -= m
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("nbd: connection broke off: %w", err)
}
