package dump

import (
	"bufio"
	"encoding/binary"
	"io"
)

// streamReader reads numbers; after a failure zeros.
type streamReader struct {
	src source
	r   *bufio.Reader
	off uint64
	err error
	buf [256]byte
}

func newStreamReader(src source) *streamReader {
	return &streamReader{src: src, r: bufio.NewReaderSize(io.NewSectionReader(src, 0, int64(src.Size())), 64<<10)}
}

// jump goes on at another offset, without reading what is between.
func (r *streamReader) jump(off uint64) {
	if r.err != nil {
		return
	}
	if off > r.src.Size() {
		r.err = io.ErrUnexpectedEOF
		return
	}
	r.off = off
	r.r.Reset(io.NewSectionReader(r.src, int64(off), int64(r.src.Size()-off)))
}

func (r *streamReader) bytes(n int) []byte {
	p := r.buf[:n]
	if r.err == nil {
		_, r.err = io.ReadFull(r.r, p)
	}
	if r.err != nil {
		clear(p)
		return p
	}
	r.off += uint64(n)
	return p
}

func (r *streamReader) u8() uint8   { return r.bytes(1)[0] }
func (r *streamReader) u16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *streamReader) u32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *streamReader) u64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

// name reads a string behind its length, a byte.
func (r *streamReader) name() string { return string(r.bytes(int(r.u8()))) }

// peek is the next byte; 0 at the end.
func (r *streamReader) peek() byte {
	if r.err == nil {
		if b, err := r.r.Peek(1); err == nil {
			return b[0]
		}
	}
	return 0
}

func (r *streamReader) skip(n uint64) {
	if r.err == nil {
		var k int
		k, r.err = r.r.Discard(int(n))
		r.off += uint64(k)
	}
}
