package detect

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmscope"
	"vmscope/mem"
)

// Change is what a sweep found that the one before had not, or no longer finds.
type Change struct {
	Finding
	Gone bool `json:"gone,omitempty"`
}

// Watch sweeps a guest again and again, with a pause of every between the end of
// one sweep and the start of the next, until ctx ends, the guest does
// (mem.ErrUnreachable), or each returns an error. It calls each behind every
// sweep with what changed, mostly nothing, and with the sweep; an error of the
// sweep may pass, such as that of a guest that just boots, and then nothing is
// known to have changed.
func Watch(ctx context.Context, g *vmscope.Guest, detectors []Detector, every time.Duration, each func([]Change, Result, error) error) error {
	var known []Finding
	var gone time.Time // since when sweeps are Gone of a kernel that was up
	for {
		var r Result
		before := gone
		gone = time.Time{}
		err := g.View(ctx, func(v *vmscope.View) error {
			r = Sweep(ctx, v, detectors)
			if r.Gone && len(r.Checks) > 0 {
				if gone = before; gone.IsZero() {
					gone = time.Now()
				}
				if time.Since(gone) < GoneFor {
					r = Result{Gone: true}
					return ErrGone
				}
			}
			return r.Err()
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, mem.ErrUnreachable):
			return err
		}
		var changes []Change
		changes, known = compare(known, r)
		if err := each(changes, r, err); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// compare tells how a sweep differs from what was known, and what is known
// then: findings of checks that could not tell, or that met a contradiction, stay,
// as many as a check may have. One whose severity changed is another.
func compare(known []Finding, r Result) ([]Change, []Finding) {
	before, now := make(map[string]bool, len(known)), make(map[string]bool, len(r.Findings))
	for _, f := range known {
		before[f.key()] = true
	}
	var changes []Change
	for _, f := range r.Findings {
		if now[f.key()] = true; !before[f.key()] {
			changes = append(changes, Change{Finding: f})
		}
	}
	told, kept := make(map[string]bool), make(map[string]int)
	for _, c := range r.Checks {
		told[c.Name] = c.Err == nil && !c.Broken
	}
	then := slices.Clone(r.Findings)
	for _, f := range known {
		switch {
		case now[f.key()]:
		case told[f.Check]:
			changes = append(changes, Change{Finding: f, Gone: true})
		case kept[f.Check] < maxFindings:
			kept[f.Check]++
			then = append(then, f)
		}
	}
	return changes, then
}
