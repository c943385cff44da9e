package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// modbtfLayout is what is read of struct btf_module and struct btf
// (kernel/bpf/btf.c). Kernels before v5.11 have no types of modules.
type modbtfLayout struct {
	List   ctype.Field `c:"btf_module.list"`
	Module ctype.Field `c:"btf_module.module"`
	BTF    ctype.Field `c:"btf_module.btf"`
	Data   ctype.Field `c:"btf.data"`
	Size   ctype.Field `c:"btf.data_size"`
	Name   ctype.Field `c:"module.name"`
}

// ModuleTypes reads the types that a module adds to the kernel's. It fails with
// ErrNoModule if no such module with types is loaded, and with ErrUnsupported on
// a kernel that has none for modules.
func (v *View) ModuleTypes(name string) (*ctype.Types, error) {
	l, err := layout[modbtfLayout](v.Kernel)
	if errors.Is(err, ctype.ErrNoType) {
		return nil, fmt.Errorf("types of module %q: this kernel keeps none of modules: %w", name, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	// A module's types continue the kernel's own, by their numbers.
	base := v.Types
	if v.foreign {
		if base, err = v.btf(v); err != nil {
			return nil, fmt.Errorf("types of module %q: they continue those in the kernel's memory: %w", name, err)
		}
	}
	head, err := v.Symbol("btf_modules")
	if err != nil {
		return nil, fmt.Errorf("types of module %q: %w: %w", name, err, errors.ErrUnsupported)
	}
	var types *ctype.Types
	err = v.settle(func() error {
		types = nil
		btf, err := v.findModuleBTF(l, head, name)
		if err != nil {
			return err
		}
		if btf == 0 {
			return fmt.Errorf("%w %q with types", ErrNoModule, name)
		}
		data, err := v.Mem.Pointer(l.Data.At(btf))
		if err != nil {
			return err
		}
		size, err := v.Mem.Uint(l.Size.At(btf), int(l.Size.Size()))
		if err != nil {
			return err
		}
		if size > maxBTF {
			return errBroken("types of a module", btf, fmt.Sprintf("%d bytes", size))
		}
		blob, err := v.readBlock(data, size)
		if err != nil {
			return fmt.Errorf("types of module %q: %w", name, err)
		}
		// Of a module that was built apart from its kernel the kernel has already
		// made the types fit its own.
		if types, err = ctype.ParseSplit(blob, base); err != nil {
			return fmt.Errorf("types of module %q: %w", name, err)
		}
		return nil
	})
	return types, err
}

// findModuleBTF finds the struct btf of a module, 0 if it has none.
func (v *View) findModuleBTF(l *modbtfLayout, head mem.VA, name string) (btf mem.VA, err error) {
	n := 0
	err = v.List(head, func(node mem.VA) error {
		if n++; n > maxModules {
			return errBroken("btf_modules", head, fmt.Sprintf("more than %d", maxModules))
		}
		at := node - mem.VA(l.List.Offset)
		mod, err := v.Mem.Pointer(l.Module.At(at))
		if err != nil {
			return err
		}
		s, err := v.Mem.CString(l.Name.At(mod), int(min(l.Name.Size(), maxObject)))
		if err != nil {
			return err
		}
		if string(s) != name {
			return nil
		}
		btf, err = v.Mem.Pointer(l.BTF.At(at))
		return err
	})
	return btf, err
}
