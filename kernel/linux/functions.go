package linux

import (
	"errors"
	"iter"
	"slices"
	"strings"

	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// Functions are the places at which the code of symbols begins.
type Functions struct {
	Entries []mem.VA // by address
	// Trampolines are those of static calls, of kind StaticCall: a jump that the
	// kernel rewrites.
	Trampolines []PatchSite
}

// Functions lists where the functions of the kernel's image begin, worked out
// once. The caller must not change it.
func (v *View) Functions() (*Functions, error) {
	return derived(v.Kernel, func(k *Kernel) (*Functions, error) { return functionsOf(k.Symbols.All()), nil })
}

// ModuleFunctions is Functions for a module. One that keeps no symbols has none.
func (v *View) ModuleFunctions(m kernel.Module) (*Functions, error) {
	list, err := v.ModuleSymbols(m)
	if list == nil {
		return new(Functions), err
	}
	return functionsOf(list.All()), err
}

func functionsOf(symbols iter.Seq[ksym.Symbol]) *Functions {
	f := new(Functions)
	// Of a static call, by its name (include/linux/static_call_types.h).
	trampolines, keys := make(map[string]mem.VA), make(map[string]mem.VA)
	for s := range symbols {
		if name, ok := strings.CutPrefix(s.Name, "__SCK__"); ok {
			keys[name] = s.Addr
		}
		switch s.Type {
		case 't', 'T', 'w', 'W':
		default:
			continue
		}
		if s.Absolute || strings.HasPrefix(s.Name, "__pfx_") {
			continue // the latter is the padding before a function
		}
		if name, ok := strings.CutPrefix(s.Name, "__SCT__"); ok {
			trampolines[name] = s.Addr
			continue
		}
		f.Entries = append(f.Entries, s.Addr)
	}
	slices.Sort(f.Entries)
	f.Entries = slices.Compact(f.Entries)
	for name, at := range trampolines {
		f.Trampolines = append(f.Trampolines, PatchSite{At: at, Key: keys[name], Kind: StaticCall})
	}
	slices.SortFunc(f.Trampolines, byPlace)
	return f
}

// FtraceCalls are the places in ftrace's own code, of kind FtraceCall, where it
// calls who listens. It rewrites them, and lists them nowhere
// (arch/x86/kernel/ftrace_64.S).
func (v *View) FtraceCalls() []PatchSite {
	var out []PatchSite
	for _, name := range []string{"ftrace_call", "ftrace_regs_call", "ftrace_graph_call"} {
		if at, err := v.Symbol(name); err == nil {
			out = append(out, PatchSite{At: at, Kind: FtraceCall})
		}
	}
	return out
}

// FtraceCallees are the functions that FtraceCalls lead to: nothing, all
// listeners in turn, or the one that there is.
func (v *View) FtraceCallees() ([]mem.VA, error) {
	var out []mem.VA
	for _, name := range []string{"ftrace_stub", "ftrace_stub_graph", "ftrace_graph_caller", "ftrace_ops_list_func", "arch_ftrace_ops_list_func", "ftrace_ops_no_ops"} {
		if at, err := v.Symbol(name); err == nil {
			out = append(out, at)
		}
	}
	at, err := v.Symbol("ftrace_trace_function") // kernel/trace/ftrace.c
	if errors.Is(err, ksym.ErrNoSymbol) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	one, err := v.Mem.Pointer(at)
	return append(out, one), err
}
