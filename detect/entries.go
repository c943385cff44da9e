package detect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/ksym"
	"vmscope/mem"
	"vmscope/vm"
)

// Of the registers: whether SYSCALL is enabled (EFER.SCE, Intel SDM volume 3,
// section 2.2.1), and whether the CPU enters the kernel by FRED, which leaves
// the entries below alone (CR4.FRED; Linux leaves them unset then).
const (
	eferSyscall = 1 << 0
	cr4FRED     = 1 << 32
)

// entry is a register that says where an instruction of programs enters the
// kernel, and the kernel's functions that it may lead to
// (arch/x86/kernel/cpu/common.c: syscall_init; arch/x86/entry/entry_64.S and
// entry_64_compat.S; arch/x86/xen/xen-asm.S).
type entry struct {
	register, instruction string
	of                    func(vm.Registers) uint64
	names                 []string
}

var entries = []entry{
	{"MSR_LSTAR", "the SYSCALL instruction", func(r vm.Registers) uint64 { return r.LSTAR }, []string{"entry_SYSCALL_64", trampoline, "xen_entry_SYSCALL_64", "xen_syscall_target"}},
	{"MSR_CSTAR", "the SYSCALL instruction of 32-bit programs", func(r vm.Registers) uint64 { return r.CSTAR }, []string{"entry_SYSCALL_compat", "entry_SYSCALL32_ignore", "ignore_sysret"}},
	{"MSR_IA32_SYSENTER_EIP", "the SYSENTER instruction", func(r vm.Registers) uint64 { return r.SysenterEIP }, []string{"entry_SYSENTER_compat"}},
}

// trampoline is the entry of kernels from v4.16 to v4.20, which is mapped once
// more for each CPU.
const trampoline = "entry_SYSCALL_64_trampoline"

// mayLead lists where a register may lead, the usual place first.
func (e entry) mayLead(l *Look) []ksym.Symbol {
	var out []ksym.Symbol
	for _, name := range e.names {
		if s, err := ksym.Only(name, l.Named(name)); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// is reports whether an address is that of one of the places. A processor of
// AMD's keeps the low 32 bits of where SYSENTER leads, which it does not know in
// long mode.
func (e entry) is(l *Look, to mem.VA, places []ksym.Symbol) bool {
	return slices.ContainsFunc(places, func(s ksym.Symbol) bool {
		if s.Name == trampoline {
			is, err := l.Mem.Translate(to)
			want, werr := l.Mem.Translate(s.Addr)
			return err == nil && werr == nil && is.PA == want.PA
		}
		return to == s.Addr || strings.Contains(e.register, "SYSENTER") && to == mem.VA(uint32(s.Addr))
	})
}

// entries looks at where programs enter the kernel on each vCPU, where the source
// of the memory tells it; that it does not is told.
func (Syscalls) entries(ctx context.Context, l *Look, report func(Finding)) error {
	cpus, err := l.Registers(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if !slices.ContainsFunc(cpus, func(r vm.Registers) bool { return r.LSTAR != 0 }) {
		*l.lacks = append(*l.lacks, "MSR_LSTAR")
	}
	for _, e := range entries {
		if places := e.mayLead(l); len(places) > 0 {
			for i, r := range cpus {
				e.inspect(l, i, r, places, report)
			}
		}
	}
	return nil
}

func (e entry) inspect(l *Look, cpu int, r vm.Registers, places []ksym.Symbol, report func(Finding)) {
	to := mem.VA(e.of(r))
	// A vCPU that this kernel has not started may hold what an earlier one left.
	if to == 0 || e.is(l, to, places) || r.Valid && (r.EFER&eferSyscall == 0 || r.CR4&cr4FRED != 0 || !l.RunsOn(r)) {
		return
	}
	code, _ := l.Code() // for evidence
	name, register := l.Name(to), fmt.Sprintf("%s of vCPU %d", e.register, cpu)
	f := Finding{Check: "syscalls", Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("%s leads on vCPU %d to %#x (%s), code of %s, not to the kernel's entry", e.instruction, cpu, uint64(to), name, code.OwnerName(to)),
		Evidence: []Evidence{
			{What: register, Owner: "the CPU", Expected: fmt.Sprintf("%s, %#x", places[0].Name, uint64(places[0].Addr)), Found: fmt.Sprintf("%#x", uint64(to))},
			{What: leadsThere, Addr: to, Symbol: name, Owner: code.OwnerName(to), Found: peek(l, to, 32)},
		}}
	f.identify(register)
	report(f)
}
