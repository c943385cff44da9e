package detect

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmscope/mem"
)

// A running guest changes while two of its lists are compared: what is in one
// and not in the other may just come or go. Only what is found in each of some
// looks, with pauses in which a guest finishes what it was at, is reported.
const (
	persistLooks = 4
	persistPause = 3 * time.Millisecond
)

// persists reports what find finds each time. A look that finds nothing ends it
// at once, so a guest with nothing to find is looked at once.
func persists(ctx context.Context, l *Look, report func(Finding), find func(report func(Finding)) error) error {
	var kept []Finding
	for i := range persistLooks {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(persistPause << i):
			}
			if c, ok := l.Phys.(*mem.Cache); ok {
				c.Forget()
			}
		}
		var found []Finding
		err := find(func(f Finding) { found = append(found, f) })
		if err != nil && (i == persistLooks-1 || !errors.Is(err, mem.ErrInconsistent)) {
			return err
		}
		if err != nil {
			continue
		}
		if i > 0 && kept != nil {
			found = slices.DeleteFunc(found, func(f Finding) bool {
				return !slices.ContainsFunc(kept, func(g Finding) bool { return g.ID == f.ID })
			})
		}
		if kept = found; len(kept) == 0 {
			return nil
		}
	}
	for _, f := range kept {
		report(f)
	}
	return nil
}
