package detect

import (
	"context"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// Ftrace finds handlers that ftrace calls at the entry of functions, and whose
// code belongs to nobody: every registered ftrace_ops, its trampoline, and what
// it calls directly.
type Ftrace struct{}

// Name implements Detector.
func (Ftrace) Name() string { return "ftrace" }

type ftraceLayout struct {
	Func       ctype.Field `c:"ftrace_ops.func"` // include/linux/ftrace.h
	Next       ctype.Field `c:"ftrace_ops.next"`
	Saved      ctype.Field `c:"ftrace_ops.saved_func,optional"`
	Trampoline ctype.Field `c:"ftrace_ops.trampoline,optional"`
	Direct     ctype.Field `c:"ftrace_ops.direct_call,optional"`
}

// maxOps bounds the registered ftrace_ops; each traced event source has one.
const maxOps = 1 << 16

// Inspect implements Detector.
func (d Ftrace) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, report) })
}

func (d Ftrace) look(ctx context.Context, l *Look, report func(Finding)) error {
	head, err := l.Symbol("ftrace_ops_list")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil // a kernel without ftrace
	}
	if err != nil {
		return err
	}
	end, err := l.Symbol("ftrace_list_end")
	if err != nil {
		return err
	}
	f, err := bind[ftraceLayout](l)
	if err != nil {
		return err
	}
	ops, err := l.Mem.Pointer(head)
	for n := 0; err == nil && ops != end && ops != 0; n++ {
		if n >= maxOps || ctx.Err() != nil {
			return errors.Join(ctx.Err(), &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(head), Err: fmt.Errorf("%w: more than %d ftrace_ops", mem.ErrInconsistent, n)})
		}
		for _, m := range []struct {
			name  string
			field ctype.Field
		}{{"func", f.Func}, {"saved_func", f.Saved}, {"trampoline", f.Trampoline}, {"direct_call", f.Direct}} {
			if !m.field.Valid() {
				continue
			}
			p := pointer{check: d.Name(), about: []string{m.name, l.Name(ops)}, at: m.field.At(ops), what: fmt.Sprintf("%s of ftrace_ops %#x", m.name, uint64(ops))}
			if err := p.inspect(l, report); err != nil {
				return err
			}
		}
		ops, err = l.Mem.Pointer(f.Next.At(ops))
	}
	return err
}
