package linux

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// codeLayout is what is read to know whose code is where.
type codeLayout struct {
	OpsList        ctype.Field `c:"ftrace_ops.list,optional"` // include/linux/ftrace.h
	Trampoline     ctype.Field `c:"ftrace_ops.trampoline,optional"`
	TrampolineSize ctype.Field `c:"ftrace_ops.trampoline_size,optional"`

	Slots    ctype.Field `c:"kprobe_insn_cache.pages,optional"` // include/linux/kprobes.h
	SlotList ctype.Field `c:"kprobe_insn_page.list,optional"`   // kernel/kprobes.c
	SlotPage ctype.Field `c:"kprobe_insn_page.insns,optional"`

	// Before module_memory; see moduleLayout.
	Core     ctype.Field `c:"module.core_layout,optional"`
	CoreInit ctype.Field `c:"module.init_layout,optional"`
	Base     ctype.Field `c:"module_layout.base,optional"`
	TextSize ctype.Field `c:"module_layout.text_size,optional"`
}

// maxCode bounds each list of code; maxCodeSize one run of it, above any
// kernel's whole text. A trampoline of ftrace takes less than a page.
const (
	maxCode       = 1 << 18
	maxCodeSize   = 1 << 30
	maxTrampoline = 4 * mem.PageSize
)

// lowMemory is where real-mode code lies: below, bytes.
const lowMemory = 1 << 20

// Code lists the memory whose code the kernel accounts for, by address: its own
// text, that of modules, BPF programs and trampolines, ftrace trampolines, the
// slots of kprobes, and the real-mode code that starts other CPUs. A kernel
// that lacks one of these has none of its kind.
//
// All of it is what the guest says: that memory is listed does not make its
// code good.
func (v *View) Code() ([]kernel.Code, error) {
	l, err := layout64[codeLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var all []kernel.Code
	var errs []error
	for _, list := range []func(*codeLayout) ([]kernel.Code, error){v.imageCode, v.moduleCode, v.bpfCode, v.ftraceCode, v.kprobeCode, v.realModeCode} {
		some, err := list(l)
		all, errs = append(all, some...), append(errs, err)
	}
	slices.SortStableFunc(all, func(a, b kernel.Code) int { return cmp.Compare(a.Start, b.Start) })
	return all, errors.Join(errs...)
}

func code(kind string, name kernel.Text, start, end mem.VA) kernel.Code {
	return kernel.Code{Region: kernel.Region{Name: name, Start: start, Size: uint64(end - start)}, Kind: kind}
}

// imageCode is the text of the kernel's image. Init text is freed at the end of
// the boot; what is mapped there afterwards is not it.
func (v *View) imageCode(*codeLayout) ([]kernel.Code, error) {
	var out []kernel.Code
	for _, part := range []struct{ kind, start, end string }{{"kernel", "_text", "_etext"}, {"init", "_sinittext", "_einittext"}} {
		start, err := v.Symbol(part.start)
		if errors.Is(err, ksym.ErrNoSymbol) && part.start == "_text" {
			start, err = v.Symbol("_stext")
		}
		if err != nil {
			return out, err
		}
		end, err := v.Symbol(part.end)
		if err != nil {
			return out, err
		}
		if end < start || end-start > maxCodeSize {
			return out, errBroken(part.start, start, fmt.Sprintf("%s is at %#x", part.end, uint64(end)))
		}
		out = append(out, code(part.kind, kernel.Text(part.kind), start, end))
	}
	return out, nil
}

func (v *View) moduleCode(l *codeLayout) ([]kernel.Code, error) {
	modules, err := v.Modules()
	var out []kernel.Code
	errs := []error{err}
	for _, m := range modules {
		parts := m.Parts
		if l.TextSize.Valid() {
			if parts, err = v.textOfLayouts(l, m.Addr); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, p := range parts {
			if (p.Name == "text" || p.Name == "init_text") && p.Size <= maxCodeSize {
				out = append(out, code("module", m.Name, p.Start, p.Start+mem.VA(p.Size)))
			}
		}
	}
	return out, errors.Join(errs...)
}

// textOfLayouts is where a module's text is by its two module_layouts. What
// they count is rounded up to pages, as their permissions are.
func (v *View) textOfLayouts(l *codeLayout, module mem.VA) ([]kernel.Region, error) {
	var out []kernel.Region
	for _, part := range []struct {
		name kernel.Text
		at   ctype.Field
	}{{"text", l.Core}, {"init_text", l.CoreInit}} {
		base, err := v.Mem.Pointer(part.at.At(module) + mem.VA(l.Base.Offset))
		if err != nil {
			return out, err
		}
		size, err := v.Mem.Uint(part.at.At(module)+mem.VA(l.TextSize.Offset), int(l.TextSize.Size()))
		if err != nil {
			return out, err
		}
		if base != 0 && size != 0 {
			out = append(out, kernel.Region{Name: part.name, Start: base, Size: size})
		}
	}
	return out, nil
}

// gather walks the list at a symbol and keeps what each makes of its nodes. A
// kernel without the symbol or without what fields describe has none.
func (v *View) gather(symbol string, behind, link ctype.Field, each func(object mem.VA) (kernel.Code, error)) ([]kernel.Code, error) {
	head, err := v.Symbol(symbol)
	if errors.Is(err, ksym.ErrNoSymbol) || err == nil && !link.Valid() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if behind.Valid() {
		head = behind.At(head)
	}
	var out []kernel.Code
	err = v.settle(func() error {
		out = out[:0]
		return v.List(head, func(node mem.VA) error {
			if len(out) >= maxCode {
				return errBroken(symbol, node, fmt.Sprintf("more than %d", maxCode))
			}
			c, err := each(node - mem.VA(link.Offset))
			switch {
			case err != nil:
				return err
			case c.Size > maxCodeSize:
				return errBroken(symbol, node, fmt.Sprintf("%q has %d bytes of code", c.Name, c.Size))
			}
			out = append(out, c)
			return nil
		})
	})
	return out, err
}

// bpfCode lists what the JIT made: programs with their headers, trampolines,
// dispatchers, struct_ops.
func (v *View) bpfCode(*codeLayout) ([]kernel.Code, error) {
	syms, err := v.BPFSymbols()
	if len(syms) == 0 {
		return nil, err // struct_ops need programs
	}
	l, lerr := layout64[classicLayout](v.Kernel)
	if lerr != nil {
		return nil, lerr
	}
	out := make([]kernel.Code, 0, len(syms))
	for _, s := range syms {
		if s.Prog {
			s.Start = l.header(s.Start)
		}
		c := code("bpf", s.Name, s.Start, s.End)
		if c.Size > maxCodeSize {
			return out, errBroken("bpf_kallsyms", s.Addr, fmt.Sprintf("%q has %d bytes of code", s.Name, c.Size))
		}
		out = append(out, c)
	}
	ops, oerr := v.structOpsCode()
	return append(out, ops...), errors.Join(err, oerr)
}

// ftraceCode lists the trampolines that ftrace made for one ftrace_ops each.
func (v *View) ftraceCode(l *codeLayout) ([]kernel.Code, error) {
	return v.gather("ftrace_ops_trampoline_list", ctype.Field{}, l.OpsList, func(ops mem.VA) (kernel.Code, error) {
		start, err := v.Mem.Pointer(l.Trampoline.At(ops))
		if err != nil {
			return kernel.Code{}, err
		}
		size, err := v.Mem.Uint64(l.TrampolineSize.At(ops))
		if size > maxTrampoline {
			return kernel.Code{}, errBroken("ftrace_ops", ops, fmt.Sprintf("a trampoline of %d bytes", size))
		}
		return code("ftrace", "ftrace_trampoline", start, start+mem.VA(size)), err
	})
}

// kprobeCode lists the pages of slots into which kprobes copy instructions, and
// those of optimized probes.
func (v *View) kprobeCode(l *codeLayout) ([]kernel.Code, error) {
	var out []kernel.Code
	var errs []error
	for _, cache := range []string{"kprobe_insn_slots", "kprobe_optinsn_slots"} {
		some, err := v.gather(cache, l.Slots, l.SlotList, func(page mem.VA) (kernel.Code, error) {
			insns, err := v.Mem.Pointer(l.SlotPage.At(page))
			return code("kprobe", kernel.Text(cache), insns, insns+mem.PageSize), err
		})
		out, errs = append(out, some...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// realModeCode is the copy of real-mode code in low memory by which other CPUs
// start and the machine wakes up (arch/x86/realmode/init.c).
func (v *View) realModeCode(*codeLayout) ([]kernel.Code, error) {
	header, err := v.Symbol("real_mode_header")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	start, err := v.Symbol("real_mode_blob")
	if err != nil {
		return nil, err
	}
	end, err := v.Symbol("real_mode_blob_end")
	if err != nil {
		return nil, err
	}
	at, err := v.Mem.Pointer(header)
	if err != nil || at == 0 {
		return nil, err
	}
	if end < start || end-start > lowMemory {
		return nil, errBroken("real_mode_blob", start, fmt.Sprintf("it ends at %#x", uint64(end)))
	}
	if m, err := v.Mem.Translate(at); err != nil {
		return nil, err
	} else if uint64(m.PA) >= lowMemory {
		return nil, errBroken("real_mode_header", header, fmt.Sprintf("real-mode code at physical address %#x", uint64(m.PA)))
	}
	return []kernel.Code{code("realmode", "real_mode_blob", at, at+(end-start))}, nil
}
