package dump

import (
	"bytes"
	"encoding/binary"

	"vmscope/internal/ramfile"
	"vmscope/vm"
)

// maxCPUs bounds the register sets kept of one dump.
const maxCPUs = 4096

// registers reads those of every vCPU from the notes: NT_PRSTATUS of the ELF
// core (general registers), and the note "QEMU" with the system registers
// (QEMU target/i386/arch_dump.c, struct QEMUCPUState). Notes that make no
// sense are left out: registers are a hint.
func (c *core) registers(file *ramfile.File) []vm.Registers {
	if c.machine != emX86 && c.machine != emI386 {
		return nil
	}
	var general, system []vm.Registers
	left := uint64(maxNotes)
	for _, p := range c.progs {
		if p.typ != ptNote || p.off > file.Size() {
			continue
		}
		b := make([]byte, min(p.filesz, file.Size()-p.off, left))
		left -= uint64(len(b))
		n, _ := file.ReadAt(b, int64(p.off))
		for _, x := range notes(b[:n]) {
			switch {
			case x.name == "CORE" && x.typ == 1 && len(general) < maxCPUs:
				if r, ok := prstatus(x.desc); ok {
					general = append(general, r)
				}
			case x.name == "QEMU" && len(system) < maxCPUs:
				if r, ok := cpuState(x.desc); ok {
					system = append(system, r)
				}
			}
		}
	}
	if len(system) > 0 { // holds the general registers too
		return system
	}
	return general
}

// note is one entry of a PT_NOTE segment; name is without its NUL.
type note struct {
	name string
	typ  uint32
	desc []byte
}

// notes lists the notes of a PT_NOTE segment up to the first that does not fit.
func notes(b []byte) []note {
	var out []note
	le := binary.LittleEndian
	for len(b) >= 12 && len(out) < 4*maxCPUs {
		namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		name4, desc4 := (namesz+3)&^3, (descsz+3)&^3
		if name4 > uint64(len(b)) || descsz > uint64(len(b))-name4 {
			break
		}
		name := bytes.TrimSuffix(b[:min(namesz, 64)], []byte{0})
		out = append(out, note{string(name), typ, b[name4 : name4+descsz]})
		b = b[min(name4+desc4, uint64(len(b))):]
	}
	return out
}

// prstatus decodes struct elf_prstatus of x86-64: pr_reg, a user_regs_struct,
// starts at byte 112 (Linux include/linux/elfcore.h,
// arch/x86/include/asm/user_64.h).
func prstatus(b []byte) (vm.Registers, bool) {
	if len(b) != 336 {
		return vm.Registers{}, false
	}
	reg := func(i int) uint64 { return binary.LittleEndian.Uint64(b[112+8*i:]) }
	return vm.Registers{RIP: reg(16), RFLAGS: reg(18), RSP: reg(19), GSBase: reg(22)}, true
}

// cpuState decodes struct QEMUCPUState, version 1. kernel_gs_base was appended
// later without a new version: its size tells.
func cpuState(b []byte) (vm.Registers, bool) {
	const (
		rsp     = 8 + 6*8
		rip     = 8 + 16*8
		rflags  = rip + 8
		segs    = rflags + 8 // cs ds es fs gs ss ldt tr gdt idt, 24 bytes each
		cr      = segs + 10*24
		kgs     = cr + 5*8
		segBase = 16
	)
	if len(b) < kgs {
		return vm.Registers{}, false
	}
	u := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	if binary.LittleEndian.Uint32(b) != 1 || binary.LittleEndian.Uint32(b[4:]) > uint32(len(b)) {
		return vm.Registers{}, false
	}
	r := vm.Registers{
		RSP: u(rsp), RIP: u(rip), RFLAGS: u(rflags),
		GSBase:  u(segs + 4*24 + segBase),
		GDTBase: u(segs + 8*24 + segBase),
		IDTBase: u(segs + 9*24 + segBase),
		CR0:     u(cr), CR3: u(cr + 3*8), CR4: u(cr + 4*8),
		Valid: true,
	}
	if len(b) >= kgs+8 {
		r.KernelGS = u(kgs)
	}
	return r, true
}
