package dump

import (
	"bytes"
	"encoding/binary"
	"slices"

	"vmscope/internal/ramfile"
	"vmscope/vm"
)

// maxCPUs bounds the register sets kept of one dump.
const maxCPUs = 4096

// maxNote bounds the notes of a segment, and about that many are taken of all.
const maxNote = 4 * maxCPUs

// noteNames are the names of notes that are read.
var noteNames = []string{"CORE", "QEMU", noteBundle, noteVBox, noteVBoxCPU}

// notes reads those of all PT_NOTE segments that have one of noteNames.
func (c *core) notes(file *ramfile.File) []note {
	var out []note
	left := uint64(maxNotes)
	for _, p := range c.progs {
		if p.typ != ptNote || p.off > file.Size() || len(out) > maxNote {
			continue
		}
		b := make([]byte, min(p.filesz, file.Size()-p.off, left))
		left -= uint64(len(b))
		n, _ := file.ReadAt(b, int64(p.off))
		for _, x := range notes(b[:n]) {
			if slices.Contains(noteNames, x.name) {
				out = append(out, x)
			}
		}
	}
	return out
}

// registers are those of every vCPU as notes have them: NT_PRSTATUS of the ELF
// core (general registers), and the note "QEMU" with the system registers
// (QEMU target/i386/arch_dump.c, struct QEMUCPUState). Notes that make no
// sense are left out: registers are a hint.
func (c *core) registers(list []note) []vm.Registers {
	if c.machine != emX86 && c.machine != emI386 {
		return nil
	}
	var general, system []vm.Registers
	var msrs, entries []byte
	for _, x := range list {
		switch {
		case x.name == "CORE" && x.typ == ntPRStatus && len(general) < maxCPUs:
			if r, ok := prstatus(x.desc); ok {
				general = append(general, r)
			}
		case x.name == "QEMU" && len(system) < maxCPUs:
			if r, ok := cpuState(x.desc); ok {
				system = append(system, r)
			}
		case x.name == noteBundle && x.typ == ntMSRs:
			msrs = x.desc
		case x.name == noteBundle && x.typ == ntEntries:
			entries = x.desc
		}
	}
	if len(msrs) == 16*len(system) {
		for i := range system {
			system[i].EFER = binary.LittleEndian.Uint64(msrs[16*i:])
			system[i].LSTAR = binary.LittleEndian.Uint64(msrs[16*i+8:])
		}
	}
	if len(entries) == 16*len(system) {
		for i := range system {
			system[i].CSTAR = binary.LittleEndian.Uint64(entries[16*i:])
			system[i].SysenterEIP = binary.LittleEndian.Uint64(entries[16*i+8:])
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
	for len(b) >= 12 && len(out) < maxNote {
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
	r := vm.Registers{RIP: reg(RegRIP), CS: uint16(reg(RegCS)), RFLAGS: reg(RegRFLAGS), RSP: reg(RegRSP), SS: uint16(reg(RegSS)), GSBase: reg(RegGSBase)}
	for i, at := range generalAt {
		r.General[i] = reg(at)
	}
	return r, true
}

// struct QEMUCPUState: a version and its size, then these (QEMU
// target/i386/arch_dump.c).
const (
	cpuGeneral = 8            // rax rbx rcx rdx rsi rdi rsp rbp r8 … r15
	cpuRIP     = 8 + 16*8     //
	cpuRFLAGS  = cpuRIP + 8   //
	cpuSegs    = cpuRIP + 2*8 // cs ds es fs gs ss ldt tr gdt idt, each segSize
	cpuCR      = cpuSegs + 10*segSize
	cpuKGS     = cpuCR + 5*8 // kernel_gs_base was appended later without a new version: the size tells
	cpuSize    = cpuKGS + 8

	segSize = 24
	segBase = 16
	segCS   = cpuSegs
	segGS   = cpuSegs + 4*segSize
	segSS   = cpuSegs + 5*segSize
	segGDT  = cpuSegs + 8*segSize
	segIDT  = cpuSegs + 9*segSize
)

// cpuOrder is which of vm.Registers.General QEMUCPUState has at each place.
var cpuOrder = [16]int{0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15}

// cpuState decodes struct QEMUCPUState, version 1.
func cpuState(b []byte) (vm.Registers, bool) {
	if len(b) < cpuKGS {
		return vm.Registers{}, false
	}
	u := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	if binary.LittleEndian.Uint32(b) != 1 || binary.LittleEndian.Uint32(b[4:]) > uint32(len(b)) {
		return vm.Registers{}, false
	}
	r := vm.Registers{
		RIP: u(cpuRIP), RFLAGS: u(cpuRFLAGS),
		CS: uint16(u(segCS)), SS: uint16(u(segSS)),
		GSBase:  u(segGS + segBase),
		GDTBase: u(segGDT + segBase),
		IDTBase: u(segIDT + segBase),
		CR0:     u(cpuCR), CR3: u(cpuCR + 3*8), CR4: u(cpuCR + 4*8),
		Valid: true,
	}
	for i, g := range cpuOrder {
		r.General[g] = u(cpuGeneral + 8*i)
	}
	r.RSP = r.General[4]
	if len(b) >= cpuSize {
		r.KernelGS = u(cpuKGS)
	}
	return r, true
}
