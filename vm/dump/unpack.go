package dump

import (
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"vmscope/internal/lzop"
	"vmscope/mem"
)

const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	elfMagic  = "\x7fELF"

	maxWindow   = 8 << 20   // of zstd, bytes
	maxUnpacked = 640 << 20 // bytes; a larger dump is better unpacked on disk
)

// packer is a program that packs whole files.
type packer struct {
	magic, name string
	undo        string // the program that unpacks it
	open        func(*io.SectionReader) (io.Reader, error)
}

// packers are those that dumps are packed with: libvirt's, and that of bundles.
// Memory that xz takes is virtual where a header tells of a large dictionary: that is
// filled with what is unpacked.
var packers = []*packer{
	{zstdMagic, "zstd", "unzstd", openZstd},
	{"\x1f\x8b", "gzip", "gunzip", func(r *io.SectionReader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"BZh", "bzip2", "bunzip2", func(r *io.SectionReader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"\xfd7zXZ\x00", "xz", "unxz", func(r *io.SectionReader) (io.Reader, error) { return xz.NewReader(r) }},
	{"\x04\x22\x4d\x18", "lz4", "unlz4", func(r *io.SectionReader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{lzop.Magic, "lzop", "lzop -d", func(r *io.SectionReader) (io.Reader, error) {
		f, err := lzop.Open(r, r.Size())
		if err != nil {
			return nil, err
		}
		return io.NewSectionReader(f, 0, f.Size()), nil
	}},
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

// unpack gives what is packed in src from off on, and its first bytes: at random if
// it is packed in blocks (lzop), else unpacked into memory, in which pages of zeros
// take no room. src is closed unless the result reads it; it is its own from then on,
// also if unpack fails. It must be a dump.
func (p *packer) unpack(src source, off uint64) (source, []byte, error) {
	in := io.NewSectionReader(src, int64(off), int64(src.Size()-off))
	out, head, err := p.random(src, in)
	if out == nil && err == nil {
		if out, head, err = p.spool(src.Name(), in); err == nil {
			err = src.Close()
		}
	}
	if err != nil {
		return nil, nil, errors.Join(p.explain(err), src.Close())
	}
	return out, head, nil
}

// errNoDump says that what was unpacked is no dump.
var errNoDump = errors.New("no dump")

// errTooLarge says that it is more than can be unpacked.
var errTooLarge = fmt.Errorf("more than %d MiB", maxUnpacked>>20)

func (p *packer) explain(err error) error {
	switch {
	case errors.Is(err, errNoDump):
		return fmt.Errorf("%w: it is compressed with %s; unpack it first: %s", ErrFormat, p.name, p.undo)
	case errors.Is(err, errTooLarge):
		return fmt.Errorf("%w: it is compressed with %s and has %w; unpack it first: %s", ErrFormat, p.name, err, p.undo)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("%w: it is compressed with %s with a large window; unpack it first: %s", ErrFormat, p.name, p.undo)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: compressed with %s, and its end is missing", ErrTruncated, p.name)
	}
	return fmt.Errorf("%w: compressed with %s, and broken (%s tells more): %w", ErrFormat, p.name, p.undo, err)
}

// lzopped is a file of lzop as it was before it was packed.
type lzopped struct {
	source
	file *lzop.File
}

func (b *lzopped) Size() uint64                            { return uint64(b.file.Size()) }
func (b *lzopped) ReadAt(p []byte, off int64) (int, error) { return b.file.ReadAt(p, off) }

// random gives a file that can be read at random without unpacking all; nil: this
// one cannot, or has a format that has to be mapped.
func (p *packer) random(src source, in *io.SectionReader) (source, []byte, error) {
	if p.magic != lzop.Magic {
		return nil, nil, nil
	}
	f, err := lzop.Open(in, in.Size())
	if err != nil {
		return nil, nil, err
	}
	head := make([]byte, headSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	if head = head[:n]; !isPaged(head) {
		return nil, nil, nil
	}
	return &lzopped{src, f}, head, nil
}

// spool unpacks into memory.
func (p *packer) spool(name string, in *io.SectionReader) (source, []byte, error) {
	r, err := p.open(in)
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
	}
	fd, merr := unix.MemfdCreate("vmscope dump", unix.MFD_CLOEXEC)
	if merr != nil {
		return nil, nil, fmt.Errorf("memory to unpack into: %w", merr)
	}
	out := os.NewFile(uintptr(fd), name)
	for size := int64(0); ; n, err = fill(r, buf) {
		if size+int64(n) > maxUnpacked {
			return nil, nil, errors.Join(errTooLarge, out.Close())
		}
		if werr := writePages(out, buf[:n], size); werr != nil {
			return nil, nil, errors.Join(werr, out.Close())
		}
		size += int64(n)
		if errors.Is(err, io.EOF) {
			if err = out.Truncate(size); err == nil {
				s, err := plain(out)
				return s, head, err
			}
		}
		if err != nil {
			return nil, nil, errors.Join(err, out.Close())
		}
	}
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

// writePages writes p at off but for pages of zeros.
func writePages(f *os.File, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), mem.PageSize)
		if !bytes.Equal(p[:n], zeros[:n]) {
			if _, err := f.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
