package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
)

// settle is how long a transaction may take that was being written when capturing began: what it overwrites was not caught, so
// the model is to begin behind it.
const settle = 100 * time.Millisecond

// attach finds out what is on the disks and begins to follow all file systems that are known.
func (w *Watch) attach(ctx context.Context) error {
	w.held = map[string]*tree{}
	for _, v := range w.volumes {
		if t := v.known(); t.useful(w.filter.changes(), v.at) {
			w.held[v.label] = t
		}
		v.close()
	}
	w.volumes = nil
	w.believe()
	if err := w.scan(ctx); err != nil {
		return err
	}
	fresh := w.open(w.layout.Volumes)
	if err := w.start(ctx, fresh); err != nil {
		return err
	}
	for label := range w.held {
		if err := w.send(event.Event{Op: event.Lost, Path: "/", FS: label, Detail: "the file system is not there any more"}); err != nil {
			return err
		}
	}
	w.held = nil
	if len(w.volumes) == 0 && !w.ready {
		return w.nothing()
	}
	w.ready = true
	return nil
}

// nothing says why there is nothing to watch.
func (w *Watch) nothing() error {
	var found []string
	for _, v := range w.layout.Volumes {
		what := v.Type
		if v.Unmapped != "" {
			what += " (" + v.Unmapped + ")"
		}
		found = append(found, v.Name+": "+what)
	}
	if len(w.opt.FileSystems) > 0 {
		return fmt.Errorf("no file system %q that can be watched (ext2, ext3, ext4); there is: %q", w.opt.FileSystems, found)
	}
	return fmt.Errorf("no file system that can be watched (ext2, ext3, ext4); there is: %q: %w", found, errors.ErrUnsupported)
}

func (w *Watch) scan(ctx context.Context) error {
	disks := make([]part.Disk, len(w.disks))
	for i, d := range w.disks {
		disks[i] = part.Disk{Name: d.Name, Dev: d.Source.Device()}
	}
	layout, err := part.Scan(ctx, disks...)
	if err != nil {
		return err
	}
	for _, p := range layout.Problems {
		w.opt.Warn(p)
	}
	w.layout = layout
	return nil
}

// open makes volumes of those that are wanted and known.
func (w *Watch) open(list []part.Volume) []*volume {
	var out []*volume
	for i := range list {
		p := &list[i]
		if !known(p) || len(w.opt.FileSystems) > 0 && !slices.ContainsFunc(w.opt.FileSystems, p.Called) {
			continue
		}
		where, err := p.Map()
		if err != nil {
			w.opt.Warn(fmt.Errorf("%s: %w", p.Name, err))
			continue
		}
		v := &volume{name: p.Name, part: *p, where: where}
		if v.joint = w.join(v); v.joint != nil {
			v.dev = v.joint
		} else {
			devices := make([]block.Device, len(w.disks))
			for i, d := range w.disks {
				devices[i] = d.Source.Device()
			}
			v.dev = block.NewVolume(where, devices)
		}
		for i := range w.disks {
			if d, ok := w.disks[i].Source.(Doubter); ok && v.on(i) {
				v.doubt = append(v.doubt, d)
			}
		}
		if p.Disk >= 0 {
			v.disk = w.disks[p.Disk].Name
		} else if len(w.disks) == 1 {
			v.disk = w.disks[0].Name
		}
		out = append(out, v)
	}
	return out
}

// start attaches volumes: first to learn of their journals, so that what transactions overwrite is caught, and then, once it
// is, for the model.
func (w *Watch) start(ctx context.Context, fresh []*volume) error {
	w.everything()
	var live []*volume
	for _, v := range fresh {
		fs, err := ext4.Attach(v.dev)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.opt.Warn(fmt.Errorf("%s: %w", v.name, err))
			v.close()
			continue
		}
		v.fs = fs
		live = append(live, v)
	}
	if len(live) == 0 {
		return nil
	}
	captures, err := w.capture(ctx, append(slices.Clone(w.volumes), live...))
	if err != nil {
		return err
	}
	if captures {
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			return ctx.Err()
		}
		w.believe()
		attached := live
		live = nil
		for _, v := range attached {
			v.fs.Close()
			switch v.fs, err = ext4.Attach(v.dev); {
			case errors.Is(err, tap.ErrUnplugged):
				v.close()
			case err != nil:
				return fmt.Errorf("%s: %w", v.name, err)
			default:
				live = append(live, v)
			}
		}
	}
	for _, v := range live {
		s := v.fs.Super()
		v.label, v.crawl = fsLabel(v.name, s), true
		w.place(v, nil)
		w.volumes = append(w.volumes, v)
		if v.then = w.held[v.label]; v.then == nil {
			if err := w.attached(v); err != nil {
				return err
			}
		}
		delete(w.held, v.label)
		if captures {
			v.since = w.opt.Clock()
		} else if err := w.caughtUp(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// capture tells the disks of all journals; false if none can catch what transactions overwrite.
func (w *Watch) capture(ctx context.Context, volumes []*volume) (bool, error) {
	any := false
	for i, d := range w.disks {
		c, ok := d.Source.(Capturer)
		if !ok {
			continue
		}
		var journals []tap.Journal
		for _, v := range volumes {
			j, ok := v.journal(i)
			if !ok || !v.where.Touches(i, &block.Write{Op: block.OpFlush}) {
				continue
			}
			if v.joint != nil {
				var err error
				if j.Others, err = w.others(ctx, v, i); err != nil {
					return false, err
				}
			}
			journals = append(journals, j)
		}
		if len(journals) == 0 {
			continue
		}
		switch err := w.captureOn(ctx, i, c, journals); {
		case errors.Is(err, tap.ErrUnplugged): // its goroutine tells
		case err != nil:
			return false, fmt.Errorf("%s: %w", d.Name, err)
		default:
			any = true
		}
	}
	return any, nil
}

// captureOn tells one disk of its journals. A tap answers with a mark among the writes; where these wait for us and leave no
// room for it, they are read here.
func (w *Watch) captureOn(ctx context.Context, disk int, c Capturer, journals []tap.Journal) error {
	answer := make(chan error, 1)
	go func() {
		_, err := c.Capture(ctx, journals)
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-time.After(settle / 2):
	}
	d := &w.disks[disk]
	for {
		select {
		case err := <-answer:
			return err
		default:
		}
		wait, stop := context.WithTimeout(ctx, 10*time.Millisecond)
		write, err := d.Source.Next(wait)
		stop()
		d.drawn++
		d.torn = d.torn || len(w.volumes) > 0
		l, isLost := lost(err)
		switch {
		case err == nil:
			if err := w.apply(ctx, disk, &write); err != nil {
				return err
			}
		case isLost && len(w.volumes) > 0: // they lack it; those that are being attached do not
			w.again = l.Error()
		case isLost:
		case isMark(err) || ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		default:
			return err
		}
	}
}

// skip passes over what waits, of which nothing is told any more: what is attached next holds it.
func (w *Watch) skip(ctx context.Context) error {
	now := w.opt.Clock()
	for i := range w.disks {
		d := &w.disks[i]
		if _, ok := d.Source.(Queue); !ok {
			continue
		}
		for {
			wait, stop := context.WithTimeout(ctx, time.Millisecond)
			write, err := d.Source.Next(wait)
			stop()
			d.drawn++
			if errors.Is(err, tap.ErrUnplugged) { // its goroutine tells
				break
			}
			if err == nil && write.Time.After(now) || ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				break
			}
			if _, isLost := lost(err); err != nil && !isLost && !isMark(err) {
				return err
			}
		}
	}
	return nil
}

// everything makes the content of all writes wanted again.
func (w *Watch) everything() {
	for i := range w.disks {
		d := &w.disks[i]
		if c, ok := d.Source.(Chooser); ok && d.caught {
			c.Interest(block.Range{Off: 0, Len: d.Source.Device().Size()}, true)
			d.caught = false
		}
	}
}

// divide looks again at what is on the disks, once it has settled, and keeps the file systems that are where they were.
func (w *Watch) divide(ctx context.Context) error {
	if w.opt.Clock().Sub(w.stale) < 20*w.opt.Quiet {
		return nil
	}
	w.rescan = false
	if err := w.scan(ctx); err != nil {
		return err
	}
	w.believe() // that was of no file system
	var kept, fresh []*volume
	for _, v := range w.open(w.layout.Volumes) {
		i := slices.IndexFunc(w.volumes, func(old *volume) bool {
			return old.name == v.name && old.part.UUID == v.part.UUID && slices.EqualFunc(old.part.Segments, v.part.Segments, sameSegment)
		})
		if i >= 0 {
			kept = append(kept, w.volumes[i])
			w.volumes = slices.Delete(w.volumes, i, i+1)
			v.close()
		} else {
			fresh = append(fresh, v)
		}
	}
	for _, gone := range w.volumes {
		e := event.Event{Op: event.Lost, Path: "/", Detail: "the file system is not there any more"}
		gone.finish(&e)
		if err := w.send(e); err != nil {
			return err
		}
		gone.close()
	}
	w.volumes = kept
	return w.start(ctx, fresh)
}

func sameSegment(a, b block.Segment) bool {
	return a.Start == b.Start && a.Len == b.Len && a.Stripe == b.Stripe && slices.Equal(a.Legs, b.Legs)
}
