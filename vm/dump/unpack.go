package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"vmscope/mem"
)

const (
	zstdMagic = "\x28\xb5\x2f\xfd"
	elfMagic  = "\x7fELF"

	maxWindow   = 8 << 20   // of zstd, bytes
	maxUnpacked = 640 << 20 // bytes; a larger core is better unpacked on disk
)

// unpack unpacks an ELF core that is compressed with zstd, a bundle above all,
// into memory. Pages of zeros take none of it.
func unpack(f *os.File) (*os.File, error) {
	refuse := func(why string) error {
		return fmt.Errorf("%w: it is compressed with zstd%s; unpack it first: unzstd", ErrFormat, why)
	}
	z, err := zstd.NewReader(io.NewSectionReader(f, 0, 1<<62), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	buf := make([]byte, 64*mem.PageSize)
	var out *os.File
	for size := int64(0); ; {
		n := 0
		for n < len(buf) && err == nil {
			var k int
			k, err = z.Read(buf[n:])
			n += k
		}
		if out == nil {
			if n >= len(elfMagic) && string(buf[:len(elfMagic)]) != elfMagic {
				return nil, refuse("")
			}
			fd, merr := unix.MemfdCreate("vmscope bundle", unix.MFD_CLOEXEC)
			if merr != nil {
				return nil, fmt.Errorf("memory to unpack into: %w", merr)
			}
			out = os.NewFile(uintptr(fd), f.Name())
		}
		if size+int64(n) > maxUnpacked {
			out.Close()
			return nil, refuse(fmt.Sprintf(" and has more than %d MiB", maxUnpacked>>20))
		}
		if werr := writePages(out, buf[:n], size); werr != nil {
			out.Close()
			return nil, werr
		}
		size += int64(n)
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			if err = out.Truncate(size); err == nil {
				return out, nil
			}
		case errors.Is(err, io.ErrUnexpectedEOF):
			err = fmt.Errorf("%w: compressed with zstd, and its end is missing", ErrTruncated)
		case errors.Is(err, zstd.ErrWindowSizeExceeded):
			err = refuse(" with a large window")
		default:
			err = fmt.Errorf("%w: compressed with zstd, and broken: %w", ErrFormat, err)
		}
		out.Close()
		return nil, err
	}
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
