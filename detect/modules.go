package detect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// Modules finds modules that are loaded and that the kernel's list of modules,
// which lsmod goes by, lacks: by what else of a module the kernel keeps, and by
// the memory that is mapped for it. A module that has made itself unknown there
// as well is found by its text (Pages).
type Modules struct{}

// Name implements Detector.
func (Modules) Name() string { return "modules" }

type moduleLayout struct {
	Name ctype.Field `c:"module.name"` // include/linux/module.h
	List ctype.Field `c:"module.list"`
	Bugs ctype.Field `c:"module.bug_list,optional"`

	Kset ctype.Field `c:"kset.list,optional"` // include/linux/kobject.h
	Kobj ctype.Field `c:"kobject.entry,optional"`
	Kmod ctype.Field `c:"module_kobject.mod,optional"`

	Tree     ctype.Field `c:"latch_tree_root.tree,optional"` // include/linux/rbtree_latch.h
	TreeNode ctype.Field `c:"mod_tree_node.node,optional"`
	TreeMod  ctype.Field `c:"mod_tree_node.mod,optional"`

	BTFList ctype.Field `c:"btf_module.list,optional"` // kernel/bpf/btf.c
	BTFMod  ctype.Field `c:"btf_module.module,optional"`
}

// place is where modules are met: one of the kernel's structures that name them,
// or memory in which one is found astray.
type place struct {
	name  string
	each  func(func(module mem.VA) error) error
	stray bool
}

// Inspect implements Detector.
func (d Modules) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	f, err := bind[moduleLayout](l)
	if err != nil {
		return err
	}
	return outlasts(ctx, l, report, func(report func(Finding)) error { return d.look(l, f, report) })
}

func (d Modules) look(l *Look, f *moduleLayout, report func(Finding)) error {
	listed := make(map[mem.VA]kernel.Text)
	modules, err := l.Modules()
	if err != nil {
		return err
	}
	for _, m := range modules {
		listed[m.Addr] = m.Name
	}
	rest, err := findUnlisted(l, modules)
	if err != nil {
		return err
	}
	hidden := make(map[mem.VA][]string)
	named := make(map[mem.VA]bool) // by what the kernel goes by
	var errs []error               // of places: the others are looked at all the same
	for _, p := range slices.Concat(d.places(l, f), rest.places()) {
		err := p.each(func(module mem.VA) error {
			if _, ok := listed[module]; !ok && module != 0 && !slices.Contains(hidden[module], p.name) {
				hidden[module] = append(hidden[module], p.name)
				named[module] = named[module] || !p.stray
			}
			if len(hidden) > maxFindings {
				return fmt.Errorf("%s names more than %d modules that are not listed: %w", p.name, maxFindings, mem.ErrInconsistent)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ksym.ErrNoSymbol) {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	for _, module := range slices.Sorted(maps.Keys(hidden)) {
		finding, err := d.hidden(l, f, module, hidden[module])
		switch {
		case err == nil:
			finding.Evidence = append(finding.Evidence, rest.evidence(module)...)
			finding.slow = !named[module] // what was unlisted stays in memory until it is freed
			report(finding)
		case !named[module] && passing(err): // it was freed just now
		case len(errs) < maxErrors:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// maxErrors bounds the failures of one look that are told.
const maxErrors = 32

// hidden is the finding of a module that stands in the named places and not in
// the list. Whatever its state says: the kernel lists a module before all else,
// and takes it off the list with the last of these places.
func (d Modules) hidden(l *Look, f *moduleLayout, module mem.VA, where []string) (Finding, error) {
	b, err := l.Mem.CString(f.Name.At(module), int(f.Name.Size()))
	if err != nil {
		return Finding{}, err
	}
	name := kernel.Text(b)
	next, err := l.Mem.Pointer(f.List.At(module))
	if err != nil {
		return Finding{}, err
	}
	finding := Finding{Check: d.Name(), Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("module %q is loaded and hidden: not in the list of modules, but in %s", name, strings.Join(where, ", ")),
		Evidence: []Evidence{
			{What: fmt.Sprintf("struct module of %q", name), Addr: module, Owner: fmt.Sprintf("module %s", name)},
			{What: "its link in the list of modules", Addr: f.List.At(module), Expected: "an entry of the list", Found: fmt.Sprintf("%#x", uint64(next))},
		}}
	finding.identify(string(name))
	return finding, nil
}

// places are the structures that name modules. One that this kernel lacks gives
// none.
func (Modules) places(l *Look, f *moduleLayout) []place {
	list := func(head func() (mem.VA, error), link ctype.Field, module func(object mem.VA) (mem.VA, error)) func(func(mem.VA) error) error {
		return func(each func(mem.VA) error) error {
			if !link.Valid() {
				return nil
			}
			at, err := head()
			if err != nil || at == 0 {
				return err
			}
			return l.List(at, func(node mem.VA) error {
				m, err := module(node - mem.VA(link.Offset))
				if err != nil {
					return err
				}
				return each(m)
			})
		}
	}
	symbol := func(name string) func() (mem.VA, error) {
		return func() (mem.VA, error) { return l.Symbol(name) }
	}
	return []place{
		{name: "sysfs (module_kset)", each: list(func() (mem.VA, error) {
			at, err := l.Symbol("module_kset")
			if err != nil {
				return 0, err
			}
			return l.Mem.Pointer(at)
		}, f.Kobj, func(kobj mem.VA) (mem.VA, error) { return l.Mem.Pointer(f.Kmod.At(kobj)) })}, // built-in ones have none
		{name: "the tree of module text (mod_tree)", each: func(each func(mem.VA) error) error {
			if !f.TreeNode.Valid() || !f.Tree.Valid() {
				return nil
			}
			root, err := l.Symbol("mod_tree")
			if err != nil {
				return err
			}
			return l.RBTree(f.Tree.At(root), func(node mem.VA) error {
				m, err := l.Mem.Pointer(f.TreeMod.At(node - mem.VA(f.TreeNode.Offset)))
				if err != nil {
					return err
				}
				return each(m)
			})
		}},
		{name: "the list of module types (btf_modules)", each: list(symbol("btf_modules"), f.BTFList, func(b mem.VA) (mem.VA, error) { return l.Mem.Pointer(f.BTFMod.At(b)) })},
		{name: "the list of bug tables (module_bug_list)", each: list(symbol("module_bug_list"), f.Bugs, func(m mem.VA) (mem.VA, error) { return m, nil })},
	}
}
