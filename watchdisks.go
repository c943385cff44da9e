package vmscope

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmscope/block/tap"
	"vmscope/vm/qemu"
	"vmscope/watch"
)

// tapped are the taps of a machine's disks.
type tapped struct {
	target  string // as it was asked for
	machine string // the same for block/tap
	process string // its qemu.Process.Target: another may bear its name one day
	o       WatchOptions
	known   []tap.Disk // that were there at the last look; tapped or not

	mu      sync.Mutex
	taps    map[*tap.Tap]bool
	gone    []tap.Disk     // since then
	closing sync.WaitGroup // the taps of those
}

// attach taps the disks that are there.
func (t *tapped) attach(ctx context.Context) (disks []watch.Disk, err error) {
	p, err := qemu.Find(t.machine)
	if err != nil {
		return nil, err
	}
	t.process = p.Target()
	if t.known, err = tap.Disks(ctx, t.process); err != nil {
		return nil, err
	}
	for _, name := range t.o.Disks {
		if !slices.ContainsFunc(t.known, func(d tap.Disk) bool { return isDisk(d, name) }) {
			return nil, fmt.Errorf("%w: %q; 'vmscope disks %s' lists them", ErrNoDisk, name, t.target)
		}
	}
	for _, d := range t.known {
		wanted := len(t.o.Disks) == 0 && !d.ReadOnly || slices.ContainsFunc(t.o.Disks, func(name string) bool { return isDisk(d, name) })
		if !wanted {
			continue
		}
		w, err := t.tap(ctx, d)
		if err != nil {
			return nil, err
		}
		disks = append(disks, w)
	}
	if len(disks) == 0 {
		return nil, fmt.Errorf("%w: %s has none that it can write to", ErrNoDisk, t.target)
	}
	return disks, nil
}

func isDisk(d tap.Disk, name string) bool {
	return name != "" && (name == d.Name || name == "/dev/"+d.Name || name == d.ID || name == d.Node)
}

func (t *tapped) tap(ctx context.Context, d tap.Disk) (watch.Disk, error) {
	x, err := tap.AttachDisk(ctx, t.process, d, t.o.Tap)
	if err != nil {
		return watch.Disk{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taps[x] = true
	return watch.Disk{Name: d.Name, Source: x, Gone: func() { t.drop(x, d) }}, nil
}

// drop gives back what a tap holds whose disk is gone.
func (t *tapped) drop(x *tap.Tap, d tap.Disk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = append(t.gone, d)
	delete(t.taps, x)
	t.closing.Go(func() { x.Close() })
}

// plugEvery is how often a machine is asked for disks that it got.
const plugEvery = 3 * time.Second

// follow taps the disks that come, until the result is called.
func (t *tapped) follow(ctx context.Context, w *watch.Watch) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(plugEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				t.look(ctx, w)
			}
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// look taps the disks that came since the last look. Where nobody can tell, the next one will.
func (t *tapped) look(ctx context.Context, w *watch.Watch) {
	t.mu.Lock()
	// One that is there again is another.
	known := slices.DeleteFunc(t.known, func(d tap.Disk) bool { return slices.ContainsFunc(t.gone, d.Same) })
	t.gone = nil
	t.mu.Unlock()
	t.known = known
	wait, cancel := context.WithTimeout(ctx, plugEvery)
	defer cancel()
	now, came, err := tap.Plugged(wait, t.process, known)
	if err != nil {
		return
	}
	t.known = now
	for _, d := range came {
		if d.ReadOnly {
			continue
		}
		x, err := t.tap(ctx, d)
		if err == nil {
			err = w.Plug(x)
		}
		if err != nil && ctx.Err() == nil && t.o.Warn != nil {
			t.o.Warn(fmt.Errorf("%v was plugged in, and is not watched: %w", d, err))
		}
	}
}

func (t *tapped) close() error {
	t.closing.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	for x := range t.taps {
		err = errors.Join(err, x.Close())
	}
	return err
}
