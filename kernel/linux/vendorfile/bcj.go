package vendorfile

import "encoding/binary"

// unfilter undoes xz's filter for x86 code (BCJ): it made the targets of calls
// and jumps absolute, which pack better.
//
// Whether four bytes behind an e8 or e9 were taken for a target depends on what
// lies in the four bytes before: each e8 and e9 there that was not taken itself
// leaves a mark.
func unfilter(b []byte) {
	sign := func(c byte) bool { return c == 0 || c == 0xff }
	marks := uint32(0) // bit i: such a byte lies i before; bit 4: see below
	last := -5
	for at := 0; at+5 <= len(b); {
		if b[at] != 0xe8 && b[at] != 0xe9 {
			at++
			continue
		}
		if gap := at - last; gap > 5 {
			marks = 0
		} else {
			for range gap {
				marks = marks & 0x77 << 1
			}
		}
		last = at
		top := b[at+4]
		if before := marks >> 1; !sign(top) || before >= 0x10 || before&7 == 3 || before&7 >= 5 {
			at++
			marks |= 1
			if sign(top) {
				marks |= 0x10
			}
			continue
		}
		to := binary.LittleEndian.Uint32(b[at+1:])
		for {
			to -= uint32(at + 5)
			if marks == 0 {
				break
			}
			// The bytes that the marked one shares with this are not to look
			// like a sign's.
			shared := 8 * [8]uint32{0, 1, 2, 2, 3, 3, 3, 3}[marks>>1&7]
			if !sign(byte(to >> (24 - shared))) {
				break
			}
			to ^= 1<<(32-shared) - 1
		}
		to &= 1<<25 - 1
		if to&(1<<24) != 0 {
			to |= 0xff << 24
		}
		binary.LittleEndian.PutUint32(b[at+1:], to)
		at += 5
		marks = 0
	}
}
