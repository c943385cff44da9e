package vmscope_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
)

// TestWatchNewDisks has a guest make file systems and partitions on disks that are watched.
func TestWatchNewDisks(t *testing.T) {
	list := sets(t, "ext4")
	seed := freshSeed(t)
	g := fslab.Boot(t, "bookworm-cloud", list, seed, func(c *guestlab.Config) {
		path := filepath.Join(t.TempDir(), "blank")
		if !testing.Short() {
			guestlab.MakeImage(t, path, "raw", 96<<20)
		}
		c.Disks = append(c.Disks, guestlab.Disk{ID: "blank", Path: path})
	})
	start := g.PutPrograms(t.Context(), t, "mke2fs", "sfdisk")
	w := watchLive(t, g, vmscope.WatchOptions{}, 1)
	run := func(script string) {
		t.Helper()
		if out, err := g.Run(t.Context(), script); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	device, err := g.DiskDevice(t.Context(), "ext4")
	if err != nil {
		t.Fatal(err)
	}
	n := len(w.events())
	run(start + "mke2fs -q -F -t ext4 -b 1024 -U 11111111-2222-4333-8444-555555555555 " + device)
	w.wait("new file system", n, func(e *told) bool {
		return e.Op == event.Attached && strings.Contains(e.FS, "11111111-2222-4333-8444-555555555555")
	})
	if !slices.ContainsFunc(w.events()[n:], func(e told) bool { return e.Op == event.Lost && strings.Contains(e.FS, "5ea1ed00-") }) {
		t.Errorf("the old file system is not said to have gone:%s", w.show(n))
	}
	r := fslab.RunFSOps(t, g, "ext4", fslab.Options{Set: list[0], Seed: seed, Count: 100, Looks: 2, Watch: w.of("ext4")})
	t.Logf("%d events of the new file system, right after %v", r.Events, r.Late)

	if device, err = g.DiskDevice(t.Context(), "blank"); err != nil {
		t.Fatal(err)
	}
	n = len(w.events())
	run("printf 'label: gpt\\nsize=40MiB\\nsize=40MiB\\n' | " + start + "sfdisk -q " + device + " && " +
		start + "mke2fs -q -t ext4 " + device + "1 && " + start + "mke2fs -q -t ext2 " + device + "2 && mkdir -p /mnt/p1 && mount -t ext4 " + device + "1 /mnt/p1")
	name := w.disk["blank"]
	for _, part := range []string{"1 ", "2 "} {
		w.wait("partition "+part, n, func(e *told) bool { return e.Op == event.Attached && strings.HasPrefix(e.FS, name+part) })
	}
	w.settled(name)
	n = len(w.events())
	truth, err := g.FSTree(t.Context(), "/mnt/p1", false)
	if err != nil {
		t.Fatal(err)
	}
	replayer, err := fsoracle.New(truth)
	if err != nil {
		t.Fatal(err)
	}
	replayer.Adopt(truth)
	if _, err := g.FSOps(t.Context(), guestlab.FSOps{Dir: []byte("/mnt/p1"), Seed: seed, Count: 150, Sync: 20}); err != nil {
		t.Fatal(err)
	}
	run("sync")
	if truth, err = g.FSTree(t.Context(), "/mnt/p1", false); err != nil {
		t.Fatal(err)
	}
	w.settled(name)
	for _, e := range w.events()[n:] {
		if !strings.HasPrefix(e.FS, name+"1 ") || e.Op == event.Mount {
			continue
		}
		e.Seq = 0
		for _, f := range replayer.Apply(e.Event) {
			t.Error(f)
		}
	}
	for _, line := range replayer.Compare(truth) {
		t.Errorf("%s1: %s", name, line)
	}
}

// TestWatchLatency logs how long after the return of a guest's sync or fsync the event comes. Both times are the host's: the
// return is when the guest's answer arrives. An event that was there already counts as 0.
func TestWatchLatency(t *testing.T) {
	list := sets(t, "ext4", "fast-commit-6.1")
	g := fslab.Boot(t, "bookworm-cloud", list, 1, nil)
	w := watchLive(t, g, vmscope.WatchOptions{}, len(list))
	for _, s := range list {
		mount(t, g, s)
	}
	time.Sleep(time.Second)
	for _, s := range list {
		for how, script := range map[string]string{"sync": "echo x >%s; sync", "fsync": "dd if=/dev/zero of=%s bs=4k count=1 conv=fsync 2>/dev/null"} {
			const n = 60
			var late []time.Duration
			there := 0
			for i := range n {
				from := len(w.events())
				file := fmt.Sprintf("/%s%d", how, i)
				if _, err := g.Run(t.Context(), fmt.Sprintf(script, "/mnt/"+s.Name+file)); err != nil {
					t.Fatal(err)
				}
				returned := time.Now()
				e := w.wait(file, from, func(e *told) bool { return e.Path == file && e.Disk == w.disk[s.Name] })
				if d := e.at.Sub(returned); d > 0 {
					late = append(late, d)
				} else {
					late = append(late, 0)
					there++
				}
			}
			slices.Sort(late)
			t.Logf("%s, %s: event behind the return: median %v, 90 %% %v, max %v; %d of %d were there already", s.Name, how, late[n/2], late[n*9/10], late[n-1], there, n)
		}
	}
}
