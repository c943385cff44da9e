package fslab_test

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
)

// TestFollowedLog infers from the log of writes that QEMU keeps, while the guest writes. VMSCOPE_KEEP names a directory
// for recordings of what goes wrong.
func TestFollowedLog(t *testing.T) {
	var sets []fslab.Set
	for _, s := range fslab.Sets() {
		if slices.Contains([]string{"ext4", "small-journal", "fast-commit-6.1", "ext2-1k"}, s.Name) {
			sets = append(sets, s)
		}
	}
	bases := map[string]string{}
	logs := map[string]string{}
	g := fslab.Boot(t, "bookworm-cloud", sets, 1, func(cfg *guestlab.Config) {
		for i := range cfg.Disks {
			d := &cfg.Disks[i]
			data, err := os.ReadFile(d.Path)
			if err == nil {
				err = os.WriteFile(d.Path+".base", data, 0o644)
			}
			if err != nil && !testing.Short() {
				t.Fatal(err)
			}
			d.Log = d.Path + ".log"
			bases[d.ID], logs[d.ID] = d.Path+".base", d.Log
		}
	})
	seed := uint64(time.Now().UnixNano())
	for _, s := range sets {
		t.Run(s.Name, func(t *testing.T) {
			r := fslab.RunFSOps(t, g, s.Name, fslab.Options{Set: s, Seed: seed, Count: 100, Looks: 2, Workers: 2, Keep: os.Getenv("VMSCOPE_KEEP"), Base: bases[s.Name], Watch: func(tb testing.TB, dir string) func() []event.Event {
				return follow(tb, logs[s.Name], bases[s.Name])
			}})
			t.Logf("seed %d: %d events, trees right after %v", seed, r.Events, r.Late)
		})
	}
}

// follow gathers the events of a log that grows, from its start on.
func follow(tb testing.TB, log, base string) func() []event.Event {
	dev, err := block.OpenFile(base)
	if err != nil {
		tb.Fatal(err)
	}
	r, err := logwrites.Open(log, dev, logwrites.Options{Follow: true})
	if err != nil {
		tb.Fatal(err)
	}
	fs, err := ext4.Attach(r.Device())
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		wg.Wait()
		r.Close()
	})
	var mu sync.Mutex // guards what follows, and fs
	var waiting []event.Event
	var last time.Time // when something was written
	take := func(list []event.Event, err error) {
		if err != nil {
			tb.Error(err)
		}
		for _, e := range list {
			if e.Op != event.Mount && e.Op != event.Unmount {
				waiting = append(waiting, e)
			}
		}
	}
	if err := fs.CrawlAll(ctx); err != nil {
		tb.Fatal(err)
	}
	wg.Go(func() {
		for w, err := range r.Writes(ctx) {
			if err != nil {
				return // the test is over
			}
			mu.Lock()
			last = time.Now()
			w.Time = last
			take(fs.Apply(w))
			mu.Unlock()
		}
	})
	return func() []event.Event {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) > 50*time.Millisecond {
			take(fs.Quiet(now))
		}
		list := waiting
		waiting = nil
		return list
	}
}
