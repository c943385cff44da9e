package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// vmLayout is what tells of the memory that the kernel has mapped for somebody,
// and by what a module is known in it. A kernel may lack some.
type vmLayout struct {
	Start  ctype.Field `c:"vmap_area.va_start,optional"` // include/linux/vmalloc.h
	Link   ctype.Field `c:"vmap_area.list,optional"`
	VM     ctype.Field `c:"vmap_area.vm,optional"`
	Size   ctype.Field `c:"vm_struct.size,optional"`
	Caller ctype.Field `c:"vm_struct.caller,optional"`

	// One list before v6.9; then as many as there are CPUs, up to 128.
	Node uint64      `c:"sizeof(vmap_node),optional"` // mm/vmalloc.c
	Busy ctype.Field `c:"vmap_node.busy.head,optional"`

	Self   ctype.Field `c:"module.mkobj.mod,optional"` // include/linux/module.h
	Table  ctype.Field `c:"module.kallsyms,optional"`
	Core   ctype.Field `c:"module.core_kallsyms,optional"`
	Symtab ctype.Field `c:"mod_kallsyms.symtab,optional"`
	Strtab ctype.Field `c:"mod_kallsyms.strtab,optional"`
}

const (
	// moduleSpace is where the memory of modules lies, and all else that must be
	// near the kernel's text; other areas lie far below
	// (Documentation/arch/x86/x86_64/mm.rst).
	moduleSpace mem.VA = 0xffffffff80000000
	maxVMNodes         = 1 << 10
)

// vmArea is memory that is mapped for somebody in moduleSpace.
type vmArea struct {
	start  mem.VA
	size   uint64
	caller mem.VA // the code that asked for it
}

// vmAreas lists them.
func vmAreas(l *Look, f *vmLayout) ([]vmArea, error) {
	if !f.Start.Valid() || !f.Link.Valid() || !f.VM.Valid() || !f.Size.Valid() || !f.Caller.Valid() {
		return nil, nil
	}
	var heads []mem.VA
	if at, err := l.Symbol("vmap_nodes"); err == nil && f.Node > 0 && f.Busy.Valid() {
		nodes, err := l.Mem.Pointer(at)
		if err != nil {
			return nil, err
		}
		if at, err = l.Symbol("nr_vmap_nodes"); err != nil {
			return nil, err
		}
		n, err := l.Mem.Uint32(at)
		if err != nil {
			return nil, err
		}
		if n > maxVMNodes {
			return nil, &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: %d lists of mapped memory", mem.ErrInconsistent, n)}
		}
		for i := range mem.VA(n) {
			heads = append(heads, f.Busy.At(nodes+i*mem.VA(f.Node)))
		}
	} else if at, err := l.Symbol("vmap_area_list"); err == nil {
		heads = append(heads, at)
	}
	var out []vmArea
	for _, head := range heads {
		if err := l.List(head, func(node mem.VA) error {
			area := node - mem.VA(f.Link.Offset)
			start, err := l.Mem.Pointer(f.Start.At(area))
			if err != nil || start < moduleSpace {
				return err
			}
			vm, err := l.Mem.Pointer(f.VM.At(area))
			if err != nil || vm == 0 {
				return err
			}
			size, err := l.Mem.Uint64(f.Size.At(vm))
			if err != nil {
				return err
			}
			caller, err := l.Mem.Pointer(f.Caller.At(vm))
			if err != nil {
				return err
			}
			if len(out) >= maxRegions || size > uint64(-start) {
				return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(area), Err: fmt.Errorf("%w: %d areas of mapped memory, of %d bytes", mem.ErrInconsistent, len(out), size)}
			}
			out = append(out, vmArea{start, size, caller})
			return nil
		}); err != nil {
			return out, err
		}
	}
	return out, nil
}

// unlisted finds what is a struct module by its own word, in areas that begin with
// memory of nobody who is listed.
type unlisted struct {
	l *Look
	f *vmLayout

	executable []arch.Region
	find       func() ([]stray, error)
}

// stray is a struct module by what it says of itself: it is the one of its own
// entry in sysfs, or its table of symbols is the one in it.
type stray struct {
	at    mem.VA
	table bool
	area  vmArea
}

func findUnlisted(l *Look, modules []kernel.Module) (*unlisted, error) {
	f, err := bind[vmLayout](l)
	if err != nil {
		return nil, err
	}
	s := &unlisted{l: l, f: f}
	s.find = sync.OnceValues(func() ([]stray, error) {
		if !f.Self.Valid() || !f.Table.Valid() || !f.Core.Valid() || !f.Symtab.Valid() || !f.Strtab.Valid() {
			return nil, nil
		}
		areas, err := vmAreas(l, f)
		code, _ := l.Code() // what they lack is searched in vain
		s.executable, _ = l.pages()
		var out []stray
		budget := maxForeign
		for _, a := range areas {
			if _, ok := code.Owner(a.start); ok || slices.ContainsFunc(modules, func(m kernel.Module) bool {
				return slices.ContainsFunc(m.Parts, func(p kernel.Region) bool { return a.start-p.Start < mem.VA(p.Size) })
			}) {
				continue
			}
			some, serr := s.search(a, &budget)
			out, err = append(out, some...), errors.Join(err, serr)
		}
		return out, err
	})
	return s, nil
}

// search looks for modules in an area: where it is executable, it holds none, and
// is up to Pages. Pages of it that are not mapped are passed over: each area ends
// with one.
func (s *unlisted) search(a vmArea, budget *int) ([]stray, error) {
	var out []stray
	var page [mem.PageSize]byte
	met := func(at mem.VA) *stray {
		if i := slices.IndexFunc(out, func(m stray) bool { return m.at == at }); i >= 0 {
			return &out[i]
		}
		out = append(out, stray{at: at, area: a})
		return &out[len(out)-1]
	}
	for off := mem.VA(0); off < mem.VA(a.size); off += mem.PageSize {
		if last, ok := s.executes(a.start + off); ok {
			off = (last - a.start) &^ (mem.PageSize - 1)
			continue
		}
		if *budget--; *budget < 0 {
			return out, &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(a.start), Err: fmt.Errorf("%w: more than %d pages mapped for nobody", mem.ErrInconsistent, maxForeign)}
		}
		if _, err := s.l.Mem.Read(page[:], a.start+off); err != nil {
			if passing(err) {
				continue
			}
			return out, err
		}
		for i := 0; i < len(page); i += 8 {
			at, to := a.start+off+mem.VA(i), mem.VA(binary.LittleEndian.Uint64(page[i:]))
			if to == at-mem.VA(s.f.Self.Offset) {
				met(to)
			}
			if module := at - mem.VA(s.f.Table.Offset); to == s.f.Core.At(module) && a.holds(module) && s.symbols(a, to) {
				met(module).table = true
			}
			if len(out) > maxFindings {
				return out, &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: more than %d modules that are not listed", mem.ErrInconsistent, maxFindings)}
			}
		}
	}
	return out, nil
}

// executes reports whether memory at an address is executable, and the last
// address up to which it is.
func (s *unlisted) executes(at mem.VA) (last mem.VA, ok bool) {
	end := func(i int) mem.VA { return s.executable[i].VA + mem.VA(s.executable[i].Size-1) }
	i := sort.Search(len(s.executable), func(i int) bool { return end(i) >= at })
	if i == len(s.executable) || s.executable[i].VA > at {
		return 0, false
	}
	return end(i), true
}

func (a vmArea) holds(at mem.VA) bool { return uint64(at-a.start) < a.size }

// symbols reports whether there is a table of a module's symbols (struct
// mod_kallsyms): the symbols and their names lie in the module's memory.
func (s *unlisted) symbols(a vmArea, table mem.VA) bool {
	symbols, err := s.l.Mem.Pointer(s.f.Symtab.At(table))
	if err != nil || !a.holds(symbols) {
		return false
	}
	names, err := s.l.Mem.Pointer(s.f.Strtab.At(table))
	return err == nil && a.holds(names)
}

// places are what tells that they are modules.
func (s *unlisted) places() []place {
	return []place{
		{name: "memory that is mapped for nobody (vmap areas)", stray: true, each: s.each(func(stray) bool { return true })},
		{name: "a table of module symbols (kallsyms)", stray: true, each: s.each(func(m stray) bool { return m.table })},
	}
}

// each gives the modules of one kind.
func (s *unlisted) each(is func(stray) bool) func(func(mem.VA) error) error {
	return func(each func(mem.VA) error) error {
		found, err := s.find()
		for _, m := range found {
			if is(m) {
				if err := each(m.at); err != nil {
					return err
				}
			}
		}
		return err
	}
}

// evidence shows the area that a module was found in, and its symbols.
func (s *unlisted) evidence(module mem.VA) []Evidence {
	found, _ := s.find()
	i := slices.IndexFunc(found, func(m stray) bool { return m.at == module })
	if i < 0 {
		return nil
	}
	a := found[i].area
	out := []Evidence{{
		What: fmt.Sprintf("memory of %d bytes that is mapped", a.size), Addr: a.start, Owner: "nobody",
		Expected: "a module's that is listed, or of eBPF",
	}, {
		What: "the code that asked for it", Addr: a.caller, Symbol: s.l.Name(a.caller),
	}}
	const most = 8 // names that are told
	if table, err := s.l.ModuleSymbols(kernel.Module{Addr: module}); err == nil {
		var names []string
		for sym := range table.All() {
			if len(names) == most {
				names = append(names, "…")
				break
			}
			names = append(names, kernel.Text(sym.Name).String())
		}
		out = append(out, Evidence{What: fmt.Sprintf("its table of %d symbols", table.Len()), Addr: s.f.Table.At(module), Found: fmt.Sprint(names)})
	}
	return out
}
