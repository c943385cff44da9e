package ring

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The interest bitmap has a bit for each unit of the disk: whether the content of writes there is wanted. Unit size is 4
// KiB, or what keeps the bitmap of a huge disk below 512 MiB, of which only touched pages cost.
const (
	minUnit = 12
	maxBits = 1 << 32
)

func unitShift(disk int64) uint {
	shift := uint(minUnit)
	for uint64(disk)>>shift >= maxBits {
		shift++
	}
	return shift
}

func interestBytes(disk int64) uint64 {
	if disk <= 0 {
		return 0
	}
	units := (uint64(disk)-1)>>unitShift(disk) + 1
	return (units + 63) / 64 * 8
}

// Interest is the bitmap of one side. It is safe for concurrent use; a write that comes while a bit is changed is seen
// either way.
type Interest struct {
	s     *shared
	shift uint
}

func (s *shared) interest(disk int64) *Interest {
	i := &Interest{s: s, shift: unitShift(disk)}
	if interestBytes(disk) > uint64(len(s.bits)) {
		i.shift = 63 // not this disk's: nothing is ever looked up behind the bitmap
	}
	return i
}

// Interest gives the bitmap of a disk of the size that the ring was made for.
func (c *Consumer) Interest(disk int64) *Interest { return c.s.interest(disk) }

// Interest gives the bitmap of a disk of the size that the ring was made for.
func (p *Producer) Interest(disk int64) *Interest { return p.s.interest(disk) }

// Select makes the bitmap count. Until then all content is wanted.
func (i *Interest) Select(on bool) {
	v := uint64(0)
	if on {
		v = 1
	}
	i.s.word(hdrSelect).Store(v)
}

func (i *Interest) word(n uint64) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&i.s.bits[n*8]))
}

// span gives the units of a range, clipped to the bitmap.
func (i *Interest) span(off, n int64) (from, to uint64) {
	end := uint64(len(i.s.bits)) * 8
	if off < 0 || n <= 0 || off+n < 0 {
		return 0, 0
	}
	return min(uint64(off)>>i.shift, end), min(uint64(off+n-1)>>i.shift+1, end)
}

// Set says whether the content of n bytes from off on is wanted.
func (i *Interest) Set(off, n int64, wanted bool) {
	from, to := i.span(off, n)
	for u := from; u < to; {
		m, k := mask(u, to)
		if wanted {
			i.word(u / 64).Or(m)
		} else {
			i.word(u / 64).And(^m)
		}
		u += k
	}
}

// Clear takes all out, and gives the memory back.
func (i *Interest) Clear() {
	if len(i.s.bits) > 0 && unix.Madvise(i.s.bits, unix.MADV_REMOVE) != nil {
		clear(i.s.bits)
	}
}

// Wanted reports whether any of n bytes from off on is wanted.
func (i *Interest) Wanted(off, n int64) bool {
	if i.s.word(hdrSelect).Load() == 0 {
		return true
	}
	from, to := i.span(off, n)
	for u := from; u < to; {
		m, k := mask(u, to)
		if i.word(u/64).Load()&m != 0 {
			return true
		}
		u += k
	}
	return false
}

// mask gives the bits of the word that holds unit u, from u to before to, and their number.
func mask(u, to uint64) (m, n uint64) {
	n = min(to-u, 64-u%64)
	m = ^uint64(0)
	if n < 64 {
		m = 1<<n - 1
	}
	return m << (u % 64), n
}
