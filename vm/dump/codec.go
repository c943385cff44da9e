package dump

import (
	"bytes"
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codec is how a unit is packed.
type codec uint8

const (
	stored codec = iota
	blank        // zeros, which take no room in the file
	byZlib
	byLZO
	bySnappy
	byZstd
	byFrame // Snappy behind its check sum (google/snappy, framing_format.txt)
)

// maxKept bounds the units kept unpacked, in bytes.
const maxKept = 4 << 20

// unpacker unpacks units, and keeps those that were read last. It is safe for
// concurrent use.
type unpacker struct {
	mu    sync.Mutex
	kept  map[packedAt]*list.Element
	order *list.List // of *unpacked, the last used first
	bytes int

	zstd *zstd.Decoder
}

// packedAt is where a unit is packed. The pages of zeros of some dumps are one.
type packedAt struct {
	src source
	off uint64
	len uint64
}

type unpacked struct {
	at    packedAt
	bytes []byte
}

func newUnpacker() *unpacker {
	// With these options it cannot fail.
	z, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxUnit), zstd.WithDecoderMaxWindow(1<<20))
	return &unpacker{kept: make(map[packedAt]*list.Element), order: list.New(), zstd: z}
}

// read fills p from the bytes of u behind the first skip.
func (x *unpacker) read(p []byte, u unit, skip uint64) error {
	switch {
	case len(u.deltas) > 0:
		return x.readDeltas(p, u, skip)
	case u.codec == blank:
		clear(p)
		return nil
	case u.codec == stored:
		return readFull(u.src, p, u.off+skip)
	}
	at := packedAt{u.src, u.off, u.len}
	b := x.recall(at)
	if b == nil {
		if u.size > maxUnit || u.len > 2*maxUnit {
			return fmt.Errorf("%d bytes packed to %d are too many", u.size, u.len)
		}
		in := make([]byte, u.len)
		if err := readFull(u.src, in, u.off); err != nil {
			return err
		}
		b = make([]byte, u.size)
		if err := x.unpack(b, in, u.codec); err != nil {
			return err
		}
		x.keep(at, b)
	}
	if uint64(len(b)) < skip+uint64(len(p)) { // another unit of the same place said that it is smaller
		return fmt.Errorf("it holds %d bytes, not %d", len(b), u.size)
	}
	copy(p, b[skip:])
	return nil
}

// readDeltas reads a unit that was changed since.
func (x *unpacker) readDeltas(p []byte, u unit, skip uint64) error {
	last := u.deltas[0]
	at := packedAt{u.src, last.off, uint64(last.size)}
	b := x.recall(at)
	if b == nil {
		deltas := u.deltas
		u.deltas = nil
		b = make([]byte, u.size)
		if err := x.read(b, u, 0); err != nil {
			return err
		}
		for _, d := range slices.Backward(deltas) {
			in := make([]byte, d.size)
			err := readFull(u.src, in, d.off)
			if err == nil {
				err = applyDelta(b, in)
			}
			if err != nil {
				return fmt.Errorf("what changed, at offset %#x: %w", d.off, err)
			}
		}
		x.keep(at, b)
	}
	copy(p, b[skip:])
	return nil
}

func (x *unpacker) recall(at packedAt) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.kept[at]
	if e == nil {
		return nil
	}
	x.order.MoveToFront(e)
	return e.Value.(*unpacked).bytes
}

func (x *unpacker) keep(at packedAt, b []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept[at] != nil { // another reader was faster
		return
	}
	x.kept[at] = x.order.PushFront(&unpacked{at, b})
	for x.bytes += len(b); x.bytes > maxKept; {
		old := x.order.Remove(x.order.Back()).(*unpacked)
		delete(x.kept, old.at)
		x.bytes -= len(old.bytes)
	}
}

// unpack fills out from in, which must hold neither more nor less.
func (x *unpacker) unpack(out, in []byte, c codec) error {
	n, err := 0, error(nil)
	switch c {
	case byZlib:
		return inflate(out, in)
	case byLZO:
		n, err = lzo.Decompress(in, out)
	case bySnappy:
		if n, err = snappy.DecodedLen(in); err == nil && n == len(out) {
			_, err = snappy.Decode(out, in)
		}
	case byFrame:
		if len(in) < 4 {
			return io.ErrUnexpectedEOF
		}
		if err := x.unpack(out, in[4:], bySnappy); err != nil {
			return err
		}
		if want, sum := binary.LittleEndian.Uint32(in), frameSum(out); sum != want {
			return fmt.Errorf("check sum %#x, not %#x", sum, want)
		}
		return nil
	case byZstd:
		var b []byte
		b, err = x.zstd.DecodeAll(in, out[:0])
		n = len(b)
	}
	if err != nil {
		return err
	}
	if n != len(out) {
		return fmt.Errorf("it holds %d bytes, not %d", n, len(out))
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameSum is the check sum of framed Snappy.
func frameSum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

var inflaters sync.Pool // of io.ReadCloser, a zlib.Resetter

func inflate(out, in []byte) error {
	r, _ := inflaters.Get().(io.ReadCloser)
	var err error
	if r == nil {
		r, err = zlib.NewReader(bytes.NewReader(in))
	} else {
		err = r.(zlib.Resetter).Reset(bytes.NewReader(in), nil)
	}
	if err != nil {
		return err
	}
	defer inflaters.Put(r)
	if n, err := io.ReadFull(r, out); err != nil {
		return fmt.Errorf("%w after %d bytes of %d", err, n, len(out))
	}
	// The check sum comes with the end.
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("more than %d bytes, or a broken end: %w", len(out), err)
	}
	return nil
}

// readFull fills p from off.
func readFull(src io.ReaderAt, p []byte, off uint64) error {
	if off > 1<<62 {
		return fmt.Errorf("offset %#x is in no file", off)
	}
	n, err := src.ReadAt(p, int64(off))
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
