package linux

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// modsymLayout is what is read of a module's own symbol table (struct
// mod_kallsyms, kernel/module/internal.h, before v5.19 include/linux/module.h).
type modsymLayout struct {
	Kallsyms ctype.Field `c:"module.kallsyms"`
	Symtab   ctype.Field `c:"mod_kallsyms.symtab"`
	Count    ctype.Field `c:"mod_kallsyms.num_symtab"`
	Strtab   ctype.Field `c:"mod_kallsyms.strtab"`
	Typetab  ctype.Field `c:"mod_kallsyms.typetab,optional"` // since v5.2
}

const (
	symSize    = 24       // of an ELF64 symbol
	symSize32  = 16       // of an ELF32 symbol
	maxModSyms = 1 << 18  // the largest modules have some 60,000
	maxStrtab  = 64 << 20 // bytes; the largest have some 3 MiB
)

// ModuleSymbols reads the symbols of a module: those of /proc/kallsyms that
// bear its name.
func (v *View) ModuleSymbols(m kernel.Module) (*ksym.List, error) {
	l, err := layout[modsymLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	n, err := span(l.Symtab, l.Count, l.Strtab, l.Typetab)
	if err != nil {
		return nil, err
	}
	o := object{b: make([]byte, n)}
	var list *ksym.List
	err = v.settle(func() error {
		at, err := v.Mem.Pointer(l.Kallsyms.At(m.Addr))
		if err != nil {
			return err
		}
		if at == 0 {
			return fmt.Errorf("symbols of module %q: it has none: %w", string(m.Name), errors.ErrUnsupported)
		}
		if err := o.read(v, at); err != nil {
			return err
		}
		list, err = v.readSymtab(string(m.Name), o.ptr(l.Symtab), o.uint(l.Count), o.ptr(l.Strtab), o.ptr(l.Typetab))
		return err
	})
	return list, err
}

// readSymtab reads an ELF symbol table of n symbols. How long the names are is
// written nowhere: they end where the last name does.
func (v *View) readSymtab(module string, symtab mem.VA, n uint64, strtab, typetab mem.VA) (*ksym.List, error) {
	if n > maxModSyms {
		return nil, errBroken("module symbols", symtab, fmt.Sprintf("%d symbols", n))
	}
	each := symSize
	if v.Mem.PointerSize() == 4 {
		each = symSize32
	}
	syms, err := v.readBlock(symtab, n*uint64(each))
	if err != nil {
		return nil, fmt.Errorf("symbols of module %q: %w", module, err)
	}
	var last uint64 // offset of the last name
	for i := 0; i+each <= len(syms); i += each {
		last = max(last, uintAt(syms, uint64(i), 4))
	}
	if last > maxStrtab {
		return nil, errBroken("module symbols", strtab, fmt.Sprintf("a name at offset %d", last))
	}
	names, err := v.readBlock(strtab, last)
	if err != nil {
		return nil, fmt.Errorf("symbol names of module %q: %w", module, err)
	}
	tail, err := v.Mem.CString(strtab+mem.VA(last), ksymNameLen)
	if err != nil {
		return nil, fmt.Errorf("symbol names of module %q: %w", module, err)
	}
	names = append(append(names, tail...), 0)
	var types []byte
	if typetab != 0 {
		if types, err = v.readBlock(typetab, n); err != nil {
			return nil, fmt.Errorf("symbol types of module %q: %w", module, err)
		}
	}
	list, err := ksym.ParseModuleSymbols(syms, names, types, v.Mem.PointerSize())
	if err != nil {
		return nil, fmt.Errorf("symbols of module %q at %#x: %w", module, uint64(symtab), err)
	}
	return ksym.NewList(list), nil
}

// ksymNameLen is the longest name of a symbol (KSYM_NAME_LEN, 512 since v6.1).
const ksymNameLen = 512

// readBlock copies n bytes in pieces, so that what is allocated is what was
// read and not what the guest claims.
func (v *View) readBlock(at mem.VA, n uint64) ([]byte, error) {
	const piece = 1 << 20
	b := make([]byte, 0, min(n, piece))
	for n > 0 {
		k := int(min(n, piece))
		b = append(b, make([]byte, k)...)
		if _, err := v.Mem.Read(b[len(b)-k:], at); err != nil {
			return nil, err
		}
		at += mem.VA(k)
		n -= uint64(k)
	}
	return b, nil
}

// Symbol is a symbol of the kernel or of a module.
type Symbol struct {
	ksym.Symbol
	Module kernel.Text // "" for the kernel itself
}

// String is the symbol as the kernel prints it: "name" or "name [module]".
func (s Symbol) String() string {
	name := kernel.Text(s.Name).String()
	if s.Module != "" {
		name += " [" + s.Module.String() + "]"
	}
	return name
}

// Resolver turns addresses into symbols and names into addresses, of the kernel
// and of the modules that were loaded when it was made. It reads each module's
// symbols once, when first needed. It is for one goroutine, and as old as the
// moment it was made.
type Resolver struct {
	v       *View
	modules []kernel.Module
	tables  []*ksym.List
	errs    []error // why there is no table
	symbols int     // in all tables
}

// maxAllSyms bounds the symbols of all modules that a Resolver keeps; a machine
// with all its drivers has some 200,000.
const maxAllSyms = 1 << 22

// Resolver lists the modules and gets ready to look up symbols.
func (v *View) Resolver() (*Resolver, error) {
	mods, err := v.Modules()
	return &Resolver{v: v, modules: mods, tables: make([]*ksym.List, len(mods)), errs: make([]error, len(mods))}, err
}

func (r *Resolver) table(i int) (*ksym.List, error) {
	if r.tables[i] == nil && r.errs[i] == nil {
		if r.symbols > maxAllSyms {
			return nil, errBroken("modules", r.modules[i].Addr, fmt.Sprintf("more than %d symbols", maxAllSyms))
		}
		r.tables[i], r.errs[i] = r.v.ModuleSymbols(r.modules[i])
		if r.errs[i] == nil {
			r.symbols += max(1<<8, r.tables[i].Len())
		}
	}
	return r.tables[i], r.errs[i]
}

// Lookup finds a symbol by its name, the kernel's before those of modules.
// "name [module]", as the kernel prints it, and "module:name", as its tracing
// files take it, look into that module only. Where several are left that lie at
// different addresses, that is a ksym.AmbiguousError.
func (r *Resolver) Lookup(name string) (Symbol, error) {
	all, err := r.LookupAll(name)
	bare := make([]ksym.Symbol, len(all))
	for i, s := range all {
		bare[i] = s.Symbol
	}
	s, oerr := ksym.Only(name, bare)
	switch {
	case len(all) == 0:
		return Symbol{}, err
	case oerr != nil:
		return Symbol{}, oerr
	}
	return Symbol{s, all[0].Module}, nil
}

// LookupAll finds what Lookup chooses from, by address. None is a
// ksym.ErrNoSymbol. With others there may be an error as well: of modules whose
// symbols could not be read.
func (r *Resolver) LookupAll(name string) ([]Symbol, error) {
	module, bare := splitName(name)
	var out []Symbol
	if module == "" {
		for _, s := range r.v.Named(bare) {
			out = append(out, Symbol{Symbol: s})
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	var errs []error
	known := false
	for i, m := range r.modules {
		if module != "" && string(m.Name) != module {
			continue
		}
		known = true
		t, err := r.table(i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, s := range t.LookupAll(bare) {
			out = append(out, Symbol{s, m.Name})
		}
	}
	switch {
	case len(out) > 0:
		slices.SortStableFunc(out, func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
	case module != "" && !known:
		return nil, fmt.Errorf("look up symbol %q: %w %q", bare, ErrNoModule, module)
	default:
		errs = append([]error{r.v.lacks(fmt.Errorf("look up symbol %q: %w", bare, ksym.ErrNoSymbol))}, errs...)
	}
	return out, errors.Join(errs...)
}

// splitName parts "name [module]" and "module:name". C++-like names with "::"
// and Rust's are no module's.
func splitName(s string) (module, name string) {
	if head, rest, ok := strings.Cut(s, " ["); ok && strings.HasSuffix(rest, "]") {
		return strings.TrimSuffix(rest, "]"), head
	}
	if m, rest, ok := strings.Cut(s, ":"); ok && !strings.HasPrefix(rest, ":") {
		return m, rest
	}
	return "", s
}

// ErrNoModule says that no module of that name is loaded.
var ErrNoModule = errors.New("no such module")

// Nearest finds the symbol that va lies in, and how far behind its start.
func (r *Resolver) Nearest(va mem.VA) (Symbol, uint64, error) {
	for i := range r.modules {
		for _, p := range r.modules[i].Parts {
			if va-p.Start < mem.VA(p.Size) {
				t, err := r.table(i)
				if err != nil {
					return Symbol{}, 0, err
				}
				s, off, err := t.Nearest(va)
				return Symbol{s, r.modules[i].Name}, off, err
			}
		}
	}
	s, off, err := r.v.nearest(va)
	return Symbol{Symbol: s}, off, err
}

// Nearest finds the symbol of the kernel or a module that va lies in, and how
// far behind its start. For many addresses make a Resolver.
func (v *View) Nearest(va mem.VA) (Symbol, uint64, error) {
	r, err := v.Resolver()
	s, off, nerr := r.Nearest(va)
	if nerr != nil {
		return Symbol{}, 0, errors.Join(nerr, err)
	}
	return s, off, nil
}

// LookupSymbol finds a symbol of the kernel or, if it has none, of a module; see
// Resolver.Lookup. For many names make a Resolver.
func (v *View) LookupSymbol(name string) (Symbol, error) {
	if module, bare := splitName(name); module == "" {
		if all := v.Named(bare); len(all) > 0 { // without a look at modules
			s, err := ksym.Only(bare, all)
			return Symbol{Symbol: s}, err
		}
	}
	r, err := v.Resolver()
	s, lerr := r.Lookup(name)
	if lerr != nil {
		return Symbol{}, errors.Join(lerr, err)
	}
	return s, nil
}
