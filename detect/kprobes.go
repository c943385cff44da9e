package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// Kprobes finds handlers of kprobes and kretprobes whose code belongs to
// nobody.
type Kprobes struct{}

// Name implements Detector.
func (Kprobes) Name() string { return "kprobes" }

type kprobeLayout struct {
	Addr  ctype.Field `c:"kprobe.addr"` // include/linux/kprobes.h
	List  ctype.Field `c:"kprobe.list"`
	Pre   ctype.Field `c:"kprobe.pre_handler"`
	Post  ctype.Field `c:"kprobe.post_handler"`
	Fault ctype.Field `c:"kprobe.fault_handler,optional"`
	Ret   ctype.Field `c:"kretprobe.handler,optional"`
	Entry ctype.Field `c:"kretprobe.entry_handler,optional"`
}

// maxKprobes bounds all of them; tracers set some thousand at most.
const maxKprobes = 1 << 17

// kprobeHeads is the size of kprobe_table (KPROBE_TABLE_SIZE, kernel/kprobes.c).
const kprobeHeads = 64

// Inspect implements Detector.
func (d Kprobes) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, report) })
}

func (d Kprobes) look(ctx context.Context, l *Look, report func(Finding)) error {
	start, f, err := begin[kprobeLayout](l, "kprobe_table")
	if err != nil || start == nil {
		return err
	}
	// The pre-handler of a kprobe that stands for several at its address, and
	// that of a kretprobe before rethook replaced it.
	aggregate, _ := l.Symbol("aggr_pre_handler")
	ret, _ := l.Symbol("pre_handler_kretprobe")
	n := 0
	probe := func(at mem.VA) error {
		if n++; n > maxKprobes || ctx.Err() != nil {
			return cmp.Or(ctx.Err(), error(&mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: more than %d kprobes", mem.ErrInconsistent, maxKprobes)}))
		}
		target, err := l.Mem.Pointer(f.Addr.At(at))
		if err != nil {
			return err
		}
		handlers := []handler{{"pre_handler", f.Pre}, {"post_handler", f.Post}, {"fault_handler", f.Fault}}
		if pre, err := l.Mem.Pointer(f.Pre.At(at)); err == nil && pre == ret && ret != 0 {
			handlers = append(handlers, handler{"handler", f.Ret}, handler{"entry_handler", f.Entry})
		}
		for _, h := range handlers {
			if !h.Valid() {
				continue
			}
			on := l.Name(target)
			p := pointer{check: d.Name(), about: []string{h.name, on}, at: h.At(at), what: fmt.Sprintf("%s of a kprobe on %s", h.name, on)}
			if err := p.inspect(l, report); err != nil {
				return err
			}
		}
		return nil
	}
	var errs []error // of single chains; the others are looked at all the same
	for i := range mem.VA(kprobeHeads) {
		err := l.HList(start[0]+8*i, func(at mem.VA) error {
			if err := probe(at); err != nil {
				return err
			}
			if pre, err := l.Mem.Pointer(f.Pre.At(at)); err != nil || pre != aggregate || aggregate == 0 {
				return err
			}
			return l.List(f.List.At(at), func(node mem.VA) error { return probe(node - mem.VA(f.List.Offset)) })
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
