package mem_test

import (
	"math/rand/v2"
	"testing"

	"vmscope/mem"
)

// TestNear compares each load with that of the Space, in an order that uses
// what was remembered and drops it.
func TestNear(t *testing.T) {
	spaces(t, func(t *testing.T, s *mem.Space, _ []byte) {
		var at []mem.VA
		for _, va := range []mem.VA{0x10000, 0x10004, 0x107f8, 0x107fc, 0x10800, 0x10ff8, 0x10ffc, 0x10ffd, 0x11000, 0x11ff8, 0x11ffc, 0x11fff,
			0x12000, 0x13010, 0x200000, 0x220000, 0x2ffff8, 0x2ffffc, 0x2fffff, 0x300000, 1 << 62, ^mem.VA(0) - 7, ^mem.VA(0), 0} {
			for range 8 {
				at = append(at, va)
			}
		}
		rand.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
		n := s.Near()
		for _, va := range at {
			got, err := n.Uint64(va)
			want, werr := s.Uint64(va)
			if got != want || (err == nil) != (werr == nil) || err != nil && err.Error() != werr.Error() {
				t.Errorf("8 bytes at %#x: %#x, %v; want %#x, %v", uint64(va), got, err, want, werr)
			}
			got32, err := n.Uint32(va)
			want32, werr := s.Uint32(va)
			if got32 != want32 || (err == nil) != (werr == nil) || err != nil && err.Error() != werr.Error() {
				t.Errorf("4 bytes at %#x: %#x, %v; want %#x, %v", uint64(va), got32, err, want32, werr)
			}
		}
	})
}
