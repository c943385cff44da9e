package detect

import (
	"context"
	"slices"
	"time"
)

// A kernel takes a module or a program of eBPF off its lists at once, and frees
// its code behind grace periods, of more than one kind, in a work item. It says
// first where a static call or a traced function shall lead, and then rewrites the
// code, place by place. On a guest that starves either takes seconds. What may be
// of that kind is looked at again until it is gone, for that long.
const (
	outlastTries = 12
	outlastPause = 150 * time.Millisecond
)

// outlasts is persists; but if there are findings that may go by themselves after
// a while, all must be there in each of some tries.
func outlasts(ctx context.Context, l *Look, report func(Finding), find func(report func(Finding)) error) error {
	var kept []Finding
	for try := 1; ; try++ {
		var now []Finding
		err := persists(ctx, l, func(f Finding) { now = append(now, f) }, find)
		if try > 1 {
			now = slices.DeleteFunc(now, func(f Finding) bool { return f.Severity != Info && !slices.ContainsFunc(kept, f.same) })
		}
		kept = now
		if err != nil || l.Still() || try == outlastTries || !slices.ContainsFunc(kept, func(f Finding) bool { return f.slow }) {
			for _, f := range kept {
				report(f)
			}
			return err
		}
		if err := pause(ctx, outlastPause); err != nil {
			return err
		}
	}
}
