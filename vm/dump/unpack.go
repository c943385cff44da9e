package dump

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"vmscope/internal/gunzip"
	"vmscope/internal/lzop"
	"vmscope/mem"
)

const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	elfMagic  = "\x7fELF"

	maxWindow = 8 << 20 // of zstd, bytes
)

// packer is a program that packs whole files.
type packer struct {
	magic, name string
	undo        string // the program that unpacks it
	open        func(*io.SectionReader) (io.Reader, error)
	// random gives what can be read at random, from what may need a pass over all, which it
	// tells; nil: it unpacks from the beginning on.
	random func(in *io.SectionReader, pass func(done int64) error) (sizedReader, error)
}

// sizedReader can be read at any place.
type sizedReader interface {
	io.ReaderAt
	Size() int64
}

// packers are those that dumps are packed with: libvirt's, and that of bundles.
// Memory that xz takes is virtual where a header tells of a large dictionary: that is
// filled with what is unpacked.
var packers = []*packer{
	{zstdMagic, "zstd", "unzstd", openZstd, nil},
	{"\x1f\x8b", "gzip", "gunzip", func(r *io.SectionReader) (io.Reader, error) { return gzip.NewReader(r) }, randomGzip},
	{"BZh", "bzip2", "bunzip2", func(r *io.SectionReader) (io.Reader, error) { return bzip2.NewReader(r), nil }, nil},
	{"\xfd7zXZ\x00", "xz", "unxz", func(r *io.SectionReader) (io.Reader, error) { return xz.NewReader(bufio.NewReader(r)) }, nil},
	{"\x04\x22\x4d\x18", "lz4", "unlz4", func(r *io.SectionReader) (io.Reader, error) { return lz4.NewReader(r), nil }, nil},
	{lzop.Magic, "lzop", "lzop -d", openLzop, randomLzop},
}

func randomGzip(in *io.SectionReader, pass func(int64) error) (sizedReader, error) {
	return gunzip.Open(in, in.Size(), pass)
}

func randomLzop(in *io.SectionReader, _ func(int64) error) (sizedReader, error) {
	return lzop.Open(in, in.Size())
}

func openLzop(in *io.SectionReader) (io.Reader, error) {
	f, err := lzop.Open(in, in.Size())
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(f, 0, f.Size()), nil
}

func openZstd(r *io.SectionReader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// packerOf tells by its first bytes how a file is packed; nil: it is not.
func packerOf(head []byte) *packer {
	for _, p := range packers {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return p
		}
	}
	return nil
}

// unpack gives what is packed in src from off on, and its first bytes: at random where
// that can be, else unpacked. src is closed unless the result reads it; it is its own
// from then on, also if unpack fails. It must be a dump.
func (p *packer) unpack(src source, off uint64, o options) (source, []byte, error) {
	in := io.NewSectionReader(src, int64(off), int64(src.Size()-off))
	out, head, err := p.choose(src, in, o)
	o.progress(0, 0)
	if err != nil {
		return nil, nil, errors.Join(p.explain(err), src.Close())
	}
	if _, reads := out.(*unpackedFile); !reads {
		err = src.Close()
	}
	return out, head, err
}

// unpackedFile is a packed file as it was before.
type unpackedFile struct {
	source
	file sizedReader
}

func (u *unpackedFile) Size() uint64                            { return uint64(u.file.Size()) }
func (u *unpackedFile) ReadAt(p []byte, off int64) (int, error) { return u.file.ReadAt(p, off) }

func (p *packer) choose(src source, in *io.SectionReader, o options) (source, []byte, error) {
	r, err := p.open(io.NewSectionReader(&pass{in, o}, 0, in.Size()))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, nil, err
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	buf := make([]byte, 64*mem.PageSize)
	n, err := fill(r, buf)
	head := bytes.Clone(buf[:min(n, headSize)])
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, nil, err
	case !isDump(head):
		return nil, nil, errNoDump
	case p.random != nil && isPaged(head):
		f, err := p.random(in, func(done int64) error { return o.passed(done, in.Size()) })
		return &unpackedFile{src, f}, head, err
	}
	out, err := newSpool(src.Name(), uint64(in.Size()))
	if err != nil {
		return nil, nil, err
	}
	for ; ; n, err = fill(r, buf) {
		if _, werr := out.Write(buf[:n]); werr != nil {
			return nil, nil, errors.Join(werr, out.Close())
		}
		if errors.Is(err, io.EOF) {
			s, err := out.done()
			return s, head, err
		}
		if err != nil {
			return nil, nil, errors.Join(err, out.Close())
		}
	}
}

// pass is a packed file that is read from its beginning to its end, which is told.
type pass struct {
	io.ReaderAt
	o options
}

func (p *pass) ReadAt(b []byte, off int64) (int, error) {
	if err := p.o.passed(off, p.ReaderAt.(*io.SectionReader).Size()); err != nil {
		return 0, err
	}
	return p.ReaderAt.ReadAt(b, off)
}

// errNoDump says that what was unpacked is no dump.
var errNoDump = errors.New("no dump")

// errTooLarge says that it is more than can be unpacked.
var errTooLarge = fmt.Errorf("more than %d GiB", maxUnpacked>>30)

func (p *packer) explain(err error) error {
	var full *room
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("unpack it: %w", err)
	case errors.Is(err, errNoDump):
		return fmt.Errorf("%w: it is compressed with %s; unpack it first: %s", ErrFormat, p.name, p.undo)
	case errors.Is(err, errTooLarge) || errors.Is(err, gunzip.ErrTooLarge):
		return fmt.Errorf("%w: it is compressed with %s and has %w; unpack it first: %s", ErrFormat, p.name, errTooLarge, p.undo)
	case errors.As(err, &full):
		return fmt.Errorf("it is compressed with %s, and to unpack it there is no room: %w; set TMPDIR to a directory that has more, or unpack it yourself: %s", p.name, err, p.undo)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("%w: it is compressed with %s with a large window; unpack it first: %s", ErrFormat, p.name, p.undo)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: compressed with %s, and its end is missing", ErrTruncated, p.name)
	}
	return fmt.Errorf("%w: compressed with %s, and broken (%s tells more): %w", ErrFormat, p.name, p.undo, err)
}

// fill reads until p is full, or an error. At the end that is io.EOF.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}
