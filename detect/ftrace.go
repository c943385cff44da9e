package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// Ftrace finds handlers that ftrace calls at the entry of functions, and whose
// code belongs to nobody: every registered ftrace_ops, its trampoline, what it
// calls directly, and what the kernel's own handlers call in turn: live patches,
// probes of functions, the function graph.
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
	more, err := newListeners(l, report)
	if err != nil {
		return err
	}
	broken := func(at mem.VA, why string) error {
		return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at), Err: fmt.Errorf("%w: ftrace_ops: %s", mem.ErrInconsistent, why)}
	}
	var bad error // of one; the others are looked at all the same
	ops, err := l.Mem.Pointer(head)
	seen := make(map[mem.VA]bool)
	for err == nil && ops != end {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case ops == 0:
			return errors.Join(broken(head, "their list does not end where it should"), bad)
		case seen[ops] || len(seen) >= maxOps:
			return errors.Join(broken(ops, fmt.Sprintf("they loop, or are more than %d", maxOps)), bad)
		}
		seen[ops] = true
		for _, h := range []handler{{"func", f.Func}, {"saved_func", f.Saved}, {"trampoline", f.Trampoline}, {"direct_call", f.Direct}} {
			if !h.Valid() {
				continue
			}
			p := pointer{check: d.Name(), about: []string{h.name, l.Name(ops)}, at: h.At(ops), what: fmt.Sprintf("%s of ftrace_ops %#x", h.name, uint64(ops))}
			bad = cmp.Or(bad, p.inspect(l, report))
		}
		bad = cmp.Or(bad, more.behind(ops))
		ops, err = l.Mem.Pointer(f.Next.At(ops))
	}
	return errors.Join(err, bad, more.tables())
}
