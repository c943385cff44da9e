package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// readOnlyLayout is what is read of where modules keep data that is read-only;
// see moduleLayout.
type readOnlyLayout struct {
	Core     ctype.Field `c:"module.core_layout,optional"`
	Base     ctype.Field `c:"module_layout.base,optional"`
	TextSize ctype.Field `c:"module_layout.text_size,optional"`
	ROSize   ctype.Field `c:"module_layout.ro_after_init_size,optional"`
}

// ReadOnlyData lists the memory that the kernel makes read-only once it, or the
// module whose it is, has started: constants, and what is written only until
// then (__ro_after_init). That of modules that are just loaded is still being
// written.
func (v *View) ReadOnlyData() ([]kernel.Code, error) {
	l, err := layout64[readOnlyLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var out []kernel.Code
	var errs []error
	add := func(kind string, name kernel.Text, start, end mem.VA) {
		switch {
		case end < start || end-start > maxCodeSize:
			errs = append(errs, errBroken("read-only data of "+name.String(), start, fmt.Sprintf("it ends at %#x", uint64(end))))
		case end > start:
			out = append(out, code(kind, name, start, end))
		}
	}
	start, err := v.Symbol("__start_rodata")
	if err == nil {
		var end mem.VA
		if end, err = v.Symbol("__end_rodata"); err == nil {
			add("kernel", "kernel", start, end)
		}
	}
	errs = append(errs, err)
	// In pages of its own, read-only since it is set up (idt_setup_traps).
	if idt, err := v.Symbol("idt_table"); err == nil {
		add("kernel", "kernel", idt, idt+mem.PageSize)
	} else if !errors.Is(err, ksym.ErrNoSymbol) {
		errs = append(errs, err)
	}
	modules, err := v.Modules()
	errs = append(errs, err)
	for _, m := range modules {
		if m.State == "Unformed" {
			continue
		}
		for _, p := range m.Parts {
			if p.Name == "rodata" || p.Name == "ro_after_init" {
				add("module", m.Name, p.Start, p.Start+mem.VA(p.Size))
			}
		}
		if !l.Core.Valid() || !l.TextSize.Valid() || !l.ROSize.Valid() {
			continue
		}
		core := l.Core.At(m.Addr)
		text, err := v.Mem.Uint32(core + mem.VA(l.TextSize.Offset))
		if err == nil {
			var ro uint32
			if ro, err = v.Mem.Uint32(core + mem.VA(l.ROSize.Offset)); err == nil {
				add("module", m.Name, m.Base+mem.VA(text), m.Base+mem.VA(ro))
			}
		}
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}
