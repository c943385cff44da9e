package detect

import (
	"context"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// Tracepoints finds probes that were attached to tracepoints of the kernel or of
// its modules, and whose code belongs to nobody.
type Tracepoints struct{}

// Name implements Detector.
func (Tracepoints) Name() string { return "tracepoints" }

type tracepointLayout struct {
	Name  ctype.Field `c:"tracepoint.name"` // include/linux/tracepoint-defs.h
	Funcs ctype.Field `c:"tracepoint.funcs"`
	Func  ctype.Field `c:"tracepoint_func.func"`
	Each  uint64      `c:"sizeof(tracepoint_func)"`

	Count ctype.Field `c:"module.num_tracepoints,optional"` // include/linux/module.h
	Own   ctype.Field `c:"module.tracepoints_ptrs,optional"`
}

// Bounds of tracepoints and of the probes of one; kernels have some 3,000, and
// seldom more than two on one.
const (
	maxTracepoints = 1 << 16
	maxProbes      = 1 << 9
)

// Inspect implements Detector.
func (d Tracepoints) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	return persists(ctx, l, report, func(report func(Finding)) error { return d.look(ctx, l, report) })
}

func (d Tracepoints) look(ctx context.Context, l *Look, report func(Finding)) error {
	at, f, err := begin[tracepointLayout](l, "__start___tracepoints_ptrs", "__stop___tracepoints_ptrs")
	if err != nil || at == nil {
		return err
	}
	var errs []error // of single tracepoints; the others are looked at all the same
	// Place-relative since 46e0c9be206f ("kernel: tracepoints: add support for
	// relative references") in v4.19.
	array := func(first mem.VA, n uint64) error {
		if n > maxTracepoints {
			return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(first), Err: fmt.Errorf("%w: %d tracepoints", mem.ErrInconsistent, n)}
		}
		for i := range mem.VA(n) {
			if err := ctx.Err(); err != nil {
				return err
			}
			off, err := l.Mem.Uint32(first + 4*i)
			if err == nil {
				err = d.probes(l, f, first+4*i+mem.VA(int64(int32(off))), report)
			}
			if err != nil {
				if errs = append(errs, err); len(errs) >= maxErrors {
					break
				}
			}
		}
		return nil
	}
	if err := array(at[0], uint64(at[1]-at[0])/4); err != nil {
		return err
	}
	if !f.Count.Valid() || !f.Own.Valid() {
		return errors.Join(errs...)
	}
	modules, err := l.Modules()
	for _, m := range modules {
		n, nerr := l.Mem.Uint32(f.Count.At(m.Addr))
		first, ferr := l.Mem.Pointer(f.Own.At(m.Addr))
		if merr := errors.Join(nerr, ferr); merr != nil {
			errs = append(errs, merr)
		} else if err := array(first, uint64(n)); err != nil {
			return err
		}
		if len(errs) >= maxErrors {
			break
		}
	}
	return errors.Join(append(errs, err)...)
}

// probes looks at what is attached to the tracepoint at tp.
func (d Tracepoints) probes(l *Look, f *tracepointLayout, tp mem.VA, report func(Finding)) error {
	funcs, err := l.Mem.Pointer(f.Funcs.At(tp))
	if err != nil || funcs == 0 {
		return err
	}
	text, err := l.Mem.Pointer(f.Name.At(tp))
	if err != nil {
		return err
	}
	name, err := l.Mem.CString(text, 256)
	if err != nil {
		return err
	}
	for i := range mem.VA(maxProbes) {
		at := f.Func.At(funcs + i*mem.VA(f.Each))
		to, err := l.Mem.Pointer(at)
		if err != nil || to == 0 {
			return err
		}
		p := pointer{check: d.Name(), about: []string{string(name), fmt.Sprint(i)}, at: at, what: fmt.Sprintf("probe %d of tracepoint %q", i, name)}
		if err := p.leads(l, to, report); err != nil {
			return err
		}
	}
	return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(funcs), Err: fmt.Errorf("%w: more than %d probes of tracepoint %q", mem.ErrInconsistent, maxProbes, name)}
}
