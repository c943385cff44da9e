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

// persists reports what find finds each time. A look that finds nothing above
// inventory ends it at once, so a guest with nothing to find is looked at once;
// what is inventory is as the last look has it.
//
// A look that met a contradiction may lack findings and takes none away. If the
// last one did, that is returned, beside what at least two looks found.
func persists(ctx context.Context, l *Look, report func(Finding), find func(report func(Finding)) error) error {
	var kept, inventory []Finding // of looks that were not disturbed; of the last one
	times := make(map[string]int) // how often each was found
	looked := false
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
			*l = *newLook(l.View) // modules and BPF programs may have come and gone
		}
		var found []Finding
		inventory = nil
		err := find(func(f Finding) {
			switch {
			case len(found)+len(inventory) > maxFindings: // more than are shown
			case f.Severity == Info:
				inventory = append(inventory, f)
			case !slices.ContainsFunc(found, func(g Finding) bool { return g.ID == f.ID }):
				found = append(found, f)
				times[f.ID]++
			}
		})
		switch {
		case err == nil && looked:
			kept = slices.DeleteFunc(found, func(f Finding) bool {
				return !slices.ContainsFunc(kept, func(g Finding) bool { return g.ID == f.ID })
			})
		case err == nil:
			kept, looked = found, true
		case !errors.Is(err, mem.ErrInconsistent):
			return err
		case i == persistLooks-1:
			for _, f := range append(found, inventory...) {
				if f.Severity == Info || times[f.ID] > 1 {
					report(f)
				}
			}
			return err
		default:
			continue
		}
		if len(kept) == 0 {
			break
		}
	}
	for _, f := range append(kept, inventory...) {
		report(f)
	}
	return nil
}
