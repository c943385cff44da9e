package xenguest

import (
	"fmt"

	"vmscope/vm"
)

// ContextSize is that of struct vcpu_guest_context of a 64-bit domain, in bytes.
const ContextSize = 5168

// A PV guest sees neither PG nor EFER: of 64 bits it runs in long mode.
const (
	cr0Paging = 1<<31 | 1<<0
	efer64    = 1<<0 | 1<<8 | 1<<10 | 1<<11 // SCE, LME, LMA, NXE
	inKernel  = 1 << 2                      // VGCF_in_kernel
)

// order is which of vm.Registers.General struct cpu_user_regs has at each of its first places: r15 r14 r13 r12 rbp rbx r11
// r10 r9 r8 rax rcx rdx rsi rdi.
var order = [15]int{15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7}

// Registers reads struct vcpu_guest_context (arch-x86/xen.h). CR3 of a PV domain is its kernel's table, also while it runs in
// user mode, in frames of the machine. A PV domain has no LSTAR: SYSCALL leads into Xen, which calls the entry that the
// guest registered (syscall_callback_eip). Of other domains Xen does not tell EFER here.
func Registers(b []byte, pv bool) (vm.Registers, error) {
	if len(b) < ContextSize {
		return vm.Registers{}, fmt.Errorf("vCPU of %d bytes", len(b))
	}
	u := func(at int) uint64 { return le.Uint64(b[at:]) }
	const flags, regs, ctrl, syscall, gsKernel, gsUser = 512, 520, 4984, 5128, 5152, 5160
	r := vm.Registers{
		CR0: u(ctrl), CR3: u(ctrl + 3*8), CR4: u(ctrl + 4*8),
		RIP: u(regs + 128), CS: le.Uint16(b[regs+136:]), RFLAGS: u(regs + 144), RSP: u(regs + 152), SS: le.Uint16(b[regs+160:]),
		GSBase: u(gsUser), KernelGS: u(gsKernel), Valid: true,
	}
	for i, g := range order {
		r.General[g] = u(regs + 8*i)
	}
	r.General[4] = r.RSP
	kernel := r.CS&3 == 0
	if pv {
		r.CR0, r.EFER, r.LSTAR = r.CR0|cr0Paging, efer64, u(syscall)
		kernel = u(flags)&inKernel != 0
	}
	if kernel {
		r.GSBase, r.KernelGS = r.KernelGS, r.GSBase
	}
	return r, nil
}

// UserTable is CR3 as a PV domain's vCPU has it in user mode, in frames of the machine; 0: none.
func UserTable(context []byte) uint64 {
	if len(context) < ContextSize {
		return 0
	}
	return le.Uint64(context[4984+8:])
}
