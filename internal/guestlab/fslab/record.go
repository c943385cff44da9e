package fslab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
)

// Recorder makes recordings of sets, each in a directory of its name below Dir.
type Recorder struct {
	Dir   string
	Seed  uint64
	Count int // operations between two points
	// Workers is how many do as many operations each at the same time; 0 is one. More than one does not do the same again
	// under the same seed.
	Workers int
	Resets  bool      // the guest loses its power amid runs
	Tell    bool      // say each operation
	GoOn    bool      // with the next set if one cannot be recorded
	Say     io.Writer // hears of the progress
}

const (
	uuid     = "5ea1ed00-0000-4000-8000-%012x"
	hashSeed = "0dd5eed0-0000-4000-8000-%012x"
)

// mke2fs is the arguments for a set's file system. The same n gives the same UUID and hash seed.
func (s *Set) mke2fs(n uint64) []string {
	extended := "lazy_itable_init=0,lazy_journal_init=0,hash_seed=" + fmt.Sprintf(hashSeed, n)
	if s.Extended != "" {
		extended += "," + s.Extended
	}
	return append([]string{"-t", s.fstype(), "-U", fmt.Sprintf(uuid, n), "-E", extended}, s.Mke2fs...)
}

// seed gives each set operations of its own.
func (s *Set) seed(n uint64) uint64 {
	h := fnv.New32a()
	h.Write([]byte(s.Name))
	return n<<32 | uint64(h.Sum32())
}

func (s *Set) fstype() string { return cmp.Or(s.Type, "ext4") }
func (s *Set) size() int64    { return cmp.Or(s.MiB, 64) << 20 }

// Record boots one guest of the kernel with a disk for each set and records what it does with them, one after the other.
func (r *Recorder) Record(ctx context.Context, kernel string, sets []Set) error {
	cfg := guestlab.Config{Kernel: kernel, Modules: cryptoModules, AllowReboot: r.Resets}
	for _, s := range sets {
		dir := filepath.Join(r.Dir, s.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		base, disk := filepath.Join(dir, "base.img"), filepath.Join(dir, "disk.img")
		if err := r.makeBase(base, s); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", base, disk).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", base, err, out)
		}
		cfg.Disks = append(cfg.Disks, guestlab.Disk{ID: s.Name, Path: disk, Log: filepath.Join(dir, "log")})
	}
	g, err := guestlab.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer g.Close()
	for i, s := range sets {
		fmt.Fprintf(r.Say, "%s %s\n", kernel, s.Name)
		if err := r.record(ctx, g, s, cfg.Disks[i].Log); err != nil {
			if err = fmt.Errorf("%s: %w", s.Name, err); !r.GoOn {
				return err
			}
			fmt.Fprintln(r.Say, err)
		}
		if err := os.Remove(cfg.Disks[i].Path); err != nil { // its content is the base with the log
			return err
		}
	}
	return nil
}

// syncs is after how many operations there is a sync where a set does not say it: seeds differ, since much that happens
// in one transaction is another matter than little in many.
func syncs(seed uint64) int { return []int{2000, 60, 15}[seed%3] }

// makeBase makes the disk that a recording starts with.
func (r *Recorder) makeBase(path string, s Set) error {
	if s.After == "" {
		return guestlab.MakeExt(path, s.size(), s.mke2fs(r.Seed)...)
	}
	from, err := fsoracle.ReadDir(filepath.Join(r.Dir, s.After))
	if err != nil {
		return fmt.Errorf("%s comes after %s: %w", s.Name, s.After, err)
	}
	image, err := from.Image(from.Points[2].Entries*2/5 + from.Points[3].Entries*3/5) // amid the third run
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}

func (r *Recorder) record(ctx context.Context, g *guestlab.Guest, s Set, log string) error {
	device, err := g.DiskDevice(ctx, s.Name)
	if err != nil {
		return err
	}
	dir := "/mnt/" + s.Name
	rec := fsoracle.Recording{Meta: fsoracle.Meta{
		Name: s.Name, About: s.About, Kernel: g.Config().Kernel, Release: g.Kernel().Release,
		Mke2fs: s.mke2fs(r.Seed), Size: s.size(), Type: s.fstype(), Options: s.Mount,
	}}
	var tree []guestlab.File
	locked := s.encrypts()
	point := func(what string) error {
		var err error
		if what == "unmounted" {
			rec.Points = append(rec.Points, fsoracle.Point{What: what, Tree: tree})
		} else if tree, err = g.FSTree(ctx, dir, locked); err == nil {
			rec.Points = append(rec.Points, fsoracle.Point{What: what, Tree: tree})
		}
		if err == nil {
			rec.Points[len(rec.Points)-1].Entries, err = guestlab.LogEntries(log)
		}
		return err
	}
	mount := func() error {
		if err := g.Mount(ctx, device, dir, s.fstype(), s.Mount); err != nil {
			return err
		}
		return point("mounted")
	}
	unmount := func() error {
		if err := g.Unmount(ctx, dir); err != nil {
			return err
		}
		locked = false // from now on there is no key
		return point("unmounted")
	}
	ops := s.Ops
	ops.Dir, ops.Seed, ops.Count = []byte(dir), s.seed(r.Seed), cmp.Or(ops.Count, r.Count)
	ops.Tell = r.Tell
	ops.Sync = cmp.Or(ops.Sync, syncs(r.Seed))
	run := func() error {
		lists, err := operate(ctx, g, ops, max(r.Workers, 1))
		if err != nil {
			return err
		}
		for _, list := range lists {
			if ops.Tell {
				fmt.Fprint(r.Say, list)
			}
		}
		if _, err := g.Run(ctx, "sync"); err != nil {
			return err
		}
		rec.Meta.Runs = append(rec.Meta.Runs, ops)
		ops.First, ops.Prepare = ops.First+ops.Count, nil
		return point("synced")
	}
	lose := func() error {
		amid, stop := context.WithCancel(ctx)
		defer stop()
		ops := ops
		ops.Count, ops.Tell = 1e6, false
		go operate(amid, g, ops, max(r.Workers, 1)) // ends with the guest
		time.Sleep(time.Second)
		time.AfterFunc(5*time.Second, stop) // before the call is sent again, to the next boot
		err := g.Reset(ctx)
		ops.First += 1e6
		if err == nil {
			device, err = g.DiskDevice(ctx, s.Name)
		}
		return errors.Join(err, mount())
	}
	steps := []func() error{mount, run, run, run, unmount, mount, run, unmount}
	if r.Resets {
		steps = []func() error{mount, run, lose, run, lose, run, unmount}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return rec.WriteTold(filepath.Dir(log))
}

// operate has workers do random operations at the same time, and gives what each says that it did.
func operate(ctx context.Context, g *guestlab.Guest, ops guestlab.FSOps, workers int) (lists []string, err error) {
	if workers > 1 && len(ops.Prepare) > 0 {
		prepare := ops
		prepare.Count, ops.Prepare = 0, nil
		if _, err := g.FSOps(ctx, prepare); err != nil {
			return nil, err
		}
	}
	type result struct {
		list string
		err  error
	}
	done := make(chan result, workers)
	for i := range workers {
		ops := ops
		ops.Seed += uint64(i) << 32
		go func() {
			list, err := g.FSOps(ctx, ops)
			done <- result{list, err}
		}()
	}
	var errs []error
	for range workers {
		r := <-done
		lists, errs = append(lists, r.list), append(errs, r.err)
	}
	return lists, errors.Join(errs...)
}
