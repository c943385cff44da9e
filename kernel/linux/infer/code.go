package infer

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/arch/x86/x86asm"
)

// maxCode is how much of a function is looked at: those that are asked for are
// short.
const maxCode = 256

// reads are the offsets from pointers at which a system call reads memory. None
// is an empty set: the code is not known, or not of a processor that is.
func (l *look) reads(call string) map[int]bool {
	return l.readsOf("__x64_sys_"+call, "__ia32_sys_"+call, "__arm64_sys_"+call, "__do_sys_"+call, "sys_"+call)
}

// readsOf is reads of the first function that there is of those named.
func (l *look) readsOf(names ...string) map[int]bool {
	for _, name := range names {
		at, err := l.k.Symbol(name)
		if err != nil {
			continue
		}
		code, err := l.object(at, maxCode, 4)
		if err != nil {
			return nil
		}
		switch l.k.Arch {
		case "x86_64", "i686":
			return loadsX86(code.b, 8*l.w)
		case "aarch64":
			return loadsARM64(code.b)
		}
		return nil
	}
	return nil
}

// loadsX86 lists the displacements of operands in memory, as far as the code of
// 32 or 64 bits goes straight on.
func loadsX86(code []byte, bits int) map[int]bool {
	out := make(map[int]bool)
	code = bytes.TrimPrefix(code, []byte{0xf3, 0x0f, 0x1e, 0xfa}) // ENDBR64, which is not known to the decoder
	for len(code) > 0 {
		inst, err := x86asm.Decode(code, bits)
		if err != nil || inst.Op == x86asm.RET || inst.Op == x86asm.JMP {
			break
		}
		if inst.Op != x86asm.LEA && inst.Op != x86asm.NOP {
			for _, a := range inst.Args {
				if m, ok := a.(x86asm.Mem); ok && m.Segment == 0 && m.Base != 0 && m.Base != x86asm.RIP && m.Base != x86asm.RSP && m.Base != x86asm.ESP && m.Disp >= 0 {
					out[int(m.Disp)] = true
				}
			}
		}
		code = code[inst.Len:]
	}
	return out
}

// loadsARM64 lists the offsets of LDR and LDP with an immediate (Arm ARM, C4.1,
// "Loads and Stores"), up to the first RET.
func loadsARM64(code []byte) map[int]bool {
	out := make(map[int]bool)
	for ; len(code) >= 4; code = code[4:] {
		w := binary.LittleEndian.Uint32(code)
		imm12, imm7 := int(w>>10&0xfff), int(w>>15&0x7f)
		switch {
		case w == 0xd65f03c0: // RET
			return out
		case w&0xffc00000 == 0xf9400000: // LDR Xt, [Xn, #imm]
			out[8*imm12] = true
		case w&0xffc00000 == 0xb9400000: // LDR Wt, [Xn, #imm]
			out[4*imm12] = true
		case w&0xffc00000 == 0xa9400000 && imm7 < 64: // LDP Xt, Xu, [Xn, #imm]
			out[8*imm7], out[8*imm7+8] = true, true
		case w&0xffc00000 == 0x29400000 && imm7 < 64: // LDP Wt, Wu, [Xn, #imm]
			out[4*imm7], out[4*imm7+4] = true, true
		}
	}
	return out
}
