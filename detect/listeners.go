package detect

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// listeners looks at the handlers that functions of the kernel's own call, which
// are what ftrace calls: those of live patches, of probes of functions (fprobe)
// and of the function graph. A kernel lacks some.
type listeners struct {
	*Look
	f      *listenerLayout
	report func(Finding)

	patch  mem.VA   // what ftrace calls for live patches; 0: none
	probes []mem.VA // what it calls for probes of functions
}

type listenerLayout struct {
	Func ctype.Field `c:"ftrace_ops.func"` // include/linux/ftrace.h

	Patched ctype.Field `c:"klp_ops.fops,optional"` // kernel/livepatch/patch.h
	Stack   ctype.Field `c:"klp_ops.func_stack,optional"`
	OnStack ctype.Field `c:"klp_func.stack_node,optional"` // include/linux/livepatch.h
	Name    ctype.Field `c:"klp_func.old_name,optional"`
	New     ctype.Field `c:"klp_func.new_func,optional"`

	Ops   ctype.Field `c:"fprobe.ops,optional"` // include/linux/fprobe.h, before v6.14
	Entry ctype.Field `c:"fprobe.entry_handler,optional"`
	Exit  ctype.Field `c:"fprobe.exit_handler,optional"`
	Hash  ctype.Field `c:"fprobe_hlist.hlist,optional"` // since then
	Of    ctype.Field `c:"fprobe_hlist.fp,optional"`

	Enters  ctype.Field `c:"fgraph_ops.entryfunc,optional"` // include/linux/ftrace.h
	Returns ctype.Field `c:"fgraph_ops.retfunc,optional"`
}

func newListeners(l *Look, report func(Finding)) (*listeners, error) {
	f, err := bind[listenerLayout](l)
	if err != nil {
		return nil, err
	}
	w := &listeners{Look: l, f: f, report: report}
	w.patch, _ = l.Symbol("klp_ftrace_handler")                                // kernel/livepatch/patch.c
	for _, name := range []string{"fprobe_handler", "fprobe_kprobe_handler"} { // kernel/trace/fprobe.c
		if at, err := l.Symbol(name); err == nil {
			w.probes = append(w.probes, at)
		}
	}
	return w, nil
}

// handler looks at one pointer to code.
func (w *listeners) handler(at mem.VA, what, whose string) error {
	return pointer{check: Ftrace{}.Name(), about: []string{what, whose}, at: at, what: what + " of " + whose}.inspect(w.Look, w.report)
}

// behind looks at what a registered ftrace_ops has called in turn.
func (w *listeners) behind(ops mem.VA) error {
	to, err := w.Mem.Pointer(w.f.Func.At(ops))
	if err != nil {
		return err
	}
	if to == w.patch && to != 0 && w.f.Patched.Valid() && w.f.Stack.Valid() && w.f.OnStack.Valid() && w.f.Name.Valid() && w.f.New.Valid() {
		return w.patches(ops - mem.VA(w.f.Patched.Offset))
	}
	for _, at := range w.probes {
		if to == at && w.f.Ops.Valid() {
			return w.probe(ops - mem.VA(w.f.Ops.Offset))
		}
	}
	return nil
}

// patches looks at the functions that replace one: the first of the stack does.
func (w *listeners) patches(at mem.VA) error {
	return w.List(w.f.Stack.At(at), func(node mem.VA) error {
		fn := node - mem.VA(w.f.OnStack.Offset)
		text, err := w.Mem.Pointer(w.f.Name.At(fn))
		if err != nil {
			return err
		}
		name, err := w.Mem.CString(text, 512) // KSYM_NAME_LEN
		if err != nil {
			return err
		}
		return w.handler(w.f.New.At(fn), "new_func", fmt.Sprintf("a live patch of %q", name))
	})
}

// probe looks at a struct fprobe.
func (w *listeners) probe(at mem.VA) error {
	whose := "an fprobe"
	if name := w.Name(at); name != "" {
		whose += ", " + name
	}
	for _, h := range []handler{{"entry_handler", w.f.Entry}, {"exit_handler", w.f.Exit}} {
		if !h.Valid() {
			continue
		}
		if err := w.handler(h.At(at), h.name, whose); err != nil {
			return err
		}
	}
	return nil
}

// tables looks at what is registered elsewhere than with ftrace itself.
func (w *listeners) tables() error {
	return errors.Join(w.probeTable(), w.graph())
}

// Bounds of the tables: FPROBE_TABLE_SIZE and FGRAPH_ARRAY_SIZE are 256 and 16.
const (
	maxFprobeHeads = 1 << 12
	maxGraphs      = 1 << 8
)

// probeTable looks at all probes of functions, which are in a table by their
// address since v6.14.
func (w *listeners) probeTable() error {
	table, err := ksym.Only("fprobe_table", w.Named("fprobe_table"))
	if err != nil || !w.f.Hash.Valid() || !w.f.Of.Valid() {
		return missing(err)
	}
	var errs []error // of single chains; the others are looked at all the same
	for i := range mem.VA(min(table.Size/8, maxFprobeHeads)) {
		err := w.HList(table.Addr+8*i, func(node mem.VA) error {
			p, err := w.Mem.Pointer(w.f.Of.At(node - mem.VA(w.f.Hash.Offset)))
			if err != nil || p == 0 {
				return err // it is just taken away
			}
			return w.probe(p)
		})
		if err != nil && len(errs) < maxErrors {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// graph looks at the handlers of the entry and return of functions: an array of
// struct fgraph_ops since v6.11, two variables before (kernel/trace/fgraph.c).
func (w *listeners) graph() error {
	for _, name := range []string{"ftrace_graph_entry", "__ftrace_graph_entry", "ftrace_graph_return"} {
		at, err := w.Symbol(name)
		if errors.Is(err, ksym.ErrNoSymbol) {
			continue
		}
		if err == nil {
			err = w.handler(at, "the handler", name)
		}
		if err != nil {
			return err
		}
	}
	array, err := ksym.Only("fgraph_array", w.Named("fgraph_array"))
	if err != nil || !w.f.Enters.Valid() || !w.f.Returns.Valid() {
		return missing(err)
	}
	for i := range mem.VA(min(array.Size/8, maxGraphs)) {
		ops, err := w.Mem.Pointer(array.Addr + 8*i)
		if err != nil {
			return err
		}
		if ops == 0 {
			continue
		}
		whose := fmt.Sprintf("fgraph_ops %d", i)
		if name := w.Name(ops); name != "" {
			whose += ", " + name
		}
		for _, h := range []handler{{"entryfunc", w.f.Enters}, {"retfunc", w.f.Returns}} {
			if err := w.handler(h.At(ops), h.name, whose); err != nil {
				return err
			}
		}
	}
	return nil
}
