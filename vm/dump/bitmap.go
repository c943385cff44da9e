package dump

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"

	"vmscope/mem"
)

// bitmap is a set of page frames, as dumps have it: bit n%8 of byte n/8.
type bitmap struct {
	bits  uint64
	words []uint64
	// sums counts the frames below each group of bitmapGroup words.
	sums []uint64
}

const bitmapGroup = 64

// readBitmap reads a bitmap of so many frames, which the file holds.
func readBitmap(src source, off, frames uint64) (bitmap, error) {
	b := bitmap{bits: frames, words: make([]uint64, (frames+63)/64)}
	var buf [8 * bitmapGroup]byte
	sum, left := uint64(0), (frames+7)/8
	for i := 0; i < len(b.words); i += bitmapGroup {
		n := min(left, uint64(len(buf)))
		clear(buf[:])
		if err := readFull(src, buf[:n], off); err != nil {
			return b, fmt.Errorf("%w: bitmap at offset %#x: %w", ErrTruncated, off, err)
		}
		off, left = off+n, left-n
		b.sums = append(b.sums, sum)
		for j := range min(bitmapGroup, len(b.words)-i) {
			w := binary.LittleEndian.Uint64(buf[8*j:])
			if i+j == len(b.words)-1 && frames%64 != 0 {
				w &= 1<<(frames%64) - 1
			}
			b.words[i+j] = w
			sum += uint64(bits.OnesCount64(w))
		}
	}
	b.sums = append(b.sums, sum)
	return b, nil
}

func (b *bitmap) has(n uint64) bool { return n < b.bits && b.words[n/64]>>(n%64)&1 != 0 }

// below counts the frames below n, at most bits.
func (b *bitmap) below(n uint64) uint64 {
	word := n / 64
	group := word / bitmapGroup
	sum := b.sums[group]
	for i := group * bitmapGroup; i < word; i++ {
		sum += uint64(bits.OnesCount64(b.words[i]))
	}
	if n%64 != 0 {
		sum += uint64(bits.OnesCount64(b.words[word] & (1<<(n%64) - 1)))
	}
	return sum
}

// from lists the frames of [first, end).
func (b *bitmap) from(first, end uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for n := first; n < end; {
			w := b.words[n/64] >> (n % 64)
			if w == 0 {
				n = (n/64 + 1) * 64
				continue
			}
			n += uint64(bits.TrailingZeros64(w))
			if n >= end || !yield(n) {
				return
			}
			n++
		}
	}
}

// maxRanges bounds the runs of RAM of a machine.
const maxRanges = 1 << 20

// maxExtents bounds a list of extents. A dump may have every second page.
const maxExtents = 1 << 22

// addExtent adds a range that lies behind the others. Of a list that is full the last one grows, and has what
// lies between too: who searches it finds that it is not there.
func addExtent(l []mem.Range, r mem.Range, most int) []mem.Range {
	if n := len(l); n > 0 && (l[n-1].End() == r.Start || n == most) {
		l[n-1].Size = uint64(r.End() - l[n-1].Start)
		return l
	}
	return append(l, r)
}

// runs lists the frames as ranges of memory, of pages of the given size.
func (b *bitmap) runs(page uint64) ([]mem.Range, error) {
	var out []mem.Range
	for n := range b.from(0, b.bits) {
		pa := mem.PA(n * page)
		if i := len(out); i > 0 && out[i-1].End() == pa {
			out[i-1].Size += page
			continue
		}
		if len(out) == maxRanges {
			return nil, fmt.Errorf("RAM in more than %d pieces", maxRanges)
		}
		out = append(out, mem.Range{Start: pa, Size: page})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("without memory")
	}
	return out, nil
}
