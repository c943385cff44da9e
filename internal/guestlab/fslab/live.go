package fslab

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
)

// Journalled reports whether the set's file systems have a journal: only then is each single event exact.
func (s *Set) Journalled() bool {
	return s.Type != "ext2" && !slices.Contains(s.Mke2fs, "^has_journal")
}

// encrypts reports whether the set has encrypted directories, of which only somebody without the key speaks here.
func (s *Set) encrypts() bool {
	return slices.ContainsFunc(s.Ops.Prepare, func(d guestlab.KeptDir) bool { return d.Encrypt })
}

// Boot boots a guest with a disk for each set, which bears the set's name. The test's own changes to the configuration,
// if any, are made last.
func Boot(tb testing.TB, kernel string, sets []Set, seed uint64, change func(*guestlab.Config)) *guestlab.Guest {
	tb.Helper()
	cfg := guestlab.Config{Kernel: kernel, Modules: cryptoModules}
	dir := tb.TempDir()
	for _, s := range sets {
		if s.After != "" {
			tb.Fatalf("set %s starts with a recording", s.Name)
		}
		path := filepath.Join(dir, s.Name+".img")
		if !testing.Short() {
			guestlab.MakeFS(tb, path, s.size(), s.mke2fs(seed)...)
		}
		cfg.Disks = append(cfg.Disks, guestlab.Disk{ID: s.Name, Path: path})
	}
	if change != nil {
		change(&cfg)
	}
	return guestlab.Boot(tb, cfg)
}

// cryptoModules are what encryption of files needs, where it is not built in.
var cryptoModules = []string{"xts", "cts", "sha512_generic"}

// Options is what RunFSOps does.
type Options struct {
	Set   Set
	Seed  uint64
	Count int // operations between two looks; default 250
	Looks int // default 4

	// Workers is how many do Count operations each at the same time, in the same directories; default 1. More than one does
	// not do the same again under the same seed.
	Workers int

	// Watch begins to gather events of the file system, which is mounted at dir and quiet. What it returns gives the events
	// that came since it was asked last, without waiting for any.
	Watch func(tb testing.TB, dir string) (events func() []event.Event)

	// Busy has operations going on while Watch begins. Start must then tell the tree that the events begin with, as the
	// watch knows it, since no moment is known at which the guest could be asked.
	Busy  bool
	Start func() []guestlab.File

	Patience time.Duration // for events after the guest's sync has returned; default 10 s
	Tell     bool          // log each operation

	// Keep is a directory in which a run that fails is kept as a recording, named by set and seed, where the disk has a
	// log of writes (guestlab.Disk.Log) that began when it held what the file Base holds.
	Keep, Base string
}

// Result is how a run went. A run that is right has no findings.
type Result struct {
	Events   int
	Findings []string
	// Late is for each look the time from the return of the guest's sync, with the time that asking the guest for its tree
	// takes, until the events made that tree.
	Late []time.Duration
}

// RunFSOps has a guest do random operations on a disk, replays the events that a watch tells, and compares the trees
// after each sync. Findings fail the test.
func RunFSOps(tb testing.TB, g *guestlab.Guest, disk string, o Options) Result {
	tb.Helper()
	r := &live{TB: tb, Options: o, guest: g, dir: "/mnt/" + disk}
	r.Workers = max(o.Workers, 1)
	r.Count, r.Looks, r.Patience = cmp.Or(o.Count, 250), cmp.Or(o.Looks, 4), cmp.Or(o.Patience, 10*time.Second)
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Minute)
	defer cancel()
	err := r.run(ctx, disk)
	if (err != nil || len(r.result.Findings) > 0) && o.Keep != "" {
		if kept, err := r.keep(disk); err != nil {
			tb.Errorf("keep the recording: %v", err)
		} else {
			tb.Logf("recording kept in %s", kept)
		}
	}
	if err != nil {
		tb.Fatalf("%s, seed %d: %v", o.Set.Name, o.Seed, err)
	}
	for i, f := range r.result.Findings {
		if i == 20 {
			tb.Errorf("%s, seed %d: … %d findings", o.Set.Name, o.Seed, len(r.result.Findings))
			break
		}
		tb.Errorf("%s, seed %d: %s", o.Set.Name, o.Seed, f)
	}
	return r.result
}

type live struct {
	testing.TB
	Options
	guest    *guestlab.Guest
	dir      string
	replayer *fsoracle.Replayer
	events   func() []event.Event
	points   []fsoracle.Point // for keep
	result   Result
}

func (r *live) run(ctx context.Context, disk string) error {
	device, err := r.guest.DiskDevice(ctx, disk)
	if err != nil {
		return err
	}
	if err := r.guest.Mount(ctx, device, r.dir, r.Set.fstype(), r.Set.Mount); err != nil {
		return err
	}
	ops := r.Set.Ops
	ops.Dir, ops.Seed, ops.Count, ops.Sync, ops.Tell = []byte(r.dir), r.Set.seed(r.Seed), r.Count, cmp.Or(ops.Sync, syncs(r.Seed)), r.Tell
	first := make(chan error, 1)
	if r.Busy {
		go func() { first <- r.operate(ctx, ops) }()
		time.Sleep(300 * time.Millisecond) // amid the operations, wherever that is
	} else if err := r.begin(ctx); err != nil {
		return err
	}
	r.events = r.Watch(r.TB, r.dir)
	if r.Busy {
		if r.replayer, err = fsoracle.New(r.Start()); err != nil {
			return err
		}
	} else {
		go func() { first <- r.operate(ctx, ops) }()
	}
	for look := range r.Looks {
		if look == 0 {
			err = <-first
		} else {
			err = r.operate(ctx, ops)
		}
		if err == nil {
			err = r.look(ctx)
		}
		if err != nil {
			return err
		}
		ops.First, ops.Prepare = ops.First+ops.Count, nil
	}
	if err := r.guest.Unmount(ctx, r.dir); err != nil {
		return err
	}
	r.take()
	return nil
}

// begin asks the guest for the tree that the events begin with.
func (r *live) begin(ctx context.Context) error {
	if _, err := r.guest.Run(ctx, "sync"); err != nil {
		return err
	}
	tree, err := r.tree(ctx)
	if err != nil {
		return err
	}
	if r.replayer, err = fsoracle.New(tree); err != nil {
		return err
	}
	r.replayer.Adopt(tree)
	return r.point("mounted", tree)
}

// log is the log of the disk's writes; "" if there is none.
func (r *live) log() string {
	for _, d := range r.guest.Config().Disks {
		if r.dir == "/mnt/"+d.ID {
			return d.Log
		}
	}
	return ""
}

func (r *live) point(what string, tree []guestlab.File) error {
	if r.Keep == "" {
		return nil
	}
	n, err := guestlab.LogEntries(r.log())
	r.points = append(r.points, fsoracle.Point{Entries: n, What: what, Tree: tree})
	return err
}

// keep writes what happened as a recording.
func (r *live) keep(disk string) (dir string, err error) {
	dir = filepath.Join(r.Keep, fmt.Sprintf("%s-%d", disk, r.Seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	rec := fsoracle.Recording{Points: r.points, Meta: fsoracle.Meta{
		Name: r.Set.Name, About: "a run that failed", Kernel: r.guest.Config().Kernel, Release: r.guest.Kernel().Release, Size: r.Set.size(),
		Mke2fs: r.Set.mke2fs(r.Seed), Type: r.Set.fstype(), Options: r.Set.Mount,
	}}
	for to, from := range map[string]string{"base.img": r.Base, "log": r.log()} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), data, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	return dir, rec.WriteTold(dir)
}

func (r *live) operate(ctx context.Context, ops guestlab.FSOps) error {
	lists, err := operate(ctx, r.guest, ops, r.Workers)
	for i, list := range lists {
		if r.Tell {
			r.Logf("operations of worker %d:\n%s", i, list)
		}
	}
	return err
}

func (r *live) tree(ctx context.Context) ([]guestlab.File, error) {
	tree, err := r.guest.FSTree(ctx, r.dir, r.Set.encrypts())
	return fsoracle.WithoutDirHash(tree), err
}

// take replays the events that there are.
func (r *live) take() {
	for _, e := range r.events() {
		e.Path, e.OldPath = r.inside(e.Path), r.inside(e.OldPath)
		r.result.Events++
		for _, f := range r.replayer.Apply(e) {
			if r.Set.Journalled() {
				r.result.Findings = append(r.result.Findings, f.String())
			}
		}
	}
}

// inside is a path as the file system on the disk has it, where a watch puts the mount point before it.
func (r *live) inside(path string) string {
	if rest, ok := strings.CutPrefix(path, r.dir); ok && (rest == "" || rest[0] == '/') {
		return cmp.Or(rest, "/")
	}
	return path
}

// look compares the tree with the guest's, after a sync.
func (r *live) look(ctx context.Context) error {
	if _, err := r.guest.Run(ctx, "sync"); err != nil {
		return err
	}
	synced := time.Now()
	truth, err := r.tree(ctx)
	if err == nil {
		err = r.point("synced", truth)
	}
	if err != nil {
		return err
	}
	for {
		r.take()
		lines := r.replayer.Compare(truth)
		if len(lines) == 0 {
			break
		}
		if time.Since(synced) > r.Patience {
			r.result.Findings = append(r.result.Findings, lines...)
			return fmt.Errorf("the tree differs %v after the sync: %s", r.Patience, strings.Join(r.result.Findings[:min(20, len(r.result.Findings))], "\n"))
		}
		time.Sleep(2 * time.Millisecond)
	}
	r.result.Late = append(r.result.Late, time.Since(synced))
	for _, f := range r.replayer.Finish() {
		if r.Set.Journalled() {
			r.result.Findings = append(r.result.Findings, f.String())
		}
	}
	r.replayer.Adopt(truth)
	return nil
}
