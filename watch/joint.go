package watch

import (
	"context"
	"fmt"

	"vmscope/block/tap"
)

// join makes the device of a volume that lies on several disks, all of them tapped; nil for others.
func (w *Watch) join(v *volume) *tap.Joint {
	taps := make([]*tap.Tap, len(w.disks))
	n := 0
	for i, d := range w.disks {
		if !v.on(i) {
			continue
		}
		t, ok := d.Source.(*tap.Tap)
		if !ok {
			return nil
		}
		taps[i] = t
		n++
	}
	if n < 2 {
		return nil
	}
	return tap.Join(v.where, taps)
}

// others says how one disk's receiver reads the other disks of a volume.
func (w *Watch) others(ctx context.Context, v *volume, disk int) (map[int]tap.Content, error) {
	others := map[int]tap.Content{}
	for i, d := range w.disks {
		t, ok := d.Source.(*tap.Tap)
		if i == disk || !ok || !v.on(i) {
			continue
		}
		c, err := t.Content(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		others[i] = c
	}
	return others, nil
}

// inexact reports whether something was read of a volume that had been overwritten, and what it held was not caught, or lost:
// what follows from it is not to be told. All is attached anew then, and the difference told. While the volume's model may
// hold what comes already, it is as it is, but for what a loss has in store.
func (w *Watch) inexact(v *volume) bool {
	late := v.joint != nil && v.joint.Inexact() && v.since.IsZero()
	behind := v.doubtful()
	if !late && !behind {
		return false
	}
	if _, _, ok := v.fs.Journal(); !ok {
		return false // its trees are compared as they are, whatever came between
	}
	if w.again == "" {
		w.again = v.name + ": a block was overwritten before it was read"
		if behind {
			w.again += ", by writes that were lost"
		}
	}
	return true
}

// believe forgets what was doubtful: what is read from here on counts.
func (w *Watch) believe() {
	for i := range w.disks {
		if d, ok := w.disks[i].Source.(Doubter); ok {
			d.Inexact()
		}
	}
}
