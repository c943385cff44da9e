package detect

import (
	"slices"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// ftraceEntries are what ftrace's places may call in the kernel itself
// (arch/x86/kernel/ftrace_64.S); __fentry__ is what compilers leave there.
var ftraceEntries = []string{"ftrace_caller", "ftrace_regs_caller", "ftrace_graph_caller", "__fentry__"}

// callees knows where the places may lead that a kernel rewrites, by what the
// kernel itself wants there at the moment. It is filled as it is asked.
type callees struct {
	*Look
	code    Code
	modules map[kernel.Text]kernel.Module

	entries []mem.VA          // of ftrace in the kernel itself; nil: not read yet
	direct  map[mem.VA]mem.VA // what ftrace's places call without it, by place
	known   bool              // whether direct is
	called  []mem.VA          // what ftrace itself calls
	returns []mem.VA          // return thunks: what a call of nothing may jump to
	nothing []mem.VA          // functions whose calls are made code that calls nothing

	ofModules map[kernel.Text]*ksym.List // symbols; nil: it keeps none
}

// forget has all be read again that may change.
func (c *callees) forget() {
	c.direct, c.known, c.called = nil, false, nil
	if cache, ok := c.Phys.(*mem.Cache); ok {
		cache.Forget()
	}
}

// may reports whether what stands at a place may lead to an address; 0: whether
// nothing may be called there.
func (c *callees) may(site linux.PatchSite, to mem.VA) bool {
	o, ok := c.code.Owner(to)
	switch site.Kind {
	case linux.JumpLabel:
		return to == site.Target
	case linux.Kprobe:
		return o.Kind == "kprobe"
	case linux.FtraceSite:
		if c.entries == nil {
			c.entries = c.named(ftraceEntries...)
		}
		return slices.Contains(c.entries, to) || o.Kind == "ftrace" && to == o.Start || c.directly(site.At, to, o.Kind)
	case linux.FtraceCall:
		if c.called == nil {
			c.called, _ = c.FtraceCallees() // what could be read
		}
		return to == 0 || ok && o.Kind != "init" && slices.Contains(c.called, to)
	case linux.StaticCall:
		return (to == 0 || ok && o.Kind != "init") && c.statically(site.Key, to)
	}
	return false
}

// might reports whether what stands at a place may have led to an address, or
// will, as far as that does not depend on what is wanted there now.
func (c *callees) might(site linux.PatchSite, to mem.VA) bool {
	o, ok := c.code.Owner(to)
	switch site.Kind {
	case linux.FtraceCall, linux.StaticCall:
		return to == 0 || ok && o.Kind != "init"
	case linux.FtraceSite:
		return ok && o.Kind != "init"
	}
	return false
}

func (c *callees) named(names ...string) []mem.VA {
	out := []mem.VA{}
	for _, name := range names {
		for _, s := range c.Symbols.LookupAll(name) {
			out = append(out, s.Addr)
		}
	}
	return out
}

// directly reports whether a place may call a function past ftrace: of whose
// kind of code that is matters only if the kernel does not tell which these are.
func (c *callees) directly(at, to mem.VA, kind string) bool {
	if !c.known {
		c.direct, _ = c.DirectCalls()
		c.known = true
	}
	if kind != "bpf" && kind != "module" && kind != "kernel" {
		return false
	}
	if c.direct == nil {
		return kind != "kernel"
	}
	return c.direct[at] == to
}

// thunkSize bounds the code before a function through which it may be called: it
// counts the depth of calls (arch/x86/kernel/callthunks.c).
const thunkSize = 64

// statically reports whether the static call of a key may lead to code at an
// address: to its function, its trampoline or, if there is nothing to call, to a
// return, or nowhere.
func (c *callees) statically(key, to mem.VA) bool {
	if key == 0 {
		return true // which it is is not known
	}
	is, err := c.StaticCallee(key)
	if err != nil {
		return true
	}
	switch {
	case to == 0 && is != 0:
		if c.nothing == nil { // arch/x86/kernel/static_call.c: __static_call_transform
			c.nothing = c.named("__static_call_return0", "__WARN_trap")
		}
		return slices.Contains(c.nothing, is)
	case to == 0:
		return true
	case is == 0:
		if c.returns == nil {
			c.returns = c.named("__x86_return_thunk", "retbleed_return_thunk", "srso_return_thunk", "srso_alias_return_thunk",
				"call_depth_return_thunk", "its_return_thunk", "__static_call_return")
		}
		return slices.Contains(c.returns, to)
	}
	if to == is || to < is && is-to <= thunkSize {
		return !c.amid(is)
	}
	f, err := c.Functions()
	return err != nil || slices.ContainsFunc(f.Trampolines, func(t linux.PatchSite) bool { return t.Key == key && t.At == to })
}

// amid reports whether an address lies within a function of a module, behind its
// beginning. Modules may lack the symbols of some functions.
func (c *callees) amid(at mem.VA) bool {
	o, _ := c.code.Owner(at)
	if o.Kind != "module" {
		return false
	}
	list, ok := c.ofModules[o.Name]
	if !ok {
		list, _ = c.ModuleSymbols(c.modules[o.Name])
		if c.ofModules == nil {
			c.ofModules = make(map[kernel.Text]*ksym.List)
		}
		c.ofModules[o.Name] = list
	}
	if list == nil {
		return false
	}
	_, off, err := list.Nearest(at)
	return err == nil && off > 0
}
