package dump

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"vmscope/mem"
)

// kdumpSpec is a kdump-compressed dump to be written.
type kdumpSpec struct {
	frames uint64
	// pages are the RAM, by frame; a nil page is left out of the dump.
	pages  map[uint64][]byte
	codecs []codec // of the pages in turn; none: stored
	level  uint32
	status uint32
	notes  []byte
	// split: the frames of this piece.
	split bool
	first uint64
	end   uint64
}

var kdumpFlags = map[codec]uint32{stored: 0, byZlib: 1, byLZO: 2, bySnappy: 4, byZstd: 0x20}

// makeKdump writes a kdump-compressed dump of header version 6, byte by byte as
// makedumpfile's IMPLEMENTATION describes it.
func makeKdump(t testing.TB, s kdumpSpec) []byte {
	t.Helper()
	le := binary.LittleEndian
	if !s.split {
		s.end = s.frames
	}
	bitmapBytes := (s.frames/8 + 1 + 4095) &^ 4095
	desc := 2*mem.PageSize + (uint64(len(s.notes))+4095)&^4095 + 2*bitmapBytes
	out := make([]byte, desc)
	copy(out, kdumpMagic)
	le.PutUint32(out[8:], 6)
	copy(out[12:], "Linux")
	copy(out[12+65:], "web1")
	copy(out[12+130:], "6.1.0")
	copy(out[kdMachine:], "x86_64")
	le.PutUint32(out[424:], s.status)
	le.PutUint32(out[428:], mem.PageSize)
	le.PutUint32(out[432:], 1+uint32(len(s.notes)+4095)/4096)
	le.PutUint32(out[436:], uint32(2*bitmapBytes/4096))
	le.PutUint32(out[440:], uint32(s.frames))
	sub := out[4096:]
	le.PutUint32(sub[8:], s.level)
	if s.split {
		le.PutUint32(sub[12:], 1)
		le.PutUint64(sub[80:], s.first)
		le.PutUint64(sub[88:], s.end)
	}
	le.PutUint64(sub[96:], s.frames)
	if s.notes != nil {
		le.PutUint64(sub[48:], 8192)
		le.PutUint64(sub[56:], uint64(len(s.notes)))
		copy(out[8192:], s.notes)
	}
	b1 := out[desc-2*bitmapBytes:]
	b2 := out[desc-bitmapBytes:]
	var list []uint64
	for n, p := range s.pages {
		b1[n/8] |= 1 << (n % 8)
		if p != nil {
			b2[n/8] |= 1 << (n % 8)
			if n >= s.first && n < s.end {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	at := desc + uint64(kdDesc*len(list))
	var body []byte
	zeroAt := uint64(0)
	for i, n := range list {
		c := stored
		if len(s.codecs) > 0 {
			c = s.codecs[i%len(s.codecs)]
		}
		p := s.pages[n]
		in := pack(t, p, c)
		var d [kdDesc]byte
		if isZero(p) && zeroAt != 0 {
			le.PutUint64(d[:], zeroAt)
			in, c = p, stored
		} else {
			if isZero(p) {
				in, c = p, stored
				zeroAt = at + uint64(len(body))
			}
			le.PutUint64(d[:], at+uint64(len(body)))
			body = append(body, in...)
		}
		le.PutUint32(d[8:], uint32(len(in)))
		le.PutUint32(d[12:], kdumpFlags[c])
		out = append(out, d[:]...)
	}
	return append(out, body...)
}

// pack compresses a page.
func pack(t testing.TB, p []byte, c codec) []byte {
	t.Helper()
	switch c {
	case byZlib:
		var b bytes.Buffer
		z := zlib.NewWriter(&b)
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	case byLZO:
		return literals(p)
	case bySnappy:
		return snappy.Encode(nil, p)
	case byZstd:
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(p, nil)
	}
	return p
}

// literals is p as LZO1X, nothing of it made shorter: one run of literals of
// any length from 19 bytes on, and the end mark.
func literals(p []byte) []byte {
	n := len(p) - 3 - 15
	out := []byte{0}
	for ; n > 255; n -= 255 {
		out = append(out, 0)
	}
	out = append(append(out, byte(n)), p...)
	return append(out, 17, 0, 0)
}

// flatten writes a dump in flattened form, with records of so many bytes. The
// first is written twice, as makedumpfile does with the header: first wrong.
func flatten(b []byte, record int) []byte {
	be := binary.BigEndian
	out := make([]byte, 4096)
	copy(out, flatMagic)
	be.PutUint64(out[16:], 1)
	be.PutUint64(out[24:], 1)
	put := func(off int, p []byte) {
		out = be.AppendUint64(out, uint64(off))
		out = be.AppendUint64(out, uint64(len(p)))
		out = append(out, p...)
	}
	first := min(record/2, len(b))
	put(0, bytes.Repeat([]byte{0xee}, first))
	for off := 0; off < len(b); off += record {
		put(off, b[off:min(off+record, len(b))])
	}
	put(0, b[:first])
	return append(out, bytes.Repeat([]byte{0xff}, 16)...)
}
