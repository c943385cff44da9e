package arm_test

import (
	"encoding/binary"

	"vmscope/arch/arm"
	"vmscope/mem"
)

// A second walker, for comparison, which shares nothing with the first. It follows
// the manual's pseudocode (DDI 0406C, B3.19.6: TranslationTableWalkSD and
// TranslationTableWalkLD, CheckPermission) with the manual's levels, bit by bit.
type slow struct {
	data  []byte
	mode  arm.Mode
	ttbr  [2]uint64
	fault int // the manual's level at which the walk ended; 0: before the first
}

// bits is v<hi:lo>.
func bits(v uint64, hi, lo int) uint64 {
	var out uint64
	for i := hi; i >= lo; i-- {
		out = out<<1 | v>>i&1
	}
	return out
}

func (s *slow) get(at uint64, size int) (uint64, bool) {
	if at > uint64(len(s.data)-size) {
		return 0, false
	}
	if size == 4 {
		return uint64(binary.LittleEndian.Uint32(s.data[at:])), true
	}
	return binary.LittleEndian.Uint64(s.data[at:]), true
}

// found is what a walk came to.
type found struct {
	pa, size uint64
	level    int // the manual's
	perm     mem.Perm
}

func (s *slow) walk(va uint64) (found, bool) {
	s.fault = 0
	if bits(va, 63, 32) != 0 {
		return found{}, false
	}
	if s.mode.Long {
		return s.long(va)
	}
	return s.short(va)
}

// short is TranslationTableWalkSD.
func (s *slow) short(va uint64) (f found, ok bool) {
	n := int(s.mode.Low)
	ttbr, disabled := s.ttbr[0], s.mode.NoLow
	if n > 0 && bits(va, 31, 32-n) != 0 {
		ttbr, disabled, n = s.ttbr[1], s.mode.NoHigh, 0
	}
	if disabled {
		return f, false
	}
	s.fault = 1
	l1, ok := s.get(bits(ttbr, 31, 14-n)<<(14-n)|bits(va, 31-n, 20)<<2, 4)
	if !ok {
		return f, false
	}
	switch bits(l1, 1, 0) {
	case 0:
		return f, false
	case 1:
		s.fault = 2
		l2, ok := s.get(bits(l1, 31, 10)<<10|bits(va, 19, 12)<<2, 4)
		if !ok || bits(l2, 1, 0) == 0 {
			return f, false
		}
		f.level = 2
		xn := bits(l2, 0, 0) == 1
		if bits(l2, 1, 1) == 1 {
			f.pa, f.size = bits(l2, 31, 12)<<12|bits(va, 11, 0), 1<<12
		} else {
			xn = bits(l2, 15, 15) == 1
			f.pa, f.size = bits(l2, 31, 16)<<16|bits(va, 15, 0), 1<<16
		}
		f.perm = s.check(bits(l2, 9, 9)<<2|bits(l2, 5, 4), xn, bits(l1, 2, 2) == 1)
		return f, true
	}
	f.level = 1
	if bits(l1, 18, 18) == 0 {
		f.pa, f.size = bits(l1, 31, 20)<<20|bits(va, 19, 0), 1<<20
	} else {
		f.pa, f.size = bits(l1, 8, 5)<<36|bits(l1, 23, 20)<<32|bits(l1, 31, 24)<<24|bits(va, 23, 0), 1<<24
	}
	f.perm = s.check(bits(l1, 15, 15)<<2|bits(l1, 11, 10), bits(l1, 4, 4) == 1, bits(l1, 0, 0) == 1)
	return f, true
}

// access is what PL1 and PL0 may do by AP[2:0]: table B3-8 and, with the access
// flag, table B3-6.
var access = map[bool][8][2]string{
	false: {{"", ""}, {"rw", ""}, {"rw", "r"}, {"rw", "rw"}, {"", ""}, {"r", ""}, {"r", "r"}, {"r", "r"}},
	true:  {{"rw", ""}, {"rw", ""}, {"rw", "rw"}, {"rw", "rw"}, {"r", ""}, {"r", ""}, {"r", "r"}, {"r", "r"}},
}

// check is what AP[2:0], XN and PXN permit PL1 and PL0, either of them.
func (s *slow) check(ap uint64, xn, pxn bool) (p mem.Perm) {
	who := access[s.mode.Access || s.mode.Long][ap]
	if who[0] == "rw" {
		p |= mem.Write
	}
	if who[1] != "" {
		p |= mem.User
	}
	if !xn && (who[0] != "" && !pxn || who[1] != "") {
		p |= mem.Exec
	}
	return p
}

// long is TranslationTableWalkLD, stage 1.
func (s *slow) long(va uint64) (f found, ok bool) {
	t0, t1 := int(s.mode.Low), int(s.mode.High)
	zeros := func(n int) bool { return n == 0 || bits(va, 31, 32-n) == 0 }
	ones := func(n int) bool { return bits(va, 31, 32-n) == 1<<n-1 }
	var ttbr uint64
	var disabled, have bool
	size := 0
	if zeros(t0) {
		ttbr, disabled, have, size = s.ttbr[0], s.mode.NoLow, true, t0
	}
	if t1 == 0 && !have || t1 > 0 && ones(t1) {
		ttbr, disabled, have, size = s.ttbr[1], s.mode.NoHigh, true, t1
	}
	if !have || disabled {
		return f, false
	}
	level, low := 1, 5-size
	if size >= 2 {
		level, low = 2, 14-size
	}
	base, top := bits(ttbr, 39, low)<<low, 31-size
	var noWrite, noUser, xn, pxn bool
	for {
		s.fault = level
		lsb := 39 - 9*level
		d, ok := s.get(base+bits(va, top, lsb)*8, 8)
		if !ok || bits(d, 0, 0) == 0 {
			return f, false
		}
		if level < 3 && bits(d, 1, 1) == 1 {
			pxn, xn = pxn || bits(d, 59, 59) == 1, xn || bits(d, 60, 60) == 1
			noUser, noWrite = noUser || bits(d, 61, 61) == 1, noWrite || bits(d, 62, 62) == 1
			base, top, level = bits(d, 39, 12)<<12, lsb-1, level+1
			continue
		}
		if level == 3 && bits(d, 1, 1) == 0 {
			return f, false
		}
		ap := bits(d, 7, 6) << 1
		if noUser {
			ap &^= 2
		}
		if noWrite {
			ap |= 4
		}
		perm := s.check(ap, xn || bits(d, 54, 54) == 1, pxn || bits(d, 53, 53) == 1)
		return found{bits(d, 39, lsb)<<lsb | bits(va, lsb-1, 0), 1 << lsb, level, perm}, true
	}
}
