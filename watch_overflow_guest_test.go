package vmscope_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
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
		out, err := g.Run(t.Context(), fmt.Sprintf("mkdir %[1]s && i=0 && while [ $i -lt %[2]d ]; do dd if=/dev/zero of=%[1]s/big bs=1M count=4 conv=fsync 2>&1 || exit 1; i=$((i+4)); done; echo $i >%[1]s/last; sync",
			"/mnt/data-journal/"+dir, mib))
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Run("slow reader", func(t *testing.T) {
		w := watchLive(t, g, vmscope.WatchOptions{Tap: tap.Options{RingSize: 1 << 20}}, 1)
		tree := func() []guestlab.File {
			t.Helper()
			if _, err := g.Run(t.Context(), "sync"); err != nil {
				t.Fatal(err)
			}
			tree, err := g.FSTree(t.Context(), "/mnt/data-journal", false)
			if err != nil {
				t.Fatal(err)
			}
			return fsoracle.WithoutDirHash(tree)
		}
		ops := list[0].Ops
		ops.Dir, ops.Seed, ops.Count = []byte("/mnt/data-journal"), seed, 100
		operate := func() {
			t.Helper()
			if _, err := g.FSOps(t.Context(), ops); err != nil {
				t.Error(err)
			}
			ops.First, ops.Prepare = ops.First+ops.Count, nil
		}
		w.settled(w.disk["data-journal"])
		start := tree()
		replayer, err := fsoracle.New(start)
		if err != nil {
			t.Fatal(err)
		}
		replayer.Adopt(start)
		next, counts := 1, map[event.Source]int{} // behind ATTACHED
		right := func() {
			t.Helper()
			truth := tree()
			var wrong []string
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				for list := w.events(); next < len(list); next++ {
					e := list[next].Event
					counts[e.Source]++
					for _, f := range replayer.Apply(e) {
						if e.Op == event.Lost && strings.HasPrefix(f.Why, "events were lost") {
							t.Log(f)
							continue
						}
						t.Error(f)
					}
				}
				if wrong = replayer.Compare(truth); len(wrong) == 0 {
					replayer.Adopt(truth)
					return
				}
			}
			t.Errorf("not the guest's tree: %q after %s", wrong, w.show(0))
		}
		operate()
		right()
		for range 2 {
			w.mu.Lock() // the next event waits, and all behind it
			func() {
				defer w.mu.Unlock()
				operate()
				heavy(t, fmt.Sprintf("heavy-%d", ops.First), 24)
				operate()
			}()
			before := counts[event.Resync]
			right()
			if counts[event.Resync] == before {
				t.Errorf("nothing was told behind the loss: %s", w.show(0))
			}
			operate()
			right()
		}
		t.Logf("events by source: %v", counts)
		if err := g.Unmount(t.Context(), "/mnt/data-journal"); err != nil {
			t.Fatal(err)
		}
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
					Op           event.Op
					Path, Detail string
					Source       event.Source
				}
				if err := json.Unmarshal(s.Bytes(), &row); err != nil {
					t.Errorf("%q: %v", s.Text(), err)
				}
				lines <- event.Event{Op: row.Op, Path: row.Path, Detail: row.Detail, Source: row.Source}
			}
		}()
		until := func(what string, meant func(event.Event) bool) {
			t.Helper()
			for {
				select {
				case e, ok := <-lines:
					if !ok {
						t.Fatalf("ended before %s: %s", what, stderr.String())
					}
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
		heavy(t, "heavy", 100)
		c.Process.Signal(syscall.SIGCONT)
		until("LOST", func(e event.Event) bool { return e.Op == event.Lost })
		until("what was lost", func(e event.Event) bool {
			return e.Op == event.MkFile && e.Path == "/heavy/last" && e.Source == event.Resync
		})
		until("ATTACHED", func(e event.Event) bool { return e.Op == event.Attached })
		if _, err := g.Run(t.Context(), "mkdir /mnt/data-journal/behind; sync"); err != nil {
			t.Fatal(err)
		}
		until("MKDIR", func(e event.Event) bool { return e.Op == event.MkDir && e.Path == "/behind" })
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
