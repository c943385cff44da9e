package vmscope_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/internal/guestlab"
)

// liveWatch gathers what vmscope.Watch tells of all disks of a guest.
type liveWatch struct {
	testing.TB
	disk map[string]string // by what the lab calls it: the name that events bear
	stop func()

	mu  sync.Mutex
	all []told
}

// told is an event, and when it came.
type told struct {
	event.Event
	at time.Time
}

// watchLive attaches to all disks of a guest, and ends with the test. It returns when events of so many file systems come.
func watchLive(t testing.TB, g *guestlab.Guest, o vmscope.WatchOptions, systems int) *liveWatch {
	t.Helper()
	w := &liveWatch{TB: t, disk: map[string]string{}}
	disks, err := tap.Disks(t.Context(), g.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		w.disk[strings.TrimSuffix(d.Node, "-logged")] = d.Name
	}
	o.DiskPaths = true
	if o.Warn == nil {
		o.Warn = func(err error) { t.Logf("warning: %v", err) }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- vmscope.Watch(ctx, "qemu:"+g.Name(), o, func(e event.Event) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if n := len(w.all); e.Seq != uint64(n)+1 {
				t.Errorf("event %d has number %d", n+1, e.Seq)
			}
			w.all = append(w.all, told{e, time.Now()})
			return nil
		})
	}()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("the watch ended with %v", err)
			}
		})
	}
	t.Cleanup(w.stop)
	w.wait("ATTACHED", 0, func(*told) bool { return w.count(event.Attached, "") >= systems })
	return w
}

// wait gives the first event behind the first n that is meant, within 20 s.
func (w *liveWatch) wait(what string, n int, meant func(*told) bool) told {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		list := w.events()
		for i := min(n, len(list)); i < len(list); i++ {
			if meant(&list[i]) {
				return list[i]
			}
		}
	}
	w.Fatalf("no %s among %s", what, w.show(n))
	return told{}
}

func (w *liveWatch) events() []told {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[:len(w.all):len(w.all)]
}

func (w *liveWatch) show(n int) string {
	var b strings.Builder
	list := w.events()
	for _, e := range list[max(min(n, len(list)), len(list)-30):] {
		fmt.Fprintf(&b, "\n%d %s %s %s %q %q inode %d tid %d %s %s", e.Seq, e.Disk, e.FS, e.Op, e.OldPath, e.Path, e.Inode, e.TID, e.Source, e.Detail)
	}
	return b.String()
}

func (w *liveWatch) count(op event.Op, disk string) (n int) {
	for _, e := range w.events() {
		if e.Op == op && (disk == "" || e.Disk == disk) {
			n++
		}
	}
	return n
}

// of begins to take the events of one disk (as the lab calls it): for fslab.Options.Watch.
func (w *liveWatch) of(disk string) func(testing.TB, string) func() []event.Event {
	return func(tb testing.TB, _ string) func() []event.Event {
		tb.Helper()
		name, ok := w.disk[disk]
		if !ok {
			tb.Fatalf("no disk %q among %q", disk, w.disk)
		}
		w.settled(name)
		next := len(w.events())
		return func() (out []event.Event) {
			list := w.events()
			for ; next < len(list); next++ {
				switch e := list[next].Event; {
				case e.Disk != name && e.Op != event.Lost || e.Op == event.Mount || e.Op == event.Unmount:
				case e.Op == event.Lost || e.Op == event.Attached:
					tb.Errorf("%s %s: %s", e.Disk, e.Op, e.Detail)
				default:
					e.Seq = 0 // all disks are numbered as one
					out = append(out, e)
				}
			}
			return out
		}
	}
}

// settled waits until nothing has come of a disk for a while.
func (w *liveWatch) settled(name string) {
	for last := -1; ; time.Sleep(150 * time.Millisecond) {
		n := 0
		for _, e := range w.events() {
			if e.Disk == name {
				n++
			}
		}
		if n == last {
			return
		}
		last = n
	}
}

// freshSeed is another one for each run, unless VMSCOPE_SEED tells.
func freshSeed(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano()) % (1 << 48) // as much as a UUID of mke2fs takes
	if text := os.Getenv("VMSCOPE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VMSCOPE_SEED=%d", seed)
	return seed
}
