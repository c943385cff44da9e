package linux

import (
	"slices"
	"strings"

	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// Functions are the places, by address, at which the code of symbols begins.
type Functions struct {
	Entries     []mem.VA
	Trampolines []mem.VA // of static calls (__SCT__…): a jump that the kernel rewrites
}

// Functions lists where the functions of the kernel's image begin, worked out
// once. The caller must not change it.
func (v *View) Functions() (*Functions, error) {
	return derived(v.Kernel, func(k *Kernel) (*Functions, error) {
		f := new(Functions)
		for s := range k.Symbols.All() {
			f.add(s)
		}
		return f.sort(), nil
	})
}

// ModuleFunctions is Functions for a module. One that keeps no symbols has none.
func (v *View) ModuleFunctions(m kernel.Module) (*Functions, error) {
	f := new(Functions)
	list, err := v.ModuleSymbols(m)
	if list != nil {
		for s := range list.All() {
			f.add(s)
		}
	}
	return f.sort(), err
}

func (f *Functions) add(s ksym.Symbol) {
	switch s.Type {
	case 't', 'T', 'w', 'W':
	default:
		return
	}
	if s.Absolute || strings.HasPrefix(s.Name, "__pfx_") {
		return // the latter is the padding before a function
	}
	if strings.HasPrefix(s.Name, "__SCT__") {
		f.Trampolines = append(f.Trampolines, s.Addr)
		return
	}
	f.Entries = append(f.Entries, s.Addr)
}

func (f *Functions) sort() *Functions {
	slices.Sort(f.Entries)
	slices.Sort(f.Trampolines)
	f.Entries, f.Trampolines = slices.Compact(f.Entries), slices.Compact(f.Trampolines)
	return f
}
