package detect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// Syscalls finds system calls that lead elsewhere than to their functions in
// the kernel's text. It reads the tables: what they hold must be the start of a
// function that is one of a system call, by its name.
//
// On x86 since v6.9 (and stable kernels since 5.15.154 and 6.1.84; commit
// 1e3ad78334a6 "x86/syscall: Don't force use of indirect calls for system
// calls") the CPU does not go through sys_call_table but through the code of
// x64_sys_call: a table that was changed there shows that somebody tried. That
// code is looked at as well.
type Syscalls struct{}

// Name implements Detector.
func (Syscalls) Name() string { return "syscalls" }

// maxSyscalls bounds a table; Linux has some 470 system calls.
const maxSyscalls = 2048

// Inspect implements Detector.
func (d Syscalls) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return errors.Join(d.entries(ctx, l, report), d.dispatch(ctx, l, report), inspectTables(l, report))
}

func inspectTables(l *Look, report func(Finding)) error {
	code, broken := l.Code()
	if len(code) == 0 {
		return broken
	}
	found := false
	for _, table := range []string{"sys_call_table", "ia32_sys_call_table", "x32_sys_call_table"} {
		sym, err := l.LookupSymbol(table)
		if errors.Is(err, ksym.ErrNoSymbol) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
		if err := inspectTable(l, code, table, sym.Addr, sym.Size, report); err != nil {
			return err
		}
	}
	if !found {
		return errors.New("no system call table is known by name")
	}
	return broken
}

func inspectTable(l *Look, code Code, table string, at mem.VA, size uint64, report func(Finding)) error {
	n := min(size/8, maxSyscalls)
	names := map[uint64]string{}
	if table == "sys_call_table" {
		var err error
		if names, err = syscallNames(l); err != nil {
			return err
		}
	}
	_, switched := l.Symbol("x64_sys_call")
	slots := make([]byte, 8*n)
	if _, err := l.Mem.Read(slots, at); err != nil {
		return err
	}
	for n > 1 && pointerAt(slots, int(8*n-8)) == 0 {
		n-- // padding up to the next symbol
	}
	for i := range mem.VA(n) {
		slot := at + 8*i
		target := pointerAt(slots, int(8*i))
		o, ok := code.Owner(target)
		name := l.Name(target)
		want := names[uint64(i)]
		if ok && o.Kind == "kernel" && isSyscall(l.Symbols.At(target), want) {
			continue
		}
		expected, bytes := "the function of a system call in the kernel's text", (*difference)(nil)
		if want != "" {
			expected = "the function of " + want
			if f, err := l.Symbol("__x64_" + want); err == nil {
				expected += fmt.Sprintf(", %#x", uint64(f))
				bytes = differ(slot, binary.LittleEndian.AppendUint64(nil, uint64(f)), slots[8*i:8*i+8])
			}
		}
		f := Finding{Check: "syscalls", Severity: High, Confidence: Proved,
			Summary: fmt.Sprintf("system call %d leads to %#x (%s), code of %s", i, uint64(target), name, code.OwnerName(target)),
			Evidence: []Evidence{
				{What: fmt.Sprintf("%s[%d]", table, i), Addr: slot, Symbol: fmt.Sprintf("%s+%#x", table, 8*i), Owner: "the kernel", Expected: expected, Found: fmt.Sprintf("%#x", uint64(target)), differ: bytes},
				{What: leadsThere, Addr: target, Symbol: name, Owner: code.OwnerName(target), Found: peek(l, target, 32)},
			}}
		if switched == nil && table == "sys_call_table" {
			f.Confidence = Likely
			f.Evidence[0].What += ", which this kernel does not dispatch by (it uses x64_sys_call)"
		}
		f.identify(table, fmt.Sprint(i))
		report(f)
	}
	return nil
}

// isSyscall reports whether one of a function's names is that of the system
// call want, or of any if want is "", as SYSCALL_DEFINE and COND_SYSCALL make
// them (arch/x86/include/asm/syscall_wrapper.h).
func isSyscall(names iter.Seq[string], want string) bool {
	for name := range names {
		name = strings.TrimPrefix(name, "__")
		for _, abi := range []string{"x64_", "ia32_", "x32_", ""} {
			rest, _ := strings.CutPrefix(name, abi)
			rest = strings.TrimPrefix(rest, "compat_")
			if strings.HasPrefix(rest, "sys_") && (want == "" || rest == want) {
				return true
			}
		}
	}
	return false
}

type syscallLayout struct {
	Name ctype.Field `c:"syscall_metadata.name"` // include/trace/syscall.h
}

// syscallNames are the names of system calls by number, "sys_newuname", as
// tracing knows them; empty on a kernel that does not trace them
// (CONFIG_FTRACE_SYSCALLS). Tracing learns them from the table while the kernel
// boots: what has a name is in this kernel, and not sys_ni_syscall.
func syscallNames(l *Look) (map[uint64]string, error) {
	names := make(map[uint64]string)
	at, err := l.Symbol("syscalls_metadata") // kernel/trace/trace_syscalls.c
	if errors.Is(err, ksym.ErrNoSymbol) {
		return names, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := bind[syscallLayout](l)
	if err != nil {
		return names, nil // neither is the type there, then
	}
	array, err := l.Mem.Pointer(at)
	if err != nil || array == 0 {
		return names, err
	}
	last, err := l.LookupSymbol("sys_call_table")
	if err != nil {
		return nil, err
	}
	for i := range min(last.Size/8, maxSyscalls) {
		meta, err := l.Mem.Pointer(array + mem.VA(8*i))
		if errors.Is(err, mem.ErrNotMapped) {
			break // it has fewer than the table has room
		}
		if err != nil {
			return nil, err
		}
		if meta == 0 {
			continue
		}
		text, err := l.Mem.Pointer(f.Name.At(meta))
		if err != nil {
			continue // behind the end of the array
		}
		b, err := l.Mem.CString(text, 64)
		if err == nil && strings.HasPrefix(string(b), "sys_") {
			names[i] = string(b)
		}
	}
	return names, nil
}
