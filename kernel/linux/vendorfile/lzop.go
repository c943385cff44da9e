package vendorfile

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/anchore/go-lzo"
)

// Of lzop's files (its conf.h and lzop.c; the kernel reads them by
// lib/decompress_unlzo.c). Numbers are big endian.
const (
	lzopMagic = "\x89LZO\x00\r\n\x1a\n"

	// Flags of the header. Check sums stand before each block: one of what it
	// holds, and one of how it is packed, of either kind.
	lzopAdlerOf, lzopAdlerIn = 1 << 0, 1 << 1
	lzopExtra                = 1 << 6
	lzopCRCOf, lzopCRCIn     = 1 << 8, 1 << 9
	lzopFilter               = 1 << 11

	lzopLevels = 0x940   // the version of the format from which on a level is told
	maxBlock   = 8 << 20 // of one block, as in the kernel and more than in lzop
)

// lzop reads a file that lzop packed. Its check sums are not looked at: the
// build id says what the file is.
type lzop struct {
	b     []byte // what is left
	sums  int    // check sums of what a block holds
	more  int    // and of how it is packed, where it is
	block []byte // what is unpacked and was not read yet
	done  bool
}

func newLZOP(b []byte) (*lzop, error) {
	r := &lzop{b: b[len(lzopMagic):]}
	version := r.number(2)
	r.skip(2) // of the library
	if version >= lzopLevels {
		r.skip(2) // the version that is needed
	}
	method := r.number(1)
	if version >= lzopLevels {
		r.skip(1) // level
	}
	flags := r.number(4)
	if flags&(lzopExtra|lzopFilter) != 0 || method < 1 || method > 3 {
		return nil, fmt.Errorf("method %d with flags %#x", method, flags)
	}
	r.skip(8) // mode, time
	if version >= lzopLevels {
		r.skip(4) // the upper half of the time
	}
	r.skip(r.number(1)) // name
	r.skip(4)           // check sum of the header
	for _, bit := range []int{lzopAdlerOf, lzopCRCOf} {
		if flags&bit != 0 {
			r.sums++
		}
	}
	for _, bit := range []int{lzopAdlerIn, lzopCRCIn} {
		if flags&bit != 0 {
			r.more++
		}
	}
	if r.b == nil {
		return nil, io.ErrUnexpectedEOF
	}
	return r, nil
}

// number takes a number of n bytes, skip n bytes; behind the end there is
// nothing, and r.b is nil from then on.
func (r *lzop) number(n int) int {
	if n > len(r.b) {
		r.b = nil
		return 0
	}
	var b [8]byte
	copy(b[8-n:], r.b)
	r.b = r.b[n:]
	return int(binary.BigEndian.Uint64(b[:]))
}

func (r *lzop) skip(n int) {
	if n > len(r.b) {
		r.b = nil
		return
	}
	r.b = r.b[n:]
}

// Read implements io.Reader.
func (r *lzop) Read(p []byte) (int, error) {
	for len(r.block) == 0 {
		if r.done {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

// next unpacks the next block.
func (r *lzop) next() error {
	size := r.number(4)
	if r.b != nil && size == 0 {
		r.done = true
		return nil
	}
	packed := r.number(4)
	r.skip(4 * r.sums)
	if packed < size {
		r.skip(4 * r.more)
	}
	if size > maxBlock || packed > size {
		return fmt.Errorf("a block of %d bytes, packed to %d", size, packed)
	}
	if r.b == nil || packed > len(r.b) {
		return io.ErrUnexpectedEOF
	}
	in := r.b[:packed]
	r.b = r.b[packed:]
	if packed == size {
		r.block = in
		return nil
	}
	out := make([]byte, size)
	n, err := lzo.Decompress(in, out)
	if err == nil && n != size {
		err = fmt.Errorf("a block holds %d bytes, not %d", n, size)
	}
	r.block = out
	return err
}
