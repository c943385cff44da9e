package detect

import (
	"context"
	"errors"
	"fmt"

	"vmscope/ctype"
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
	at, f, err := begin[ftraceLayout](l, "ftrace_ops_list", "ftrace_list_end")
	if err != nil || at == nil {
		return err
	}
	head, end := at[0], at[1]
	ops, err := l.Mem.Pointer(head)
	for n := 0; err == nil && ops != end && ops != 0; n++ {
		if n >= maxOps || ctx.Err() != nil {
			return errors.Join(ctx.Err(), &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(head), Err: fmt.Errorf("%w: more than %d ftrace_ops", mem.ErrInconsistent, n)})
		}
		for _, h := range []handler{{"func", f.Func}, {"saved_func", f.Saved}, {"trampoline", f.Trampoline}, {"direct_call", f.Direct}} {
			if !h.Valid() {
				continue
			}
			p := pointer{check: d.Name(), about: []string{h.name, l.Name(ops)}, at: h.At(ops), what: fmt.Sprintf("%s of ftrace_ops %#x", h.name, uint64(ops))}
			if err := p.inspect(l, report); err != nil {
				return err
			}
		}
		ops, err = l.Mem.Pointer(f.Next.At(ops))
	}
	return err
}
