package vmscope_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/internal/guestlab/fslab"
)

// TestWatchOverflow has a guest write more than the ring takes while nobody reads it.
func TestWatchOverflow(t *testing.T) {
	list := sets(t, "data-journal")
	seed := freshSeed(t)
	g := fslab.Boot(t, "bookworm-cloud", list, seed, nil)
	mount(t, g, list[0])
	// The operations of the first test may leave anything at a name that it used: each test has a directory of its own.
	heavy := func(t *testing.T, dir string, mib int) {
		t.Helper()
		out, err := g.Run(t.Context(), fmt.Sprintf("mkdir %[1]s && i=0 && while [ $i -lt %[2]d ]; do dd if=/dev/zero of=%[1]s/big bs=1M count=4 conv=fsync 2>&1 || exit 1; i=$((i+4)); done; echo $i >%[1]s/last",
			"/mnt/data-journal/"+dir, mib))
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	again := func(t *testing.T, events []event.Event) {
		t.Helper()
		lost := slices.IndexFunc(events, func(e event.Event) bool { return e.Op == event.Lost })
		if lost < 0 || !slices.ContainsFunc(events[lost:], func(e event.Event) bool { return e.Op == event.Attached }) {
			t.Errorf("no LOST with ATTACHED behind it among %d events", len(events))
		}
	}
	t.Run("slow reader", func(t *testing.T) {
		w := watchLive(t, g, vmscope.WatchOptions{Tap: tap.Options{RingSize: 1 << 20}}, 1)
		w.mu.Lock() // the next event waits, and all behind it
		heavy(t, "heavy-1", 24)
		w.mu.Unlock()
		w.wait("ATTACHED", 1, func(e *told) bool { return e.Op == event.Attached })
		w.settled(w.disk["data-journal"])
		var events []event.Event
		for _, e := range w.events() {
			events = append(events, e.Event)
		}
		again(t, events)
		if err := g.Unmount(t.Context(), "/mnt/data-journal"); err != nil {
			t.Fatal(err)
		}
		r := fslab.RunFSOps(t, g, "data-journal", fslab.Options{Set: list[0], Seed: seed, Count: 150, Looks: 2, Watch: w.of("data-journal")})
		t.Logf("%d events behind the loss, right after %v", r.Events, r.Late)
	})
	t.Run("stopped program", func(t *testing.T) {
		mount(t, g, list[0])
		program := filepath.Join(t.TempDir(), "vmscope")
		if out, err := exec.Command("go", "build", "-o", program, "./cmd/vmscope").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		c := exec.Command(program, "watch", g.Name(), "--json", "--disk-paths")
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Process.Kill()
		lines := make(chan event.Event, 1<<16)
		go func() {
			defer close(lines)
			for s := bufio.NewScanner(out); s.Scan(); {
				var row struct {
					Op   event.Op
					Path string
				}
				if err := json.Unmarshal(s.Bytes(), &row); err != nil {
					t.Errorf("%q: %v", s.Text(), err)
				}
				lines <- event.Event{Op: row.Op, Path: row.Path}
			}
		}()
		var all []event.Event
		until := func(what string, meant func(event.Event) bool) {
			t.Helper()
			for {
				select {
				case e, ok := <-lines:
					if !ok {
						t.Fatalf("ended before %s: %s", what, stderr.String())
					}
					all = append(all, e)
					if meant(e) {
						return
					}
				case <-time.After(30 * time.Second):
					t.Fatalf("no %s; stderr %q", what, stderr.String())
				}
			}
		}
		until("ATTACHED", func(e event.Event) bool { return e.Op == event.Attached })
		time.Sleep(500 * time.Millisecond)
		c.Process.Signal(syscall.SIGSTOP)
		heavy(t, "heavy-2", 100)
		c.Process.Signal(syscall.SIGCONT)
		until("LOST", func(e event.Event) bool { return e.Op == event.Lost })
		until("ATTACHED", func(e event.Event) bool { return e.Op == event.Attached })
		if _, err := g.Run(t.Context(), "mkdir /mnt/data-journal/behind; sync"); err != nil {
			t.Fatal(err)
		}
		until("MKDIR", func(e event.Event) bool { return e.Op == event.MkDir && e.Path == "/behind" })
		again(t, all)
		c.Process.Signal(syscall.SIGINT)
		if err := c.Wait(); err != nil && c.ProcessState.ExitCode() != 130 {
			t.Errorf("%v: %s", err, stderr.String())
		}
		if s := stderr.String(); s != "" {
			t.Logf("stderr: %s", s)
		}
		if err := g.Unmount(t.Context(), "/mnt/data-journal"); err != nil {
			t.Error(err)
		}
	})
}
