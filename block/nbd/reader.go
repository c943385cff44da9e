package nbd

import (
	"fmt"
	"io"
)

// source is where bytes come from: a socket or a TLS connection.
type source interface {
	// recv reads at least one byte into a, and what is left into b, which may be empty.
	recv(a, b []byte) (int, error)
}

// reader buffers what a source gives, so that many small requests are received at once, and hands large payloads past
// its buffer.
type reader struct {
	src  source
	buf  []byte
	r, w int // buf[r:w] was received and not taken
	// ahead is how much to receive behind a large payload into buf: all that is there, or, where the last payload was
	// large, just a header, so that the next payload is not received into buf and copied.
	ahead int
}

func newReader(src source, size int) *reader {
	return &reader{src: src, buf: make([]byte, size), ahead: size}
}

// buffered is the number of bytes that are there without asking the source.
func (r *reader) buffered() int { return r.w - r.r }

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
		m, err := r.src.recv(r.buf[r.w:], nil)
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

// readFull fills b, from the buffer first, then from the source.
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

// next gives at most max bytes in place.
func (r *reader) next(max int) ([]byte, error) {
	if r.r == r.w {
		r.r, r.w = 0, 0
		n, err := r.src.recv(r.buf[:min(max, len(r.buf))], nil)
		if err != nil {
			return nil, unexpected(err)
		}
		r.w = n
	}
	b := r.buf[r.r:min(r.w, r.r+max)]
	r.r += len(b)
	return b, nil
}

func (r *reader) discard(n int) error {
	for n > 0 {
		b, err := r.next(n)
		if err != nil {
			return err
		}
		n -= len(b)
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("nbd: connection broke off: %w", err)
}
