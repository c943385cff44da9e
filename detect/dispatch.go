package detect

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/arch/x86/x86asm"

	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// dispatchers are the functions by which newer kernels go to that of a system
// call: a switch, compiled to branches (arch/x86/entry/syscall_64.c).
var dispatchers = []string{"x64_sys_call", "ia32_sys_call", "x32_sys_call"}

// maxDispatcher bounds their code, bytes; it has some 8 KiB.
const maxDispatcher = 64 << 10

// ftraceReach is how far behind the start of a function ftrace's place can be,
// bytes: behind endbr64.
const ftraceReach = 4

// dispatch looks at where the branches of the dispatchers lead. That none leads
// out of the kernel needs nothing to compare with. Text judges what is at the
// place of ftrace.
func (Syscalls) dispatch(ctx context.Context, l *Look, report func(Finding)) error {
	return persists(ctx, l, report, func(report func(Finding)) error {
		code, broken := l.Code()
		for _, name := range dispatchers {
			s, err := l.Symbols.Lookup(name)
			if errors.Is(err, ksym.ErrNoSymbol) {
				continue
			}
			if err == nil {
				err = inspectDispatcher(l, code, s, func(f Finding) {
					if broken != nil {
						f.Confidence = Possible // it may be code of what could not be listed
					}
					report(f)
				})
			}
			if err != nil {
				return err
			}
		}
		return broken
	})
}

func inspectDispatcher(l *Look, code Code, s ksym.Symbol, report func(Finding)) error {
	b := make([]byte, min(s.Size, maxDispatcher))
	if _, err := l.Mem.Read(b, s.Addr); err != nil {
		return err
	}
	astray := func() (out []branch) {
		for _, j := range branches(b, s.Addr) {
			o, ok := code.Owner(j.to)
			traced := b[j.at] == opCall && j.at <= ftraceReach
			if ok && o.Kind != "module" && o.Kind != "init" || !ok && l.thunk(j.to) || traced {
				continue
			}
			out = append(out, j)
		}
		return out
	}
	found := astray()
	if len(found) == 0 {
		return nil
	}
	// A probe's breakpoint stands for the first byte of an instruction: without
	// that byte what follows reads as others.
	sites, err := l.PatchSites()
	if err != nil {
		return err
	}
	for _, site := range sites {
		if off := site.At - s.Addr; site.Kind == linux.Kprobe && off < mem.VA(len(b)) {
			copy(b[off:], site.Saved)
		}
	}
	for _, j := range astray() {
		at, where := s.Addr+mem.VA(j.at), fmt.Sprintf("%s+%#x", s.Name, j.at)
		f := Finding{Check: "syscalls", Severity: High, Confidence: Proved,
			Summary: fmt.Sprintf("the code that goes to the functions of system calls leads at %s to %#x, code of %s", where, uint64(j.to), code.OwnerName(j.to)),
			Evidence: []Evidence{
				{What: "branch", Addr: at, Symbol: where, Owner: "the kernel", Expected: "a branch to code of the kernel", Found: fmt.Sprintf("%x, which leads to %#x", b[j.at:j.at+j.size], uint64(j.to))},
				{What: leadsThere, Addr: j.to, Symbol: l.Name(j.to), Owner: code.OwnerName(j.to), Found: peek(l, j.to, 32)},
			}}
		f.identify("dispatch", where)
		report(f)
	}
	return nil
}

// branch is a direct branch in code: at an offset, of some bytes.
type branch struct {
	at, size int
	to       mem.VA
}

// branches are the direct branches of the code b at an address that lead out of
// it. It ends where there is no instruction: what follows is no code of it.
func branches(b []byte, at mem.VA) (out []branch) {
	for i := 0; i < len(b); {
		if begins(b[i:], branchMarks[:1]) {
			i += len(branchMarks[0])
			continue
		}
		inst, err := x86asm.Decode(b[i:], 64)
		if err != nil || inst.Len == 0 {
			return out
		}
		if rel, ok := inst.Args[0].(x86asm.Rel); ok {
			to := at + mem.VA(i+inst.Len) + mem.VA(int64(rel))
			if to-at >= mem.VA(len(b)) {
				out = append(out, branch{i, inst.Len, to})
			}
		}
		i += inst.Len
	}
	return out
}
