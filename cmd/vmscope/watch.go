package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/kernel"
	"vmscope/vm/qemu"
	"vmscope/watch"
)

// watchFlags are what all commands take that tell events.
type watchFlags struct {
	ops     []string
	fs      []string
	content string
	limit   int64
	from    string // a file of watchpoints
	record  string // a log of all writes
}

// addRecord adds what those take that serve a disk.
func (f *watchFlags) addRecord(c *cobra.Command) {
	c.Flags().StringVar(&f.record, "record", "", "log all writes in this new file while this command runs, for 'vmscope replay'")
}

func (f *watchFlags) add(c *cobra.Command) {
	p := c.Flags()
	p.StringSliceVar(&f.ops, "op", nil, "tell only these kinds of events (MKFILE,RENAME,…)")
	p.StringSliceVar(&f.fs, "fs", nil, "watch only these file systems: vda1, vg0/root, a UUID or a label")
	p.StringVar(&f.content, "content", "", "keep each version of the watched files in this directory, named by its hash")
	p.Int64Var(&f.limit, "content-limit", 1<<20, "size in bytes up to which --content keeps a file")
	p.StringVar(&f.from, "paths-from", "", "watch the paths in this file too, one a line; it is read again whenever it changes")
	_ = c.RegisterFlagCompletionFunc("op", fixed(eventWords()...))
	_ = c.MarkFlagDirname("content")
}

// eventOps are the kinds of events that can be chosen.
var eventOps = []event.Op{
	event.MkDir, event.MkFile, event.RmDir, event.RmFile, event.Rename, event.Link, event.Symlink, event.Mknod, event.Write, event.Truncate,
	event.Chmod, event.Chown, event.Xattr, event.Mount, event.Unmount,
}

func eventWords() []string {
	var out []string
	for _, o := range eventOps {
		out = append(out, string(o))
	}
	return out
}

func (f *watchFlags) options(paths []string) (o watch.Options, err error) {
	o = watch.Options{Paths: paths, FileSystems: f.fs}
	if f.from != "" {
		more, err := readPaths(f.from)
		if err != nil {
			return o, err
		}
		o.Paths = slices.Concat(paths, more)
	}
	if _, err := watch.New(nil, o); err != nil {
		return o, err // before any disk is touched
	}
	for _, w := range f.ops {
		op := event.Op(strings.ToUpper(w))
		if !strings.Contains(" "+strings.Join(eventWords(), " ")+" ", " "+string(op)+" ") {
			return o, fmt.Errorf("--op %q: it is one of %s", w, strings.Join(eventWords(), ", "))
		}
		o.Ops = append(o.Ops, op)
	}
	if f.content != "" {
		if f.limit <= 0 {
			return o, fmt.Errorf("--content-limit %d: it is a number of bytes", f.limit)
		}
		if err := os.MkdirAll(f.content, 0o700); err != nil {
			return o, err
		}
		o.Content = f.limit
	}
	return o, nil
}

// alone has the program use one processor: its work is one thing after the other, and with more of them Go's scheduler wakes
// threads for each write that comes, to find nothing to do.
func alone() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}

// teller prints events as they come.
type teller struct {
	*app
	mu    sync.Mutex
	flags *watchFlags
	bar   *progress
}

// tell prints one event. Each line goes out at once: somebody waits for it.
func (t *teller) tell(e event.Event) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.clear()
	row := eventOf(&e)
	if e.Content != nil && t.flags.content != "" && !e.Content.Torn {
		row.Copy = filepath.Join(t.flags.content, row.SHA256)
		if err := keep(row.Copy, e.Content.Data); err != nil {
			return err
		}
	}
	switch {
	case t.json:
		if err := t.object(row); err != nil {
			return err
		}
	case e.Op == event.Attached:
		at := ""
		if e.Path != "" && e.Path != "/" {
			at = fmt.Sprintf(", which the guest has at %s,", kernel.Text(e.Path)) // paths begin with it
		}
		fmt.Fprintf(t.err, "vmscope: watching %s (%s)%s from now on\n", kernel.Text(e.FS), kernel.Text(e.Detail), at)
	case row.Copy != "":
		fmt.Fprintf(t.out, "%s sha256:%s\n", t.paint(&e), row.SHA256[:16])
	default:
		fmt.Fprintln(t.out, t.paint(&e))
	}
	if b, ok := t.out.(*bufio.Writer); ok {
		if err := b.Flush(); errors.Is(err, syscall.EPIPE) {
			return errQuiet // | head
		} else if err != nil {
			return err
		}
	}
	return nil
}

// paint colours what an event did.
func (t *teller) paint(e *event.Event) string {
	line := eventLine(e)
	if !t.colors() {
		return line
	}
	color := "36"
	switch e.Op {
	case event.MkDir, event.MkFile, event.Symlink, event.Mknod, event.Link:
		color = "32"
	case event.RmDir, event.RmFile:
		color = "31"
	case event.Lost:
		color = "31;1"
	}
	return "\x1b[" + color + "m" + string(e.Op) + "\x1b[m" + line[len(e.Op):]
}

// keep writes a version of a file, once.
func keep(path string, data []byte) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".version-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// warn says on stderr what is wrong with a guest's disk.
func (t *teller) warn(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.clear()
	fmt.Fprintln(t.err, "vmscope: "+oneLine(err))
}

func (t *teller) progress(fs string, done, total uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bar.show(fs, done, total)
}

// progress is one line on a terminal that is written over.
type progress struct {
	out   *os.File
	shown bool
	last  time.Time
}

// newProgress shows on stderr, if that is a terminal.
func newProgress() *progress {
	if isTTY(os.Stderr) {
		return &progress{out: os.Stderr}
	}
	return &progress{}
}

func (p *progress) show(what string, done, total uint64) {
	if p.out == nil || total == 0 || done < total && time.Since(p.last) < 100*time.Millisecond {
		return
	}
	p.clear()
	if done < total {
		fmt.Fprintf(p.out, "%s: %d %% of the directories are known", what, done*100/total)
		p.shown, p.last = true, time.Now()
	}
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

func (a *app) watchCmd() *cobra.Command {
	var f watchFlags
	var disks []string
	var diskPaths, detach bool
	c := &cobra.Command{
		Use:   "watch TARGET [PATH…]",
		Short: "Tell what happens to files, as it is committed to disk",
		Long: `watch attaches to the disks of a running VM and tells what happens to its files,
as soon as the guest's file system has committed it to disk: MKDIR, MKFILE,
RMDIR, RMFILE, RENAME, LINK, SYMLINK, MKNOD, WRITE, TRUNCATE, CHMOD, CHOWN,
XATTR, MOUNT, UNMOUNT. The guest is not changed, stopped or restarted, and never
waits for us; Ctrl-C leaves it as it was. It needs the VM's QMP socket. Disks that
are plugged in meanwhile are watched too.

A PATH is watched with all below it, one that ends in /. (as /etc/.) only with
what is directly in it; without one, everything is. In a PATH, *, ? and [a-z]
stand for parts of one name, ** for any number of names. It need not exist yet.
Paths are the guest's where its mounts can be read from its memory,
else those of the file system on the disk. Paths to be watched are added and taken
away meanwhile by changing the file that --paths-from names: one PATH a line, lines
that begin with # are comments; an empty file means that nothing is watched.

File systems: ext2, ext3, ext4; on whole disks, MBR and GPT partitions, LVM2.

While a disk is watched, QEMU refuses snapshots and resizing of it, and a watch
does not follow a migration: 'vmscope watch TARGET --detach' makes all watches of
TARGET leave. A watch that was made to leave, or whose guest has ended, says so on stderr; its status is 0.`,
		Example: `  vmscope watch web1 /root /etc
  vmscope watch web1 '/home/*/.ssh' --content versions
  vmscope watch web1 --paths-from /etc/vmscope/web1.paths
  vmscope watch web1 --op RMFILE,RENAME --json | jq -r .path`,
		ValidArgsFunction: a.completeWatched,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("watch needs a TARGET: the name of a running VM ('vmscope vms' lists them); see '%s --help'", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if detach {
				return a.detach(cmd.Context(), args[0], disks)
			}
			if st, err := os.Stat(strings.TrimPrefix(args[0], "file:")); err == nil && st.Mode().IsRegular() {
				return fmt.Errorf("watch %q: that is a file, not a running VM; 'vmscope nbd' serves an image to one, 'vmscope replay' reads a recording", args[0])
			}
			o, err := f.options(args[1:])
			if err != nil {
				return err
			}
			alone()
			t := &teller{app: a, flags: &f, bar: newProgress()}
			o.Progress, o.Warn = t.progress, t.warn
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			started := func(w *watch.Watch) { t.follow(ctx, w, args[1:]) }
			err = vmscope.Watch(ctx, args[0], vmscope.WatchOptions{Options: o, Disks: disks, DiskPaths: diskPaths, Started: started}, t.tell)
			t.bar.clear()
			switch {
			case cmd.Context().Err() != nil && errors.Is(err, cmd.Context().Err()):
				return nil // Ctrl-C is how it ends
			case ctx.Err() != nil && errors.Is(err, ctx.Err()):
				return errors.New("interrupted") // its terminal is gone
			case vmscope.Ended(err):
				fmt.Fprintln(a.err, "vmscope: "+oneLine(err)) // no failure, but nobody asked us
				return nil
			case errors.Is(err, tap.ErrInUse):
				return fmt.Errorf("%w; 'vmscope watch %s --detach' makes a watch leave", err, args[0])
			}
			return err
		},
	}
	f.add(c)
	c.Flags().StringSliceVar(&disks, "disk", nil, "watch only these disks (vda; 'vmscope disks' lists them), and none that is plugged in later")
	_ = c.RegisterFlagCompletionFunc("disk", completeTapped)
	_ = c.RegisterFlagCompletionFunc("fs", completeDisks(fileSystemWords))
	c.Flags().BoolVar(&diskPaths, "disk-paths", false, "tell paths as they are on the disk, also where the guest has it mounted elsewhere")
	c.Flags().BoolVar(&detach, "detach", false, "make the watches of TARGET leave its disks, then end")
	return c
}

// completeTapped completes the disks of a running VM that can be watched.
func completeTapped(cmd *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
	if len(args) > 0 {
		var disks []tap.Disk
		if target, err := tapped(cmd.Context(), args[0]); err == nil {
			disks, _ = tap.Disks(cmd.Context(), target)
		}
		for _, d := range disks {
			for _, w := range []string{d.Name, d.ID} {
				if !d.ReadOnly && harmless(w) {
					out = append(out, w)
				}
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// tapped turns a target into one of block/tap.
func tapped(ctx context.Context, target string) (string, error) {
	rest, ok := strings.CutPrefix(target, "libvirt:")
	if !ok {
		return strings.TrimPrefix(target, "qemu:"), nil
	}
	p, err := qemu.FindDomain(ctx, rest)
	if err != nil {
		return "", err
	}
	return p.Target(), nil
}

// detach makes watches leave.
func (a *app) detach(ctx context.Context, target string, disks []string) error {
	if len(disks) == 0 {
		disks = []string{""}
	}
	machine, err := tapped(ctx, target)
	if err != nil {
		return err
	}
	total := 0
	for _, d := range disks {
		n, err := tap.Detach(ctx, machine, d)
		if err != nil {
			return err
		}
		total += n
	}
	if a.json {
		return a.object(map[string]int{"detached": total})
	}
	fmt.Fprintf(a.out, "%d left\n", total)
	return nil
}
