package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// evilName is a file's name that a terminal would act on.
const evilName = "evil\x1b[31m\xff"

// makeDisk makes an image with two partitions, the second of which holds files.
func makeDisk(t *testing.T) string {
	t.Helper()
	guestlab.Need(t, "mkfs.ext4", "sfdisk")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	put := func(name, data string) {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	put("etc/passwd", "root:x:0:0\n")
	put("etc/shadow", strings.Repeat("line\n", 100000))
	put(".hidden", "")
	put(evilName, "\x00\x1b\xff")
	put("$(halt)", "")
	put("a/b/c/deep.conf", "x")
	if err := errors.Join(os.Symlink("etc/passwd", filepath.Join(tree, "link")), os.Symlink("nowhere\x1b", filepath.Join(tree, "dangling")),
		os.Chmod(filepath.Join(tree, "etc/passwd"), 0o755|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	image, fs := filepath.Join(dir, "disk.img"), filepath.Join(dir, "fs")
	for _, f := range []struct {
		path string
		size int64
	}{{image, 64 << 20}, {fs, 32 << 20}} {
		if err := errors.Join(os.WriteFile(f.path, nil, 0o600), os.Truncate(f.path, f.size)); err != nil {
			t.Fatal(err)
		}
	}
	command := func(stdin, name string, args ...string) {
		c := exec.Command(name, args...)
		c.Stdin = strings.NewReader(stdin)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	command("", "mkfs.ext4", "-q", "-F", "-L", "data\x1b[1m", "-d", tree, fs)
	command("label: gpt\nsize=8M\nsize=32M, name=files\n", "sfdisk", "-q", image)
	in, err := os.ReadFile(fs)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(in, 9<<20)
	if err := errors.Join(err, f.Close(), os.Remove(fs)); err != nil {
		t.Fatal(err)
	}
	return image
}

// TestDiskCommands runs the commands for disks on an image, for people and for
// scripts.
func TestDiskCommands(t *testing.T) {
	image := makeDisk(t)
	docs := documented(t)
	for _, c := range []struct {
		args, want, fields string // want: what the output holds; fields: what each object has
	}{
		{"disks IMG", `data\x1b[1m`, "name kind size"},
		{"disks file:IMG", "disk0p2", "name kind size"},
		{"ls IMG", `evil\x1b[31m\xff`, "path inode kind mode uid gid size nlink mtime"},
		{"ls -l IMG /", `dangling -> nowhere\x1b`, "path inode kind mode"},
		{"ls -laR IMG / --fs disk0p2", "deep.conf", "path inode kind mode"},
		{"ls -d IMG /etc --disk disk0", "/etc", "path"},
		{"ls IMG /etc/passwd /a", "/etc/passwd", "path"},
		{"find IMG", `/evil\x1b[31m\xff`, "path inode kind mode"},
		{"find IMG /a --type f --name *.conf", "/a/b/c/deep.conf", "path inode"},
		{"stat IMG /etc/passwd /link", "link -> etc/passwd", "path inode generation kind mode uid gid size blocks nlink atime mtime ctime disk fs"},
		{"stat -L IMG /link", "4755 -rwsr-xr-x", "path inode"},
	} {
		args := strings.Fields(strings.ReplaceAll(c.args, "IMG", image))
		out, stderr, status := run(t, args...)
		if status != 0 || stderr != "" || !strings.Contains(out, c.want) {
			t.Errorf("%s: status %d, %q\n%s", c.args, status, stderr, out)
		}
		clean(t, c.args, out)
		out, stderr, status = run(t, append(args, "--json")...)
		if status != 0 || stderr != "" || out == "" {
			t.Errorf("%s --json: status %d, %q", c.args, status, stderr)
		}
		clean(t, c.args, out)
		for line := range strings.Lines(out) {
			m := object(t, line)
			checkFields(t, args[0], docs[args[0]], m)
			for _, f := range strings.Fields(c.fields) {
				if _, ok := m[f]; !ok {
					t.Errorf("%s: no %s in %s", c.args, f, line)
				}
			}
		}
	}
	if out, _, _ := run(t, "find", image, "--type", "f"); !slices.Equal(slices.Sorted(slices.Values(strings.Fields(out))), []string{"/$(halt)", "/.hidden", "/a/b/c/deep.conf", "/etc/passwd", "/etc/shadow", `/evil\x1b[31m\xff`}) {
		t.Errorf("find: %q", out)
	}
	for args, want := range map[string]string{"/" + evilName: "\x00\x1b\xff", "/link": "root:x:0:0\n", "/etc/shadow": strings.Repeat("line\n", 100000)} {
		if out, stderr, status := run(t, "cat", image, args); out != want || stderr != "" || status != 0 {
			t.Errorf("cat %q: %d bytes, %q, status %d", args, len(out), stderr, status)
		}
	}
	if out, _, _ := run(t, "__complete", "cat", image, "/etc/pa"); !strings.HasPrefix(out, "/etc/passwd\n:") {
		t.Errorf("completion: %q", out)
	}
	if out, _, _ := run(t, "__complete", "cat", image, ""); !strings.Contains(out, "/etc/\n") || strings.Contains(out, "evil") || strings.Contains(out, "halt") {
		t.Errorf("completion: %q", out)
	}
	if out, _, _ := run(t, "__complete", "ls", image, "--fs", ""); !strings.Contains(out, "disk0p2\n") || strings.Contains(out, "\x1b") {
		t.Errorf("completion: %q", out)
	}
}

// TestWrongDisks asks for what is not there.
func TestWrongDisks(t *testing.T) {
	image := makeDisk(t)
	dir := filepath.Dir(image)
	empty := filepath.Join(dir, "none\x1b[31m")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"disks"}, []string{"TARGET"}},
		{[]string{"disks", image, "x"}, []string{`"x"`}},
		{[]string{"disks", filepath.Join(dir, "missing")}, []string{"no such file"}},
		{[]string{"disks", dir}, []string{"directory"}},
		{[]string{"disks", "/dev/null"}, []string{"/dev/null"}},
		{[]string{"disks", "no-such-vm-at-all"}, []string{"no-such-vm-at-all"}},
		{[]string{"disks", "xen:dom0"}, []string{"xen:dom0", "vmscope xen-block"}},
		{[]string{"ls", "gdb:1234"}, []string{"gdb:1234", "vmscope nbd"}},
		{[]string{"find", "firecracker:web"}, []string{"firecracker:web", "vmscope nbd"}},
		{[]string{"disks", "esx:web"}, []string{`no driver "esx"`}},
		{[]string{"disks", ""}, []string{"empty"}},
		{[]string{"ls", empty}, []string{"nothing known", "vmscope disks"}},
		{[]string{"ls", image, "/nope"}, []string{"/nope", "does not exist"}},
		{[]string{"ls", image, "/etc/passwd/x"}, []string{"not a directory"}},
		{[]string{"cat", image}, []string{"PATH"}},
		{[]string{"cat", image, "/nope\x1b"}, []string{`/nope\x1b`, "does not exist"}},
		{[]string{"cat", image, "/dangling"}, []string{"does not exist"}},
		{[]string{"cat", image, "/etc"}, []string{"is a directory"}},
		{[]string{"stat", image, "/nope"}, []string{"does not exist"}},
		{[]string{"find", image, "/nope"}, []string{"does not exist"}},
		{[]string{"find", image, "--type", "x"}, []string{`"x"`}},
		{[]string{"find", image, "--name", "["}, []string{"["}},
		{[]string{"ls", image, "--disk", "vdz"}, []string{`"vdz"`, "disk0"}},
		{[]string{"ls", image, "--fs", "disk0p1"}, []string{"disk0p1", "empty"}},
		{[]string{"ls", image, "--fs", "disk0p7"}, []string{"disk0p7", "disk0p2"}},
	} {
		failed(t, c.args, c.words...)
	}
}
