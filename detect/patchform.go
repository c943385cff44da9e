package detect

import (
	"bytes"
	"encoding/binary"
	"slices"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

// The forms in which x86 kernels do nothing at a place that they rewrite: by
// length, for any processor and, before v5.13, for some
// (arch/x86/include/asm/nops.h).
var (
	nop2  = [][]byte{{0x66, 0x90}}
	nop5s = [][]byte{
		{0x0f, 0x1f, 0x44, 0x00, 0x00},
		{0x66, 0x66, 0x66, 0x66, 0x90}, // K8
		{0x3e, 0x8d, 0x74, 0x26, 0x00}, // generic
	}
	// What a static call is when there is nothing to call: return, "xor eax, eax"
	// in five bytes, a warning (arch/x86/kernel/static_call.c).
	noCalls = append([][]byte{
		{0xc3, 0xcc, 0xcc, 0xcc, 0xcc},
		{0x2e, 0x2e, 0x2e, 0x31, 0xc0},
		{0x66, 0x66, 0x48, 0x31, 0xc0},
		{0x67, 0x48, 0x0f, 0xb9, 0x3a},
	}, nop5s...)
)

const (
	opInt3   = 0xcc
	opCall   = 0xe8
	opJump   = 0xe9
	opShort  = 0xeb
	opReturn = 0xc3
	opLock   = 0xf0
	opDS     = 0x3e // in the place of a lock prefix
)

// siteSize is how many bytes the kernel rewrites at a place at most.
const siteSize = 6

// form reports how many bytes at the start of b are in a form that is valid at a
// place that the kernel lists; 0 if they are in none. to says whether a branch
// there may lead to an address; of 0, whether nothing may be called there.
//
// The first byte of a place that is just being rewritten is a breakpoint; that
// is no valid form here, and does not last.
func form(site linux.PatchSite, b []byte, to func(linux.PatchSite, mem.VA) bool) int {
	if len(b) == 0 {
		return 0
	}
	branch := func(n int, rel int64) int {
		if !to(site, site.At+mem.VA(n)+mem.VA(rel)) {
			return 0
		}
		return n
	}
	rel32 := func(op int) int64 { return int64(int32(binary.LittleEndian.Uint32(b[op:]))) }
	switch site.Kind {
	case linux.LockPrefix:
		if b[0] == opLock || b[0] == opDS {
			return 1
		}
	case linux.Kprobe:
		switch {
		case b[0] == opInt3:
			return 1
		case b[0] == opJump && len(b) >= 5:
			return branch(5, rel32(1))
		}
	case linux.JumpLabel:
		switch {
		case begins(b, nop2):
			return 2
		case b[0] == opShort && len(b) >= 2:
			return branch(2, int64(int8(b[1])))
		case begins(b, nop5s):
			return 5
		case b[0] == opJump && len(b) >= 5:
			return branch(5, rel32(1))
		}
	case linux.FtraceSite:
		switch {
		case begins(b, nop5s):
			return 5
		case (b[0] == opCall || b[0] == opJump) && len(b) >= 5: // past ftrace also a jump, since v6.19
			return branch(5, rel32(1))
		}
	case linux.StaticCall, linux.FtraceCall:
		switch {
		case begins(b, noCalls):
			if !to(site, 0) {
				return 0
			}
			return 5
		case (b[0] == opCall || b[0] == opJump) && len(b) >= 5:
			return branch(5, rel32(1))
		case b[0] == 0x0f && len(b) >= 6 && b[1]&0xf0 == 0x80: // a conditional tail call
			return branch(6, rel32(2))
		}
	}
	return 0
}

func begins(b []byte, with [][]byte) bool {
	return slices.ContainsFunc(with, func(w []byte) bool { return bytes.HasPrefix(b, w) })
}

// branchMarks may stand at the entry of a function: endbr64, and what the kernel
// writes over it where no indirect branch leads (arch/x86/include/asm/ibt.h).
var branchMarks = [][]byte{
	{0xf3, 0x0f, 0x1e, 0xfa},
	{0x66, 0x0f, 0x1f, 0x00}, // its first form
	{0x0f, 0x1f, 0x40, 0xd6},
	{0x0f, 0x1f, 0x40, 0x00},
}

// entrySize is how many bytes of a function's entry are looked at.
const entrySize = 24

// leap is where the code at an entry goes before it does anything else, by the
// ways in which hooks are made: a direct jump or call, a jump through memory, or
// to an address that was loaded or pushed for it. load reads a pointer.
func leap(at mem.VA, b []byte, load func(mem.VA) (mem.VA, error)) (to mem.VA, ok bool) {
	le := binary.LittleEndian
	switch {
	case len(b) >= 5 && (b[0] == opJump || b[0] == opCall):
		return at + 5 + mem.VA(int64(int32(le.Uint32(b[1:])))), true
	case len(b) >= 6 && b[0] == 0xff && (b[1] == 0x25 || b[1] == 0x15): // jmp, call [rip+x]
		to, err := load(at + 6 + mem.VA(int64(int32(le.Uint32(b[2:])))))
		return to, err == nil
	case len(b) >= 6 && b[0] == 0x68 && b[5] == opReturn: // push x; ret
		return mem.VA(int64(int32(le.Uint32(b[1:])))), true
	case len(b) >= 13 && b[0]&0xfe == 0x48 && b[1]&0xf8 == 0xb8: // mov r, x
		b, b2 := b[10:], mem.VA(le.Uint64(b[2:]))
		if b[0] == 0x41 { // r8 and on
			b = b[1:]
		}
		if b[0] == 0xff && (b[1]&0xf8 == 0xe0 || b[1]&0xf8 == 0xd0) || b[0]&0xf8 == 0x50 && b[1] == opReturn {
			return b2, true // jmp r, call r; push r; ret
		}
	}
	return 0, false
}

// thunks reports whether b holds nothing but breakpoints and jumps through
// registers. Kernels keep such pages, which no list accounts for after the boot,
// on processors that predict indirect jumps wrongly (872df34d7c51 "x86/its: Use
// dynamic thunks for indirect branches").
func thunks(b []byte) bool {
	for len(b) > 0 {
		switch {
		case b[0] == opInt3:
			b = b[1:]
		case len(b) >= 3 && b[0] == 0xff && b[1]&0xf8 == 0xe0 && b[2] == opInt3: // jmp rax to rdi
			b = b[3:]
		case len(b) >= 4 && b[0] == 0x41 && b[1] == 0xff && b[2]&0xf8 == 0xe0 && b[3] == opInt3: // jmp r8 to r15
			b = b[4:]
		default:
			return false
		}
	}
	return true
}
