package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/guestlab"
)

// pattern is a load in the guest: a script in which $d is where the disk is mounted. There is a file "data" of 48 MiB and a
// directory "dir".
type pattern struct{ name, script string }

// The loads. O_DIRECT where the guest's own cache would do the work.
var patterns = []pattern{
	{"write 1M", "dd if=/dev/zero of=$d/data bs=1M count=48 oflag=direct conv=notrunc"},
	{"write 4K", "dd if=/dev/zero of=$d/data bs=4k count=1300 oflag=direct conv=notrunc"},
	{"read 1M", "dd if=$d/data of=/dev/null bs=1M count=48 iflag=direct"},
	{"read 4K", "dd if=$d/data of=/dev/null bs=4k count=1300 iflag=direct"},
	{"cached write", "dd if=/dev/zero of=$d/data bs=1M count=48 conv=notrunc,fsync"},
	{"fsync", "i=0; while [ $i -lt 20 ]; do i=$((i+1)); dd if=/dev/zero of=$d/data bs=4k count=1 seek=$i conv=fsync,notrunc; done"},
	{"create 300", "rat fill create $d/dir 300"},
	{"delete 300", "rat fill remove $d/dir 300"},
}

const diskSize = 128 << 20

type bench struct {
	ways     []way
	patterns []pattern
	rounds   int
	kernel   string
	dir      string
	command  string
	progress io.Writer

	guest     *guestlab.Guest
	processes []*process // of the ways; nil for none
	costs     [][][]cost // by pattern, way and round
}

type cost struct{ cpu, wall time.Duration }

func (b *bench) measure(ctx context.Context) error {
	tmp, err := os.MkdirTemp(b.dir, "vmscope-disk-")
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
	for round := -1; round < b.rounds; round++ { // the first finds cold caches and does not count
		for i, p := range b.patterns {
			for _, k := range rand.Perm(len(b.ways)) {
				c, err := b.one(ctx, k, p)
				if ctx.Err() != nil && round > 0 {
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
		fmt.Fprintf(b.progress, "\rround %d of %d", round+1, b.rounds)
	}
	fmt.Fprintln(b.progress)
	return nil
}

// drop leaves out what is not installed.
func (b *bench) drop() {
	b.ways = slices.DeleteFunc(b.ways, func(w way) bool {
		if w.command == nil || w.command[0] != "nbdkit" {
			return false
		}
		_, err := exec.LookPath(w.command[0])
		if err != nil {
			fmt.Fprintln(b.progress, err)
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
		if err := guestlab.MakeExt(image, diskSize, "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"); err != nil {
			return err
		}
		if b.ways[i].kind != mirror {
			if err := start(i); err != nil {
				return err
			}
		}
		args = append(args, b.ways[i].qemuArgs(i, image, socket)...)
	}
	b.guest, err = guestlab.Start(ctx, guestlab.Config{Kernel: b.kernel, Name: name, RAM: guestlab.Memfd, Modules: []string{"ext4"}, QEMUArgs: args})
	if err != nil {
		return err
	}
	for i := range b.ways {
		dir := mountPoint(i)
		err := b.guest.Mount(ctx, fmt.Sprintf("/dev/vd%c", 'a'+i), dir, "ext4", "")
		if err == nil {
			_, err = b.guest.Run(ctx, fmt.Sprintf("mkdir %s/dir && dd if=/dev/zero of=%s/data bs=1M count=48 conv=fsync 2>/dev/null", dir, dir))
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

func mountPoint(i int) string { return fmt.Sprint("/mnt/way", i) }

// one runs a pattern once.
func (b *bench) one(ctx context.Context, k int, p pattern) (cost, error) {
	pids := []int{b.guest.PID()}
	if b.processes[k] != nil {
		pids = append(pids, family(b.processes[k].cmd.Process.Pid)...)
	}
	before, err := cpuTime(pids)
	if err != nil {
		return cost{}, err
	}
	began := time.Now()
	if _, err := b.guest.Run(ctx, fmt.Sprintf("d=%s\n(%s) 2>/dev/null", mountPoint(k), p.script)); err != nil {
		return cost{}, err
	}
	wall := time.Since(began)
	time.Sleep(20 * time.Millisecond) // inference is behind
	after, err := cpuTime(pids)
	return cost{after - before, wall}, err
}

// family is a process and all below it.
func family(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended
		}
		_, rest, _ := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		children[parent] = append(children[parent], child)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// cpuTime is what processes have used, by their CPU clocks (clock_getcpuclockid).
func cpuTime(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		var ts unix.Timespec
		if e := unix.ClockGettime(int32(^pid<<3|2), &ts); e != nil {
			err = errors.Join(err, fmt.Errorf("CPU time of process %d: %w", pid, e))
		}
		total += time.Duration(ts.Nano())
	}
	return total, err
}
