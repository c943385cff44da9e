package main

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLVMWatchGuest watches logical volumes on the disks of a running guest: one that lies on both in pieces, one that is striped
// over both. The watch is stopped for a while, in which the guest overwrites what the watch will ask for.
func TestLVMWatchGuest(t *testing.T) {
	g, lvm := lvmGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	inGuest := func(script string) {
		t.Helper()
		if out, err := g.Run(ctx, lvm+script); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	inGuest(lvmVolumes)
	w := startWatch(t, g.Name(), "--fs", "vg0/striped,LABEL=lines")
	w.says(t, "from now on") // of the other one
	told := map[string][]string{}
	var want []string
	step := func(script string, events ...string) {
		t.Helper()
		inGuest("for d in s l; do cd /mnt/$d; " + script + "; sync; done")
		want = append(want, events...)
	}
	step("mkdir new; echo a >new/a; ln -s a new/l", "MKDIR: /new", "MKFILE: /new/a", "SYMLINK: /new/l -> a")
	if err := w.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	step("mv new/a d3/b; chmod 600 d3/b", "RENAME: /new/a -> /d3/b", "CHMOD: /d3/b (0600)")
	step("rm d4/f; rmdir d4", "RMFILE: /d4/f", "RMDIR: /d4")
	step("dd if=/dev/zero of=big2 bs=64k count=64 2>/dev/null; ln d6/f d5/hard", "LINK: /d5/hard", "MKFILE: /big2")
	if err := w.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	step("mkdir end", "MKDIR: /end")
	for _, line := range w.until(t, "MKDIR: /mnt/l/end") {
		_, path, _ := strings.Cut(line, " /mnt/")
		if fs, _, _ := strings.Cut(path, "/"); !strings.HasPrefix(line, "WRITE: ") {
			told[fs] = append(told[fs], strings.ReplaceAll(line, "/mnt/"+fs, ""))
		}
	}
	slices.Sort(want)
	for _, fs := range []string{"s", "l"} {
		slices.Sort(told[fs])
		if got := strings.Join(told[fs], ", "); got != strings.Join(want, ", ") {
			t.Errorf("%s: told %s\nwant %s", fs, got, strings.Join(want, ", "))
		}
	}
	if len(told) != 2 {
		t.Errorf("told of other file systems: %q", told)
	}
	w.Process.Signal(syscall.SIGINT)
	if status, stderr := w.ended(); status != 0 && status != statusInterrupted || stderr != "" {
		t.Errorf("status %d, %q", status, stderr)
	}
	if left := leftInQEMU(t, g); len(left) > 0 {
		t.Errorf("left %s", left)
	}
}
