package guestlab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDiskDefaults(t *testing.T) {
	for _, bad := range []Disk{{}, {Path: "a,b"}, {Path: "a", ID: "1st"}, {Path: "a", ID: "longer-than-what-qemu-takes"}, {Path: "a", ID: "a=b"}, {Path: "a", Bus: "floppy"}, {Path: "a", Log: "a\nb"}} {
		if _, err := (Config{Kernel: "bookworm", Disks: []Disk{bad}}).withDefaults(); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	given := []Disk{{Path: "a"}, {Path: "b", ID: "other"}}
	cfg, err := Config{Kernel: "bookworm", Disk: "x", Disks: given}.withDefaults()
	if err != nil || cfg.Disks[0].ID != "disk1" || cfg.Disks[1].ID != "other" || cfg.Disks[1].Format != "raw" || given[0].ID != "" {
		t.Errorf("got %+v, %v", cfg.Disks, err)
	}
}

// TestDisks boots a guest with disks of several kinds, does random operations on them, and asks what became of it.
func TestDisks(t *testing.T) {
	if testing.Short() {
		Skip(t, "boots a guest; not under -short")
	}
	dir := t.TempDir()
	disks := []Disk{
		{ID: "plain"}, {ID: "scsi", Bus: "scsi"}, {ID: "nvme", Bus: "nvme"}, {ID: "sata", Bus: "ide"},
		{ID: "logged-with-a-long-name", Log: filepath.Join(dir, "log"), DeviceOptions: "num-queues=2"},
		{ID: "cow", Format: "qcow2"},
	}
	for i := range disks {
		d := &disks[i]
		d.Path = filepath.Join(dir, d.ID)
		if d.Format == "qcow2" {
			MakeImage(t, d.Path, "qcow2", 32<<20)
			continue
		}
		MakeFS(t, d.Path, 32<<20, "-t", "ext4")
	}
	g := Boot(t, Config{Kernel: "trixie-cloud", Disks: disks})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var lists []string
	for _, d := range disks {
		dev, err := g.DiskDevice(ctx, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		size, err := g.Run(ctx, "cat /sys/class/block/"+filepath.Base(dev)+"/size")
		if err != nil || strings.TrimSpace(size) != fmt.Sprint(32<<20/512) {
			t.Errorf("%s is %s of %q sectors, %v", d.ID, dev, size, err)
		}
		if d.Format == "qcow2" {
			continue // nothing on it
		}
		list, tree := operate(t, ctx, g, dev)
		lists = append(lists, list)
		checkStat(t, ctx, g, "/mnt/x", tree)
		if err := g.Unmount(ctx, "/mnt/x"); err != nil {
			t.Fatal(err)
		}
	}
	if len(slices.Compact(lists)) != 1 {
		t.Error("the same seed did different things on different disks")
	}
	if _, err := g.DiskDevice(ctx, "none"); err == nil {
		t.Error("a disk was found that is not there")
	}
	n, err := LogEntries(filepath.Join(dir, "log"))
	if err != nil || n < 10 {
		t.Errorf("%d entries in the log, %v", n, err)
	}
	if _, err := LogEntries(disks[0].Path); err == nil {
		t.Error("a file system was taken for a log")
	}
	if err := os.Truncate(filepath.Join(dir, "log"), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := LogEntries(filepath.Join(dir, "log")); n != 0 || err != nil {
		t.Errorf("%d entries in a log not begun, %v", n, err)
	}
}

// operate does random operations on a disk and returns their list, with names instead of error texts, and the tree.
func operate(t *testing.T, ctx context.Context, g *Guest, dev string) (list string, tree []File) {
	t.Helper()
	if err := g.Mount(ctx, dev, "/mnt/x", "ext4", "noatime,commit=30"); err != nil {
		t.Fatal(err)
	}
	list, err := g.FSOps(ctx, FSOps{Dir: []byte("/mnt/x"), Seed: 5, Count: 120, Fsync: 20, Sync: 50, Tell: true, Prepare: []KeptDir{{Name: "keep"}}})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(list, "\n"); n < 120 {
		t.Errorf("%d lines for 120 operations", n)
	}
	if tree, err = g.FSTree(ctx, "/mnt/x", false); err != nil {
		t.Fatal(err)
	}
	if len(tree) < 4 || string(tree[0].Path) != "/" || tree[0].Kind != "dir" || tree[0].Inode != 2 {
		t.Errorf("the tree begins with %+v", tree[:min(len(tree), 4)])
	}
	return list, tree
}

// checkStat holds what the helper tells of files against busybox's stat.
func checkStat(t *testing.T, ctx context.Context, g *Guest, dir string, tree []File) {
	t.Helper()
	script := "stat -c '%i %a %u %g %s %h %F'"
	var want strings.Builder
	for _, f := range tree {
		script += " '" + dir + string(f.Path) + "'" // no name has an apostrophe
		kind := map[string]string{"dir": "directory", "file": "regular file", "symlink": "symbolic link", "fifo": "fifo", "socket": "socket",
			"chardev": "character special file", "blockdev": "block special file"}[f.Kind]
		if f.Kind == "file" && f.Size == 0 {
			kind = "regular empty file"
		}
		fmt.Fprintf(&want, "%d %o %d %d %d %d %s\n", f.Inode, f.Mode, f.UID, f.GID, f.Size, f.Nlink, kind)
	}
	out, err := g.Run(ctx, script)
	if err != nil || out != want.String() {
		t.Errorf("stat says\n%s%v, the helper\n%s", out, err, &want)
	}
}

func TestMakeFS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	MakeFS(t, path, 8<<20, "-t", "ext2", "-b", "1024")
	data, err := os.ReadFile(path)
	if err != nil || len(data) != 8<<20 || data[1024+56] != 0x53 || data[1024+57] != 0xef {
		t.Errorf("%d bytes without the magic number of ext2, %v", len(data), err)
	}
	if err := MakeExt(path, 1024, "-b", "1024"); err == nil {
		t.Error("a file system of 1 KiB")
	}
}
