package dump

import (
	"encoding/binary"
	"fmt"

	"vmscope/vm"
)

// VirtualBox's core (VBoxManage debugvm NAME dumpvmcore) is an ELF core with a
// note for the file and one for each CPU (VirtualBox
// include/VBox/vmm/dbgfcorefmt.h, DBGFCOREDESCRIPTOR and DBGFCORECPU).
const (
	noteVBox    = "VBCORE"
	noteVBoxCPU = "VBCPU"

	vboxMagic = 0xc01ac0de
	// The versions with this DBGFCORECPU: VirtualBox 5 to 7. Earlier ones have what
	// the hypervisor's own structure happened to be.
	vboxFirst = 0x10005
	vboxLast  = 0x10006
)

// vboxOrder is which of vm.Registers.General DBGFCORECPU has at each of its
// first places; rip, rsp, rbp and rflags follow.
var vboxOrder = [14]int{0, 3, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// The places of the others.
const (
	vboxRIP      = 112
	vboxRSP      = 120
	vboxRBP      = 128
	vboxRFLAGS   = 136
	vboxSegs     = 144 // cs ds es fs gs ss: base, limit, attributes, selector at 16
	vboxSeg      = 24
	vboxCR0      = 288 // cr0 cr2 cr3 cr4
	vboxGDT      = 384
	vboxIDT      = 400
	vboxSysenter = 464 // cs eip esp
	vboxEFER     = 488
	vboxLSTAR    = 512 // lstar cstar
	vboxKernelGS = 536
	vboxEnd      = 544
)

// isVBox tells whether the notes are of VirtualBox, and what it is that they
// lack.
func isVBox(list []note) (is bool, regs []vm.Registers, how string) {
	version := uint32(0)
	le := binary.LittleEndian
	for _, n := range list {
		switch {
		case n.name == noteVBox && len(n.desc) >= 8 && le.Uint32(n.desc) == vboxMagic:
			is, version = true, le.Uint32(n.desc[4:])
		case n.name == noteVBoxCPU && version >= vboxFirst && version <= vboxLast && len(n.desc) >= vboxEnd && len(regs) < maxCPUs:
			regs = append(regs, vboxRegisters(n.desc))
		}
	}
	how = "program headers of VirtualBox's core"
	if is && len(regs) == 0 {
		how += fmt.Sprintf("; registers are not read of its version %#x", version)
	}
	return is, regs, how
}

func vboxRegisters(b []byte) vm.Registers {
	u := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	segment := func(i int) int { return vboxSegs + i*vboxSeg }
	r := vm.Registers{
		RIP: u(vboxRIP), RSP: u(vboxRSP), RFLAGS: u(vboxRFLAGS),
		CS: uint16(u(segment(0) + 16)), SS: uint16(u(segment(5) + 16)), GSBase: u(segment(4)), KernelGS: u(vboxKernelGS),
		CR0: u(vboxCR0), CR3: u(vboxCR0 + 16), CR4: u(vboxCR0 + 24),
		GDTBase: u(vboxGDT), IDTBase: u(vboxIDT), EFER: u(vboxEFER),
		LSTAR: u(vboxLSTAR), CSTAR: u(vboxLSTAR + 8), SysenterEIP: u(vboxSysenter + 8),
		Valid: true,
	}
	for i, g := range vboxOrder {
		r.General[g] = u(8 * i)
	}
	r.General[4], r.General[5] = r.RSP, u(vboxRBP)
	return r
}
