package vendorfile

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"vmscope/internal/lzop"
)

// Bounds of what is unpacked: a kernel's ELF file with its relocations has some
// 60 MiB, the largest modules without debug information some 10 MiB.
const (
	maxKernel = 512 << 20
	maxModule = 256 << 20
	maxWindow = 128 << 20 // of zstd, as "zstd -22 --ultra" makes it
)

// payload unpacks the kernel's ELF file, and the relocations behind it, from a
// bzImage (Documentation/arch/x86/boot.rst: the real-mode header). A file that
// is none of this is returned as it is.
func payload(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\x7fELF")) {
		return b, nil
	}
	if len(b) < 0x260 || string(b[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(b[0x1fe:]) != 0xaa55 {
		return nil, errFormat("neither a bzImage nor an ELF file")
	}
	le := binary.LittleEndian
	if v := le.Uint16(b[0x206:]); v < 0x208 {
		return nil, errFormat("boot protocol %#x, too old to say where the kernel is", v)
	}
	sectors := uint64(b[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	at, n := (sectors+1)*512+uint64(le.Uint32(b[0x248:])), uint64(le.Uint32(b[0x24c:]))
	if n < 8 || n > uint64(len(b)) || at > uint64(len(b))-n {
		return nil, errFormat("a payload of %d bytes at %#x of %d", n, at, len(b))
	}
	p := b[at : at+n]
	// The size unpacked is appended (scripts/Makefile.lib: size_append); gzip
	// ends with it by itself.
	if !bytes.HasPrefix(p, []byte("\x1f\x8b")) {
		p = p[:n-4]
	}
	return unpack(p, maxKernel)
}

// unpack unpacks a file; how it is packed is told by its first bytes.
func unpack(b []byte, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	name, filtered := "", false
	switch {
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return b, nil
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		name = "gzip"
		r, err = gzip.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		name = "xz"
		r, filtered, err = newXZ(b)
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		name = "zstd"
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			defer z.Close()
			r = z
		}
	case bytes.HasPrefix(b, []byte("\x02\x21\x4c\x18")), bytes.HasPrefix(b, []byte("\x04\x22\x4d\x18")):
		name, r = "lz4", lz4.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte("BZh")):
		name, r = "bzip2", bzip2.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte("\x5d\x00\x00")):
		name = "lzma"
		r, err = lzma.ReaderConfig{DictCap: maxWindow}.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte(lzop.Magic)):
		name = "lzo"
		var f *lzop.File
		if f, err = lzop.Open(bytes.NewReader(b), int64(len(b))); err == nil {
			r = io.NewSectionReader(f, 0, f.Size())
		}
	default:
		return nil, errFormat("packed in a way that is not known, beginning with % x", b[:min(len(b), 8)])
	}
	if err == nil {
		var out bytes.Buffer // grows as the bytes come
		var n int64
		if n, err = io.Copy(&out, io.LimitReader(r, limit+1)); err == nil && n <= limit {
			if filtered {
				unfilter(out.Bytes())
			}
			return out.Bytes(), nil
		} else if err == nil {
			return nil, errFormat("%s: more than %d MiB", name, limit>>20)
		}
	}
	return nil, fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
}

// newXZ reads xz, also with the filter for x86 code that kernels are packed with
// (scripts/xz_wrap.sh), which the library does not know: then of the first block
// only, which is all that there is, and filtered says that unfilter has to
// follow. Its check sum is not looked at: the build id says what the file is.
func newXZ(b []byte) (r io.Reader, filtered bool, err error) {
	const header = 12
	if len(b) < header+2 || b[header+1]&3 == 0 { // one filter
		r, err := xz.NewReader(bytes.NewReader(b))
		return r, false, err
	}
	size := (int(b[header]) + 1) * 4
	if len(b) < header+size {
		return nil, false, io.ErrUnexpectedEOF
	}
	h := b[header : header+size]
	flags, p := h[1], h[2:]
	number := func() (n uint64) { // the format's multibyte integer
		for i := 0; i < 9 && len(p) > 0; i++ {
			c := p[0]
			p = p[1:]
			n |= uint64(c&0x7f) << (7 * i)
			if c&0x80 == 0 {
				break
			}
		}
		return n
	}
	for range flags>>6&1 + flags>>7 { // sizes, packed and unpacked
		number()
	}
	const filterX86, filterLZMA2 = 4, 0x21
	if first, n := number(), number(); flags&3 != 1 || first != filterX86 || n != 0 {
		return nil, false, fmt.Errorf("filters other than that for x86 and LZMA2")
	}
	if second, n := number(), number(); second != filterLZMA2 || n != 1 || len(p) == 0 || p[0] > 32 {
		return nil, false, fmt.Errorf("a filter %#x behind that for x86", second)
	}
	dict := (2 | int(p[0])&1) << (p[0]/2 + 11)
	r, err = lzma.Reader2Config{DictCap: min(dict, maxWindow)}.NewReader2(bytes.NewReader(b[header+size:]))
	return r, true, err
}
