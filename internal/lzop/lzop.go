// Package lzop reads files that the program lzop packed, at any place: their blocks are packed each by itself. The files may
// be hostile.
package lzop

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/anchore/go-lzo"
)

// Magic begins a file (lzop's conf.h and lzop.c; Linux reads them by lib/decompress_unlzo.c). Numbers are big endian.
const Magic = "\x89LZO\x00\r\n\x1a\n"

// Flags of the header. Check sums stand before each block: of what it holds, and of how it is packed, each of either kind.
const (
	adlerOf, adlerIn = 1 << 0, 1 << 1
	extra            = 1 << 6
	crcOf, crcIn     = 1 << 8, 1 << 9
	filter           = 1 << 11
)

const (
	levels    = 0x940   // the version of the format from which on a level is told
	maxBlock  = 8 << 20 // bytes of a block, as in Linux and more than in lzop
	maxBlocks = 1 << 20 // 256 GiB in lzop's own
	maxKept   = 8 << 20 // bytes of the blocks that were read last, but at least one
)

// File is a packed file, as it was. It is safe for concurrent use.
type File struct {
	src    io.ReaderAt
	blocks []block
	size   int64

	mu   sync.Mutex
	kept []unpacked // the last used first
}

type block struct {
	at, off      int64 // of what it holds; in the packed file
	size, packed uint32
	adler, crc   uint32 // of what it holds
	sums         uint32 // which of them there are: flags
}

type unpacked struct {
	block int
	bytes []byte
}

// Open lists the blocks of a file that is packed in the first size bytes of src. An end that is missing is an
// io.ErrUnexpectedEOF.
func Open(src io.ReaderAt, size int64) (*File, error) {
	r := &reader{src: src, size: size, off: int64(len(Magic))}
	version := r.number(2)
	r.off += 2 // version of the library
	if version >= levels {
		r.off += 2 // the version that is needed
	}
	method := r.number(1)
	if version >= levels {
		r.off++ // level
	}
	flags := r.number(4)
	if r.err == nil && (flags&(extra|filter) != 0 || method < 1 || method > 3) {
		return nil, fmt.Errorf("lzop: method %d with flags %#x", method, flags)
	}
	r.off += 8 // mode, time
	if version >= levels {
		r.off += 4 // the upper half of the time
	}
	r.off += int64(r.number(1)) // name
	r.off += 4                  // check sum of the header
	f := &File{src: src}
	for {
		start := r.off
		b := block{at: f.size, size: r.number(4), sums: flags}
		if r.err != nil {
			return nil, r.err
		}
		if b.size == 0 {
			return f, nil
		}
		b.packed = r.number(4)
		if flags&adlerOf != 0 {
			b.adler = r.number(4)
		}
		if flags&crcOf != 0 {
			b.crc = r.number(4)
		}
		for _, sum := range []uint32{adlerIn, crcIn} {
			if flags&sum != 0 && b.packed < b.size {
				r.off += 4
			}
		}
		b.off = r.off
		r.off += int64(b.packed)
		switch {
		case r.err != nil || r.off > size:
			return nil, io.ErrUnexpectedEOF
		case b.size > maxBlock || b.packed > b.size:
			return nil, fmt.Errorf("lzop: a block of %d bytes, packed to %d, at offset %#x", b.size, b.packed, start)
		case len(f.blocks) == maxBlocks:
			return nil, fmt.Errorf("lzop: more than %d blocks", maxBlocks)
		}
		f.blocks = append(f.blocks, b)
		f.size += int64(b.size)
	}
}

// Size is that of the file before it was packed, in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	i, _ := slices.BinarySearchFunc(f.blocks, off, func(b block, off int64) int {
		if b.at+int64(b.size) <= off {
			return -1
		}
		return 1
	})
	for ; n < len(p) && i < len(f.blocks); i++ {
		b, err := f.block(i)
		if err != nil {
			return n, fmt.Errorf("lzop: block at offset %#x: %w", f.blocks[i].off, err)
		}
		n += copy(p[n:], b[off+int64(n)-f.blocks[i].at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// block unpacks a block, or has it from before.
func (f *File) block(i int) ([]byte, error) {
	if b := f.recall(i); b != nil {
		return b, nil
	}
	b := &f.blocks[i]
	in := make([]byte, b.packed)
	if n, err := f.src.ReadAt(in, b.off); n < len(in) {
		return nil, err
	}
	out := in
	if b.packed < b.size {
		out = make([]byte, b.size)
		if n, err := lzo.Decompress(in, out); err != nil || n != len(out) {
			return nil, fmt.Errorf("it holds %d bytes, not %d: %w", n, len(out), err)
		}
	}
	if sum := adler32.Checksum(out); b.sums&adlerOf != 0 && sum != b.adler {
		return nil, fmt.Errorf("check sum %#x, not %#x", sum, b.adler)
	}
	if sum := crc32.ChecksumIEEE(out); b.sums&crcOf != 0 && sum != b.crc {
		return nil, fmt.Errorf("check sum %#x, not %#x", sum, b.crc)
	}
	f.keep(i, out)
	return out, nil
}

func (f *File) recall(i int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.IndexFunc(f.kept, func(u unpacked) bool { return u.block == i })
	if at < 0 {
		return nil
	}
	u := f.kept[at]
	copy(f.kept[1:at+1], f.kept[:at])
	f.kept[0] = u
	return u.bytes
}

func (f *File) keep(i int, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = slices.Insert(f.kept, 0, unpacked{i, b})
	sum := 0
	for n, u := range f.kept {
		if sum += len(u.bytes); sum > maxKept && n > 0 {
			clear(f.kept[n:])
			f.kept = f.kept[:n]
			return
		}
	}
}

// reader takes numbers; 0 after a failure.
type reader struct {
	src  io.ReaderAt
	size int64
	off  int64
	err  error
}

func (r *reader) number(n int) uint32 {
	var b [4]byte
	if r.err != nil || r.off+int64(n) > r.size {
		r.err = io.ErrUnexpectedEOF
		return 0
	}
	if got, err := r.src.ReadAt(b[4-n:], r.off); got < n {
		r.err = err
		return 0
	}
	r.off += int64(n)
	return binary.BigEndian.Uint32(b[:])
}
