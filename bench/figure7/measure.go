package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"vmscope"
	"vmscope/bench/sample"
	"vmscope/event"
	"vmscope/internal/guestlab"
	"vmscope/watch"
)

// config says what to measure. A round is one sample of each number and mode.
type config struct {
	sample.Options
	numbers []int
}

const (
	diskSize = 256 << 20
	// settle is left between two samples, so that what follows the one (the other side of a mirror, inference) does not count
	// for the next.
	settle = 30 * time.Millisecond
	// patience is how long to wait for what must come.
	patience = 10 * time.Second
	// where the files are made, in the guest and on the disk.
	mountPoint = "/mnt/%s"
	directory  = "/dir"
)

// measure boots a guest and takes all samples. Beside an error it gives those that are good; nil if it did not come to that.
func measure(ctx context.Context, c config) (*result, error) {
	tmp, err := os.MkdirTemp(c.Dir, "vmscope-figure7-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	cfg := guestlab.Config{Kernel: c.Kernel, Modules: []string{"ext4"}}
	for m := range modes {
		d := guestlab.Disk{ID: fmt.Sprint("disk", int(m)), Path: filepath.Join(tmp, fmt.Sprint("disk", int(m)))}
		if err := errors.Join(guestlab.MakeExt(d.Path, diskSize, sample.Ext4...), sample.Fill(d.Path)); err != nil {
			return nil, err
		}
		cfg.Disks = append(cfg.Disks, d)
	}
	g, err := guestlab.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if _, err := g.Run(ctx, sample.QuietGuest); err != nil {
		return nil, err
	}
	for _, d := range cfg.Disks {
		dev, err := g.DiskDevice(ctx, d.ID)
		if err == nil {
			err = g.Mount(ctx, dev, fmt.Sprintf(mountPoint, d.ID), "ext4", sample.MountOptions)
		}
		if err == nil {
			_, err = g.Run(ctx, "mkdir "+fmt.Sprintf(mountPoint, d.ID)+directory)
		}
		if err != nil {
			return nil, err
		}
	}
	res := newResult(c.numbers)
	// The first samples find cold caches on both sides: one round does not count.
	for round := -1; round < c.Rounds; round++ {
		into := res
		if round < 0 {
			into = newResult(c.numbers)
		}
		err := oneRound(ctx, g, cfg.Disks, round+1, into)
		if ctx.Err() != nil {
			break // what there is counts
		}
		if round < 0 {
			res.failed = into.failed
		}
		if err != nil { // the watch has ended, or worse
			res.failed = append(res.failed, fmt.Errorf("round %d: %w", round, err))
			_, err = g.Run(ctx, fmt.Sprintf("rm -f "+mountPoint+directory+"/*; sync", "*"))
		}
		if err != nil || len(res.failed) > maxFailed {
			break
		}
		c.Round(round + 1)
	}
	return res, errors.Join(res.failed...)
}

// maxFailed samples or rounds end the run: more would tell nothing new.
const maxFailed = 10

// oneRound gives the disks their modes and takes one sample of each number in each.
func oneRound(ctx context.Context, g *guestlab.Guest, disks []guestlab.Disk, round int, res *result) (err error) {
	var watchers [modes]*watcher
	defer func() {
		for _, w := range watchers {
			err = errors.Join(err, w.stop())
		}
	}()
	disk := func(m mode) string { return disks[(int(m)+round)%len(disks)].ID }
	for m := tapped; m < modes; m++ {
		if watchers[m], err = startWatcher(ctx, g, disk(m), m); err != nil {
			return err
		}
	}
	for _, i := range rand.Perm(len(res.numbers)) {
		var took [modes]time.Duration
		var lag, late time.Duration
		whole := true
		for _, k := range rand.Perm(int(modes)) {
			m := mode(k)
			dir := fmt.Sprintf(mountPoint, disk(m)) + directory
			for _, what := range []string{"create", "remove"} {
				d, err := fill(ctx, g, watchers[m], what, dir, res.numbers[i])
				if err != nil {
					err = fmt.Errorf("%s %d files, %v: %w", what, res.numbers[i], m, err)
				}
				if wrong := (eventsError{}); errors.As(err, &wrong) {
					res.failed, whole = append(res.failed, err), false
				} else if err != nil {
					return err
				}
				if what == "create" {
					took[m] = d
				}
			}
			if m == watched {
				lag, late = time.Duration(watchers[m].lag.Load()), watchers[m].late()
			}
		}
		if !whole {
			continue
		}
		for m := range modes {
			res.samples[i][m] = append(res.samples[i][m], took[m])
		}
		res.lags, res.lates = append(res.lags, lag), append(res.lates, late)
	}
	return nil
}

// eventsError says that another number of events was told than there were: that sample, and those of the other modes beside
// it, do not count, and the run has failed.
type eventsError struct{ got int64 }

func (e eventsError) Error() string { return fmt.Sprintf("%d events were told", e.got) }

// fill has the guest make or remove files, and waits until all of that was told where it is watched.
func fill(ctx context.Context, g *guestlab.Guest, w *watcher, what, dir string, n int) (time.Duration, error) {
	seen := w.count()
	took, err := g.Load(ctx, guestlab.Load{Kind: what, Path: dir, N: n})
	if err != nil {
		return 0, err
	}
	if w != nil && what == "create" {
		w.synced = time.Now()
	}
	for began := time.Now(); w.tells() && w.count() < seen+int64(n) && time.Since(began) < patience; time.Sleep(time.Millisecond) {
		select {
		case err := <-w.done:
			w.done <- err
			return 0, fmt.Errorf("the watch ended: %w", err)
		default:
		}
	}
	time.Sleep(settle)
	if got := w.count() - seen; w.tells() && got != int64(n) {
		return 0, eventsError{got}
	}
	return took, nil
}

// watcher is a watch of one disk. A nil watcher is none.
type watcher struct {
	mode   mode
	cancel context.CancelFunc
	done   chan error
	events atomic.Int64              // MKFILE and RMFILE
	lag    atomic.Int64              // from the last MKFILE's commit on disk to its event, in ns
	told   atomic.Pointer[time.Time] // of that event
	synced time.Time                 // when the guest said that all files are made and its sync has returned
}

// late is how long behind that the last of the files was told; 0 if it was before.
func (w *watcher) late() time.Duration {
	if told := w.told.Load(); told != nil {
		return max(0, told.Sub(w.synced))
	}
	return 0
}

// startWatcher returns when the watch is complete.
func startWatcher(ctx context.Context, g *guestlab.Guest, disk string, m mode) (*watcher, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{mode: m, cancel: cancel, done: make(chan error, 2)}
	path := directory
	if m == tapped {
		path = "/elsewhere"
	}
	o := vmscope.WatchOptions{Options: watch.Options{Paths: []string{path}, Warn: w.warn}, Disks: []string{disk}, DiskPaths: true}
	attached := make(chan struct{}, 1)
	go func() {
		w.done <- vmscope.Watch(ctx, g.Name(), o, func(e event.Event) error {
			switch e.Op {
			case event.Attached:
				select {
				case attached <- struct{}{}:
				default:
				}
			case event.MkFile:
				now := time.Now()
				w.told.Store(&now)
				w.lag.Store(int64(now.Sub(e.Time)))
				w.events.Add(1)
			case event.RmFile:
				w.events.Add(1)
			case event.Lost:
				return fmt.Errorf("events were lost: %s", e.Detail)
			}
			return nil
		})
	}()
	select {
	case <-attached:
		time.Sleep(settle)
		return w, nil
	case err := <-w.done:
		cancel()
		return nil, err
	case <-time.After(patience):
		cancel()
		return nil, errors.New("no ATTACHED came")
	}
}

// warn makes what the watch says beside the events an error of the run.
func (w *watcher) warn(err error) {
	w.cancel()
	select {
	case w.done <- err:
	default:
	}
}

func (w *watcher) tells() bool { return w != nil && w.mode == watched }

func (w *watcher) count() int64 {
	if w == nil {
		return 0
	}
	return w.events.Load()
}

func (w *watcher) stop() error {
	if w == nil {
		return nil
	}
	w.cancel()
	if err := <-w.done; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
