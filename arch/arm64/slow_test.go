package arm64_test

import (
	"vmscope/arch/arm64"
	"vmscope/mem"
)

// slowWalk is a second walker, for comparison, which shares nothing with the
// first. It follows the manual's pseudocode (DDI 0487, shared/translation: functions
// AArch64.S1Walk, AArch64.TTBaseAddress, AArch64.NextTableBase, AArch64.LeafBase)
// with the manual's levels, bit by bit, on words that get gives.
//
// It returns the level of the manual at which it ended, which is 9 if it never began.
func slowWalk(get func(pa uint64) (uint64, bool), h arm64.Half, high bool, root, va uint64) (pa, size uint64, level int, perm mem.Perm, ok bool) {
	bits := func(v uint64, hi, lo int) uint64 { // v<hi:lo>
		var out uint64
		for i := hi; i >= lo; i-- {
			out = out<<1 | v>>i&1
		}
		return out
	}
	one := func(v uint64, i int) bool { return v>>i&1 == 1 }
	top := 63
	if h.TopIgnored {
		top = 55
	}
	want := uint64(0)
	if high {
		want = 1
	}
	for i := int(h.Bits); i <= top; i++ {
		if bits(va, i, i) != want {
			return 0, 0, 9, 0, false
		}
	}
	if bits(va, 55, 55) != want {
		return 0, 0, 9, 0, false
	}
	grain := map[arm64.Granule]int{arm64.Granule4K: 12, arm64.Granule16K: 14, arm64.Granule64K: 16}[h.Granule]
	stride := grain - 3
	// AArch64.S1StartLevel
	level = 3 - (int(h.Bits)-1-grain)/stride
	first := level
	base := root
	var noWrite, noEL0, noPXN, noUXN bool // that tables take away
	for {
		lsb := (3-level)*stride + grain
		msb := lsb + stride - 1
		if level == first {
			msb = int(h.Bits) - 1
		}
		d, there := get(base + bits(va, msb, lsb)*8)
		if !there || !one(d, 0) {
			return 0, 0, level, 0, false
		}
		next := bits(d, 47, grain) << grain
		if h.Wide {
			if grain == 16 {
				next |= bits(d, 15, 12) << 48
			} else {
				next = bits(d, 49, grain)<<grain | bits(d, 9, 8)<<50
			}
		}
		if one(d, 1) && level < 3 {
			if !h.Flat {
				noUXN, noPXN = noUXN || one(d, 60), noPXN || one(d, 59)
				noEL0, noWrite = noEL0 || one(d, 61), noWrite || one(d, 62)
			}
			base, level = next, level+1
			continue
		}
		var block bool
		switch { // AArch64.BlockDescSupported
		case grain == 12:
			block = level == 2 || level == 1 || level == 0 && h.Wide
		case grain == 14:
			block = level == 2 || level == 1 && h.Wide
		case grain == 16:
			block = level == 2 || level == 1 && h.Wide
		}
		if one(d, 1) != (level == 3) || level < 3 && !block {
			return 0, 0, level, 0, false
		}
		size = 1 << lsb
		pa = next/size*size + va%size
		write := !one(d, 7) || h.Dirty && one(d, 51)
		write = write && !noWrite
		el0 := one(d, 6) && !noEL0
		ux := !one(d, 54) && !noUXN
		px := !one(d, 53) && !noPXN && !(el0 && write)
		if write {
			perm |= mem.Write
		}
		if el0 || ux {
			perm |= mem.User
		}
		if ux || px {
			perm |= mem.Exec
		}
		return pa, size, level, perm, true
	}
}
