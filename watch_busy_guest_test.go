package vmscope_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
	"vmscope/vm/qemu"
)

// monitor has QEMU do something.
func monitor(t testing.TB, g *guestlab.Guest, command string) {
	t.Helper()
	p, err := qemu.Find(g.Name())
	if err != nil {
		t.Error(err)
		return
	}
	m, err := p.Monitor(context.Background())
	if err == nil {
		defer m.Close()
		_, err = m.Run(context.Background(), command, nil)
	}
	if err != nil {
		t.Errorf("%s: %v", command, err)
	}
}

// diskTree is the tree on a disk of a guest that stands still, as it would be after a recovery of the journal.
func diskTree(t testing.TB, g *guestlab.Guest, disk string) (tree []guestlab.File) {
	t.Helper()
	looks, err := tap.LookAt(t.Context(), g.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range looks {
		defer l.Close()
	}
	i := slices.IndexFunc(looks, func(l *tap.Look) bool { return l.Disk.Node == disk })
	v, err := ext4.Open(looks[i])
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	err = v.Walk("/", func(path string, in *ext4.Inode, err error) error {
		if err != nil {
			return err
		}
		a := in.Attr()
		f := guestlab.File{
			Path: []byte(path), Inode: uint64(in.Number), Generation: in.Generation, Kind: string(a.Kind), Mode: a.Mode, UID: a.UID, GID: a.GID,
			Size: a.Size, Nlink: a.Nlink, Device: in.Rdev(),
		}
		if a.Kind != event.CharDev && a.Kind != event.BlockDev {
			f.Device = 0
		}
		if a.Kind == event.Lnk {
			target, err := v.Target(in)
			if err != nil {
				return err
			}
			f.Target = []byte(target)
		}
		tree = append(tree, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// leadsTo says what is wrong with events of a disk that began at some unknown moment: what they told last of a path must
// be so in the tree.
func leadsTo(tree []guestlab.File, events []told) (wrong []string) {
	last := map[string]uint64{} // inode, 0 for a path that went
	for _, e := range events {
		switch e.Op {
		case event.RmFile, event.RmDir:
			last[e.Path] = 0
		case event.Rename:
			if strings.Contains(e.Detail, "exchange") { // one of several that happen at once: what lies below is not followed
				for p := range last {
					if strings.HasPrefix(p, e.OldPath+"/") || strings.HasPrefix(p, e.Path+"/") {
						delete(last, p)
					}
				}
				last[e.Path] = e.Inode
				continue
			}
			maps.DeleteFunc(last, func(p string, _ uint64) bool { return strings.HasPrefix(p, e.Path+"/") }) // of a directory that was there before
			for p, ino := range maps.Clone(last) {
				if rest, ok := strings.CutPrefix(p, e.OldPath+"/"); ok && ino != 0 {
					last[p], last[e.Path+"/"+rest] = 0, ino
				}
			}
			last[e.OldPath], last[e.Path] = 0, e.Inode
		case event.Attached, event.Mount, event.Unmount:
		default:
			last[e.Path] = e.Inode
		}
	}
	there := map[string]uint64{}
	for _, f := range tree {
		there[string(f.Path)] = f.Inode
	}
	for p, ino := range last {
		if there[p] != ino {
			wrong = append(wrong, p)
		}
	}
	return wrong
}

// TestWatchBusy attaches to disks that the guest is writing to. Once events come, the guest is stopped for a moment, so that
// there is a tree to begin with; what comes from then on must be exact, and what came before must lead to that tree.
func TestWatchBusy(t *testing.T) {
	list := sets(t, "ext4", "small-journal", "fast-commit-6.1", "data-journal", "ext3")
	for i := range list {
		list[i].Ops.Sync = 10 // commits while it attaches
	}
	seed := freshSeed(t)
	g := fslab.Boot(t, "bookworm-cloud", list, seed, nil)
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			var tree []guestlab.File
			var before int
			r := fslab.RunFSOps(t, g, s.Name, fslab.Options{
				Set: s, Seed: seed, Count: 300, Looks: 1, Workers: 2, Busy: true, Start: func() []guestlab.File { return tree },
				Watch: func(tb testing.TB, dir string) func() []event.Event {
					w := watchLive(t, g, vmscope.WatchOptions{Disks: []string{s.Name}}, 1)
					time.Sleep(time.Duration(seed%200) * time.Millisecond)
					monitor(t, g, "stop")
					defer monitor(t, g, "cont")
					events := w.of(s.Name)(tb, dir) // waits until all is told
					early := w.events()
					before = len(early) - 1
					tree = diskTree(t, g, s.Name)
					if wrong := leadsTo(tree, early); len(wrong) > 0 {
						t.Errorf("told before the guest was stopped, but not so: %q, among%s", wrong, w.show(0))
					}
					return events
				},
			})
			t.Logf("%d events before and %d after, from a tree of %d; right after %v", before, r.Events, len(tree), r.Late)
		})
	}
}

// TestWatchPowerLoss kills a guest that is writing, watches the next one from before it mounts the disks, and resets that
// while it is writing: recoveries of journals.
func TestWatchPowerLoss(t *testing.T) {
	list := sets(t, "ext4", "small-journal", "fast-commit-6.1")
	seed := freshSeed(t)
	g := fslab.Boot(t, "bookworm-cloud", list, seed, nil)
	work(t, g, list, seed)
	if err := syscall.Kill(g.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.Exited()
	g = guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", Disks: g.Config().Disks, AllowReboot: true})
	trees := map[string][]guestlab.File{}
	for _, s := range list {
		trees[s.Name] = diskTree(t, g, s.Name)
	}
	w := watchLive(t, g, vmscope.WatchOptions{}, len(list))
	from := map[string]int{}
	check := func(s fslab.Set) { // all events since the tree that there was, up to now
		t.Helper()
		truth, err := g.FSTree(t.Context(), "/mnt/"+s.Name, false)
		if err != nil {
			t.Fatal(err)
		}
		r, err := fsoracle.New(trees[s.Name])
		if err != nil {
			t.Fatal(err)
		}
		list := w.events()
		n := 0
		for _, e := range list[from[s.Name]:] {
			if e.Disk != w.disk[s.Name] || e.Op == event.Mount || e.Op == event.Unmount || e.Op == event.Attached && from[s.Name] == 0 {
				continue
			}
			e.Seq = 0
			n++
			for _, f := range r.Apply(e.Event) {
				t.Errorf("%s: %s", s.Name, f)
			}
		}
		r.Recovered(truth)
		for _, line := range r.Compare(truth) {
			t.Errorf("%s after recovery: %s", s.Name, line)
		}
		t.Logf("%s: %d events before and at recovery, a tree of %d", s.Name, n, len(truth))
		trees[s.Name], from[s.Name] = truth, len(list)
	}
	for round := range 2 {
		for _, s := range list {
			watch := func(tb testing.TB, dir string) func() []event.Event {
				events := w.of(s.Name)(tb, dir)
				check(s)
				return events
			}
			r := fslab.RunFSOps(t, g, s.Name, fslab.Options{Set: s, Seed: seed + uint64(round), Count: 150, Looks: 1, Watch: watch})
			t.Logf("%s: %d events, right after %v", s.Name, r.Events, r.Late)
		}
		if round == 1 {
			break
		}
		for _, s := range list {
			device := mount(t, g, s)
			w.settled(w.disk[s.Name])
			truth, err := g.FSTree(t.Context(), "/mnt/"+s.Name, false)
			if err != nil {
				t.Fatal(device, err)
			}
			trees[s.Name], from[s.Name] = truth, len(w.events())
		}
		cancel := work(t, g, list, seed+2)
		monitor(t, g, "system_reset")
		cancel()
		time.Sleep(time.Second) // no answer of the old kernel is under way
		if err := g.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// mount mounts a set's disk where RunFSOps does.
func mount(t testing.TB, g *guestlab.Guest, s fslab.Set) (device string) {
	t.Helper()
	device, err := g.DiskDevice(t.Context(), s.Name)
	if err == nil {
		err = g.Mount(t.Context(), device, "/mnt/"+s.Name, "ext4", s.Mount)
	}
	if err != nil {
		t.Fatal(err)
	}
	return device
}

// work has a guest write to all disks, and returns amid of it.
func work(t testing.TB, g *guestlab.Guest, list []fslab.Set, seed uint64) (cancel func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for _, s := range list {
		if out, err := g.Run(t.Context(), "grep -q ' /mnt/"+s.Name+" ' /proc/mounts || echo no"); err != nil {
			t.Fatal(err)
		} else if out != "" {
			mount(t, g, s)
		}
		ops := s.Ops
		ops.Dir, ops.Seed, ops.Count, ops.Sync, ops.Fsync = []byte("/mnt/"+s.Name), seed, 1e6, 20, 5
		go g.FSOps(ctx, ops) // ends with the guest
	}
	time.Sleep(2 * time.Second)
	return cancel
}
