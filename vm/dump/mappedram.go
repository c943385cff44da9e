package dump

import (
	"encoding/binary"
	"fmt"
)

// With the capability mapped-ram (QEMU from 9.0; libvirt's save image format "sparse")
// a page has one place in the file, wherever and however often it is written, also
// by several threads (multifd). Behind the name and size of a block are a header, a
// bitmap of the pages that are there, in words of the machine, and the pages, from a
// multiple of 1 MiB on. Offsets are those in the file, of which the stream may be a
// part (QEMU docs/devel/migration/mapped-ram.rst, struct MappedRamHeader in
// migration/ram.c).
const (
	mappedVersion = 1
	mappedAlign   = 1 << 20
)

// readMapped lists the pages of a block, and goes on behind them.
func (b *ramBlock) readMapped(r *streamReader) error {
	version, page, bitmapAt, pagesAt := r.u32(), r.u64(), r.u64(), r.u64()
	if r.err != nil {
		return nil
	}
	frames := b.size / streamPage
	bytes := (frames + 63) / 64 * 8
	// Where the stream begins in the file shows by the bitmap, which follows.
	skipped := pagesAt - bitmapAt
	if version != mappedVersion || page != streamPage || pagesAt < bitmapAt || skipped < bytes || skipped > bytes+mappedAlign {
		return fmt.Errorf("mapped-ram of version %d, pages of %d bytes, %d of them from %#x to %#x", version, page, frames, bitmapAt, pagesAt)
	}
	bits, pages := r.off, r.off+skipped
	var buf [4096]byte
	for first := uint64(0); first < frames; first += 8 * uint64(len(buf)) {
		p := buf[:min(uint64(len(buf)), bytes-first/8)]
		if err := readFull(r.src, p, bits+first/8); err != nil {
			r.err = err
			return nil
		}
		for i := 0; i < len(p); i += 8 {
			word := binary.LittleEndian.Uint64(p[i:])
			for n := first + 8*uint64(i); word != 0 && n < frames; n, word = n+1, word>>1 {
				if word&1 == 0 {
					continue
				}
				if err := b.put(n, pageAt(pages+n*streamPage)); err != nil {
					return fmt.Errorf("page %#x: %w", n*streamPage, err)
				}
			}
		}
	}
	r.jump(pages + b.size)
	return nil
}
