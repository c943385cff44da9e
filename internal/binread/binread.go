// Package binread decodes bytes that a guest wrote. A Reader never reads
// outside its slice: the first read that would do so is remembered as an error
// with its coordinates, and every later one gives zeros, so that a decoder can
// read a whole record and ask once whether it was all there.
package binread

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

// Error is a read outside the bytes at hand. It is of the class
// mem.ErrInconsistent: what the guest wrote says that there is more.
type Error struct {
	What string // what is being decoded, as told to New
	Off  int    // where the read began, bytes from the start of the slice
	Need int    // how many bytes it wanted; negative: a length that cannot be
	Len  int    // how many bytes there are in all
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: offset %#x: %d bytes wanted of %d: %v", e.What, e.Off, e.Need, e.Len, mem.ErrInconsistent)
}

// Unwrap gives mem.ErrInconsistent.
func (e *Error) Unwrap() error { return mem.ErrInconsistent }

// Reader decodes a slice from front to back. It keeps the slice and never
// writes to it. It is not safe for concurrent use.
type Reader struct {
	b    []byte
	off  int
	big  bool
	what string
	err  error
}

// New reads little-endian numbers from b; what names the bytes in errors.
func New(what string, b []byte) *Reader { return &Reader{b: b, what: what} }

// NewBig reads big-endian numbers from b.
func NewBig(what string, b []byte) *Reader { return &Reader{b: b, what: what, big: true} }

// Err is the first failure, or nil.
func (r *Reader) Err() error { return r.err }

// Fail makes err the Reader's failure if it has none yet: for a value that was
// read but cannot be.
func (r *Reader) Fail(err error) {
	if r.err == nil && err != nil {
		r.err = fmt.Errorf("%s: offset %#x: %w", r.what, r.off, err)
	}
}

// Off is where the next read begins, bytes from the start.
func (r *Reader) Off() int { return r.off }

// Left is how many bytes are left; 0 after a failure, so that loops end.
func (r *Reader) Left() int {
	if r.err != nil {
		return 0
	}
	return len(r.b) - r.off
}

// Seek makes off, counted from the start, the place of the next read.
func (r *Reader) Seek(off int) {
	if r.err != nil {
		return
	}
	if off < 0 || off > len(r.b) {
		r.err = &Error{r.what, off, 0, len(r.b)}
		return
	}
	r.off = off
}

// Skip passes over n bytes.
func (r *Reader) Skip(n int) { r.Bytes(n) }

// Align passes over bytes up to the next multiple of n, a power of two.
func (r *Reader) Align(n int) { r.Skip(-r.off & (n - 1)) }

// Bytes gives the next n bytes, a piece of the Reader's slice; nil on failure.
func (r *Reader) Bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > len(r.b)-r.off {
		r.err = &Error{r.what, r.off, n, len(r.b)}
		return nil
	}
	p := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return p
}

// CString gives the bytes up to the next NUL, at most max of them, and passes
// over the NUL. No NUL among max+1 bytes is a failure.
func (r *Reader) CString(max int) []byte {
	if r.err != nil {
		return nil
	}
	if max < 0 {
		r.err = &Error{r.what, r.off, max, len(r.b)}
		return nil
	}
	p := r.b[r.off:]
	if len(p)-1 > max {
		p = p[:max+1]
	}
	i := bytes.IndexByte(p, 0)
	if i < 0 {
		r.err = &Error{r.what, r.off, len(p) + 1, len(r.b)}
		return nil
	}
	r.off += i + 1
	return p[:i:i]
}

// U8 reads a byte.
func (r *Reader) U8() uint8 {
	if p := r.Bytes(1); p != nil {
		return p[0]
	}
	return 0
}

// U16 reads 2 bytes.
func (r *Reader) U16() uint16 {
	p := r.Bytes(2)
	switch {
	case p == nil:
		return 0
	case r.big:
		return binary.BigEndian.Uint16(p)
	}
	return binary.LittleEndian.Uint16(p)
}

// U32 reads 4 bytes.
func (r *Reader) U32() uint32 {
	p := r.Bytes(4)
	switch {
	case p == nil:
		return 0
	case r.big:
		return binary.BigEndian.Uint32(p)
	}
	return binary.LittleEndian.Uint32(p)
}

// U64 reads 8 bytes.
func (r *Reader) U64() uint64 {
	p := r.Bytes(8)
	switch {
	case p == nil:
		return 0
	case r.big:
		return binary.BigEndian.Uint64(p)
	}
	return binary.LittleEndian.Uint64(p)
}
