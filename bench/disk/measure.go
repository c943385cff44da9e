package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmscope/bench/sample"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
)

// pattern is a load in the guest. The disk has a file "data" and a directory "dir".
type pattern struct {
	name string
	load guestlab.Load // its path below the mount point
}

// The loads. They go past the guest's cache where that would do the work.
var patterns = []pattern{
	{"write 1M", guestlab.Load{Kind: "write", Path: "data", Length: 1 << 20, N: 24}},
	{"write 4K", guestlab.Load{Kind: "write", Path: "data", Length: 4096, N: 250}},
	{"read 1M", guestlab.Load{Kind: "read", Path: "data", Length: 1 << 20, N: 24}},
	{"read 4K", guestlab.Load{Kind: "read", Path: "data", Length: 4096, N: 250}},
	{"cached write, 1M", guestlab.Load{Kind: "cached", Path: "data", Length: 1 << 20, N: 24}},
	{"fsync", guestlab.Load{Kind: "fsync", Path: "data", Length: 4096, N: 24}},
	{"create", guestlab.Load{Kind: "create", Path: "dir", N: 300}},
	{"delete", guestlab.Load{Kind: "remove", Path: "dir", N: 300}},
}

// nothing is a load that has none: what remains is the way there and back.
var nothing = guestlab.Load{Kind: "read", Path: "data", Length: 4096}

const (
	diskSize = 96 << 20
	dataSize = 24 // MiB
	// settle is how long what a load leaves behind has (inference, the other side of a mirror), which counts.
	settle = 15 * time.Millisecond
)

type bench struct {
	sample.Options
	ways     []way
	patterns []pattern
	command  string

	guest     *guestlab.Guest
	processes []*process // of the ways; nil for none
	vcpu      int        // thread of QEMU's
	costs     [][][]cost // by pattern, way and round
	idle      []cost     // of nothing, by round
}

func (b *bench) measure(ctx context.Context) error {
	tmp, err := os.MkdirTemp(b.Dir, "vmscope-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if b.command == "" {
		b.command = filepath.Join(tmp, "vmscope")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.command, "./cmd/vmscope")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build vmscope: %w\n%s", err, out)
		}
	}
	b.drop()
	defer func() {
		for _, p := range b.processes {
			if p != nil {
				p.stop()
			}
		}
	}()
	if err := b.boot(ctx, tmp); err != nil {
		return err
	}
	defer b.guest.Close()
	b.costs = make([][][]cost, len(b.patterns))
	for i := range b.costs {
		b.costs[i] = make([][]cost, len(b.ways))
	}
	for round := -1; round < b.Rounds; round++ { // the first finds cold caches and does not count
		idle, err := b.one(ctx, 0, nothing)
		if err != nil {
			return err
		}
		for i, p := range b.patterns {
			for _, k := range rand.Perm(len(b.ways)) {
				c, err := b.one(ctx, k, p.load)
				if ctx.Err() != nil && round > 0 {
					b.cut(round)
					return nil // what there is counts
				}
				if err != nil {
					return fmt.Errorf("%s, %s: %w", b.ways[k].name, p.name, err)
				}
				if round >= 0 {
					b.costs[i][k] = append(b.costs[i][k], c)
				}
			}
		}
		if round >= 0 {
			b.idle = append(b.idle, idle)
		}
		b.Round(round + 1)
	}
	return nil
}

// cut drops what was measured of a round that was not finished.
func (b *bench) cut(rounds int) {
	for i := range b.costs {
		for k := range b.costs[i] {
			b.costs[i][k] = b.costs[i][k][:min(rounds, len(b.costs[i][k]))]
		}
	}
}

// drop leaves out what is not installed.
func (b *bench) drop() {
	b.ways = slices.DeleteFunc(b.ways, func(w way) bool {
		if w.command == nil || w.command[0] != "nbdkit" {
			return false
		}
		_, err := exec.LookPath(w.command[0])
		if err != nil {
			fmt.Fprintln(b.Progress, err)
		}
		return err != nil
	})
}

// boot starts what serves, the guest, and what watches.
func (b *bench) boot(ctx context.Context, tmp string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name := fmt.Sprint("bench-disk-", os.Getpid())
	b.processes = make([]*process, len(b.ways))
	var args []string
	words := func(i int) (*strings.Replacer, string, string) {
		image, socket := filepath.Join(tmp, fmt.Sprint("image", i)), filepath.Join(tmp, fmt.Sprint("s", i))
		return strings.NewReplacer("IMAGE", image, "SOCKET", socket, "VMSCOPE", b.command, "SELF", self, "GUEST", name, "NODE", fmt.Sprint("n", i)), image, socket
	}
	start := func(i int) error {
		if b.ways[i].command == nil {
			return nil
		}
		w, _, socket := words(i)
		b.processes[i], err = b.ways[i].start(ctx, w, socket)
		return err
	}
	for i := range b.ways {
		_, image, socket := words(i)
		if err := errors.Join(guestlab.MakeExt(image, diskSize, sample.Ext4...), sample.Fill(image)); err != nil {
			return err
		}
		if b.ways[i].kind != mirror {
			if err := start(i); err != nil {
				return err
			}
		}
		args = append(args, b.ways[i].qemuArgs(i, image, socket)...)
	}
	b.guest, err = guestlab.Start(ctx, guestlab.Config{Kernel: b.Kernel, Name: name, RAM: guestlab.Memfd, Modules: []string{"ext4"}, QEMUArgs: args})
	if err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		b.guest.Close()
		return err
	}
	for i := range b.ways {
		dir := mountPoint(i)
		err := b.guest.Mount(ctx, fmt.Sprintf("/dev/vd%c", 'a'+i), dir, "ext4", sample.MountOptions)
		if err == nil {
			_, err = b.guest.Run(ctx, fmt.Sprintf("mkdir %s/dir && dd if=/dev/zero of=%s/data bs=1M count=%d conv=fsync 2>/dev/null", dir, dir, dataSize))
		}
		if err == nil && b.ways[i].kind == mirror {
			err = start(i)
		}
		if err != nil {
			b.guest.Close()
			return fmt.Errorf("%s: %w", b.ways[i].name, err)
		}
	}
	return nil
}

// prepare has the guest write nothing by itself, and finds the thread that emulates its processor.
func (b *bench) prepare(ctx context.Context) error {
	if _, err := b.guest.Run(ctx, sample.QuietGuest); err != nil {
		return err
	}
	m, err := qmp.Dial(ctx, b.guest.QMPSocket(), nil)
	if err != nil {
		return err
	}
	defer m.Close()
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	if err := qmp.Query(ctx, m, "query-cpus-fast", nil, &cpus); err != nil {
		return err
	}
	if len(cpus) != 1 {
		return fmt.Errorf("the guest has %d processors", len(cpus))
	}
	b.vcpu = cpus[0].Thread
	return nil
}

func mountPoint(i int) string { return fmt.Sprint("/mnt/way", i) }

// one runs a load once.
func (b *bench) one(ctx context.Context, k int, l guestlab.Load) (cost, error) {
	pids := []int{b.guest.PID()}
	if b.processes[k] != nil {
		pids = append(pids, family(b.processes[k].cmd.Process.Pid)...)
	}
	before, err := b.spent(pids)
	if err != nil {
		return cost{}, err
	}
	l.Path = filepath.Join(mountPoint(k), l.Path)
	took, err := b.guest.Load(ctx, l)
	if err != nil {
		return cost{}, err
	}
	time.Sleep(settle)
	after, err := b.spent(pids)
	c := after.minus(before)
	c.time = took
	return c, err
}
