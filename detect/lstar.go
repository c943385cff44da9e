package detect

import (
	"context"
	"errors"
	"fmt"

	"vmscope/ksym"
	"vmscope/mem"
)

// Of the registers: whether SYSCALL is enabled (EFER.SCE, Intel SDM volume 3,
// section 2.2.1), and whether the CPU enters the kernel by FRED, which leaves
// LSTAR alone (CR4.FRED; Linux leaves it unset then).
const (
	eferSyscall = 1 << 0
	cr4FRED     = 1 << 32
)

// entry looks at where the SYSCALL instruction leads on each vCPU, where the
// source of the memory tells it. That is the kernel's one entry for system calls
// of 64 bits (arch/x86/kernel/cpu/common.c: syscall_init).
func (Syscalls) entry(ctx context.Context, l *Look, report func(Finding)) error {
	cpus, err := l.Registers(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	entry, err := l.Symbol("entry_SYSCALL_64")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil
	}
	if err != nil {
		return err
	}
	code, _ := l.Code() // for evidence
	for i, r := range cpus {
		to := mem.VA(r.LSTAR)
		// A vCPU that this kernel has not started may hold what an earlier one left.
		if to == 0 || to == entry || r.Valid && (r.EFER&eferSyscall == 0 || r.CR4&cr4FRED != 0 || !l.RunsOn(r)) {
			continue
		}
		name, msr := l.Name(to), fmt.Sprintf("MSR_LSTAR of vCPU %d", i)
		f := Finding{Check: "syscalls", Severity: High, Confidence: Proved,
			Summary: fmt.Sprintf("the SYSCALL instruction leads on vCPU %d to %#x (%s), code of %s, not to the kernel's entry", i, uint64(to), name, code.OwnerName(to)),
			Evidence: []Evidence{
				{What: msr, Owner: "the CPU", Expected: fmt.Sprintf("entry_SYSCALL_64, %#x", uint64(entry)), Found: fmt.Sprintf("%#x", uint64(to))},
				{What: leadsThere, Addr: to, Symbol: name, Owner: code.OwnerName(to), Found: peek(l, to, 32)},
			}}
		f.identify(msr)
		report(f)
	}
	return nil
}
