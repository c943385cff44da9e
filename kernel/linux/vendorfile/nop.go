package vendorfile

import (
	"bytes"

	"golang.org/x/arch/x86/x86asm"
)

// nop is the length of the instruction that does nothing at the start of b; 0 if
// there is none. Kernels use those of 1 to 11 bytes: nop and nopl with prefixes
// and with addresses of any form (arch/x86/include/asm/nops.h).
func nop(b []byte) int {
	i := 0
	for i < len(b) && i < 8 && (b[i] == 0x66 || b[i] == 0x2e || b[i] == 0x3e) {
		i++
	}
	p := b[i:]
	switch {
	case len(p) >= 1 && p[0] == 0x90:
		return i + 1
	case i == 1 && b[0] == 0x3e && bytes.HasPrefix(p, []byte{0x8d, 0x74, 0x26, 0x00}): // lea si, ds:[si+0]
		return 5
	case len(p) >= 3 && p[0] == 0x0f && p[1] == 0x1f && p[2]&0x38 == 0:
		n := 3
		mod, rm := p[2]>>6, p[2]&7
		if mod == 3 {
			return 0
		}
		if rm == 4 {
			n++
		}
		switch {
		case mod == 1:
			n++
		case mod == 2, mod == 0 && rm == 5:
			n += 4
		}
		if n <= len(p) {
			return i + n
		}
	}
	return 0
}

// skip is the length of a jump over breakpoints, which kernels put where there
// are more bytes to pass than one instruction has; 0 if there is none.
func skip(b []byte) int {
	n := 0
	switch {
	case len(b) >= 2 && b[0] == 0xeb && b[1] < 0x80:
		n = 2 + int(b[1])
	case len(b) >= 5 && b[0] == 0xe9 && b[2] == 0 && b[3] == 0 && b[4] == 0:
		n = 5 + int(b[1])
	}
	from := 2
	if n > 0 && b[0] == 0xe9 {
		from = 5
	}
	if n <= from || n > len(b) {
		return 0
	}
	for _, c := range b[from:n] {
		if c != 0xcc {
			return 0
		}
	}
	return n
}

// idle is how many bytes at the start of b do nothing.
func idle(b []byte) int {
	n := 0
	for n < len(b) {
		k := nop(b[n:])
		if k == 0 {
			k = skip(b[n:])
		}
		if k == 0 {
			break
		}
		n += k
	}
	return n
}

// instruction is the length of the instruction at the start of b, and where in
// it a distance from its end is (0: nowhere), of how many bytes. What cannot be
// told counts as one byte, of which no more is known.
func instruction(b []byte) (n, off, size int) {
	inst, err := x86asm.Decode(b[:min(len(b), 15)], 64)
	if err != nil || inst.Len == 0 {
		return 1, 0, 0
	}
	return inst.Len, inst.PCRelOff, inst.PCRel
}

// Idle reports whether b holds nothing but instructions that do nothing.
func Idle(b []byte) bool { return idle(b) == len(b) }
