// Package gunzip reads files that gzip packed, at any place, without unpacking them: one pass lists places from which it can be
// gone on. The files may be hostile.
package gunzip

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Magic begins a member (RFC 1952, section 2.3.1), with the one method there is.
const Magic = "\x1f\x8b\x08"

const (
	span       = 1 << 20   // bytes of what is unpacked from one place to the next, at first
	maxIndex   = 128 << 20 // bytes that the places take; if there are more, every second goes
	maxSize    = 1 << 40   // bytes of what is unpacked
	maxCursors = 16        // of somewhat more than a span each
)

// point is a place from which can be gone on.
type point struct {
	at    int64  // in what is unpacked
	bit   int64  // in the packed file
	block int64  // the bit where the header of its block is; -1: none was before
	past  []byte // what a match may reach, packed; nil: there is nothing, or zeros
	begun int    // bytes of it
	blank bool   // from here to the next point there are zeros
}

const pointSize = 64 // bytes it takes, but for past

// ErrTooLarge says that a file holds more than 1 TiB.
var ErrTooLarge = errors.New("too large")

// File is a packed file, as it was. It is safe for concurrent use.
type File struct {
	src    io.ReaderAt
	packed int64
	size   int64
	points []point
	zstd   *zstd.Decoder

	mu      sync.Mutex
	cursors []*cursor // that nobody uses, the last used first
}

// Open reads all of a file that is packed in the first size bytes of src, and checks it. An end that is missing is an
// io.ErrUnexpectedEOF. The places take 128 MiB at most, and that only of very large or not very packed files. Of what is
// told to progress, the bytes of src that were read, an error ends the pass.
func Open(src io.ReaderAt, size int64, progress func(done int64) error) (*File, error) {
	f := &File{src: src, packed: size}
	// With these options they cannot fail.
	f.zstd, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(2*window))
	pack, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window), zstd.WithEncoderCRC(false))
	d := &decoder{src: src, size: size, check: true}
	if err := d.place(0); err != nil {
		return nil, err
	}
	f.points = []point{{block: -1, blank: true}}
	buf, n := make([]byte, window+span+slack), 0
	for apart, index := int64(span), 0; ; {
		from := n
		var err error
		if n, err = d.step(buf, n); err != nil {
			return nil, fmt.Errorf("at byte %d: %w", d.bit()/8, err)
		}
		f.size += int64(n - from)
		last := &f.points[len(f.points)-1]
		last.blank = last.blank && blank(buf[from:n])
		if d.state == atEnd {
			f.points = append(f.points, point{at: f.size})
			return f, nil
		}
		if f.size > maxSize {
			return nil, fmt.Errorf("it has more than %d bytes: %w", int64(maxSize), ErrTooLarge)
		}
		if err := progress(d.bit() / 8); err != nil {
			return nil, err
		}
		n = d.slide(buf, n)
		if f.size-last.at < apart-maxMatch {
			continue
		}
		p := point{at: f.size, bit: d.bit(), block: d.block, begun: n - d.begin, blank: true}
		if past := buf[d.begin:n]; !blank(past) {
			p.past = bytes.Clone(pack.EncodeAll(past, nil))
		}
		f.points = append(f.points, p)
		for index += pointSize + len(p.past); index > maxIndex; {
			apart *= 2
			index = f.thin()
		}
	}
}

// thin lets every second place go, and gives what the others take.
func (f *File) thin() (index int) {
	kept := f.points[:0]
	for i, p := range f.points {
		if i%2 == 1 {
			last := &kept[len(kept)-1]
			last.blank = last.blank && p.blank
			continue
		}
		kept = append(kept, p)
		index += pointSize + len(p.past)
	}
	clear(f.points[len(kept):])
	f.points = kept
	return index
}

// Size is that of the file before it was packed, in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < f.size {
		i, there := slices.BinarySearchFunc(f.points, off, func(p point, off int64) int { return cmp.Compare(p.at, off) })
		if !there {
			i--
		}
		want := p[n:min(int64(len(p)), int64(n)+f.points[i+1].at-off)]
		if f.points[i].blank {
			clear(want)
		} else {
			c, err := f.take(i, off)
			for got := 0; got < len(want) && err == nil; {
				var k int
				k, err = c.read(want[got:], off+int64(got))
				got += k
			}
			if err != nil {
				return n, fmt.Errorf("gzip: from byte %d on: %w", f.points[i].bit/8, err)
			}
			f.give(c)
		}
		n, off = n+len(want), off+int64(len(want))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// take gives the cursor that comes to off with the least work, where point i is the last before off.
func (f *File) take(i int, off int64) (*cursor, error) {
	f.mu.Lock()
	best := -1
	for j, c := range f.cursors {
		if c.begins() <= off && c.end > f.points[i].at && (best < 0 || c.end > off || c.end > f.cursors[best].end) {
			if best = j; c.end > off {
				break
			}
		}
	}
	var c *cursor
	switch n := len(f.cursors); {
	case best >= 0:
		c = f.cursors[best]
		f.cursors = slices.Delete(f.cursors, best, best+1)
		f.mu.Unlock()
		return c, nil
	case n == maxCursors:
		c = f.cursors[n-1]
		f.cursors = f.cursors[:n-1]
	default:
		c = &cursor{d: &decoder{src: f.src, size: f.packed}, buf: make([]byte, window+span/4+slack)}
	}
	f.mu.Unlock()
	return c, c.start(&f.points[i], f.zstd)
}

func (f *File) give(c *cursor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cursors = slices.Insert(f.cursors, 0, c); len(f.cursors) > maxCursors {
		f.cursors[maxCursors] = nil
		f.cursors = f.cursors[:maxCursors]
	}
}

// cursor unpacks from a place on.
type cursor struct {
	d   *decoder
	buf []byte // the first n bytes are what was unpacked last
	n   int
	end int64 // of them, in the file as it was
}

func (c *cursor) begins() int64 { return c.end - int64(c.n) }

func (c *cursor) start(p *point, z *zstd.Decoder) error {
	c.n, c.end = p.begun, p.at
	if p.past == nil {
		clear(c.buf[:c.n])
	} else if b, err := z.DecodeAll(p.past, c.buf[:0]); err != nil || len(b) != c.n {
		return fmt.Errorf("the window kept of it: %w", err)
	}
	d := c.d
	d.begin = 0
	if p.block < 0 {
		d.state = atMember
		return d.place(p.bit)
	}
	if err := d.place(p.block); err != nil {
		return err
	}
	if err := d.header(); err != nil {
		return err
	}
	if d.state == inStored {
		d.stored -= int(p.bit-d.bit()) / 8
	}
	return d.place(p.bit)
}

// read gives some bytes at off, which is where the cursor is or behind.
func (c *cursor) read(p []byte, off int64) (int, error) {
	for off >= c.end {
		c.n = c.d.slide(c.buf, c.n)
		n, err := c.d.step(c.buf, c.n)
		if err == nil && n == c.n {
			err = errCorrupt // the file is another one by now
		}
		if err != nil {
			return 0, err
		}
		c.end += int64(n - c.n)
		c.n = n
	}
	return copy(p, c.buf[off-c.begins():c.n]), nil
}

var zeros [4096]byte

func blank(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
