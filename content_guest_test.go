package vmscope_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"vmscope"
	"vmscope/event"
	"vmscope/internal/guestlab/fslab"
	"vmscope/watch"
)

func hashOf(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// TestWatchContent has a guest make versions of small files in all ways that a program may, each with an fsync. Every one must
// come out with the hash that the guest reads, whatever the file system keeps it in; and no other may be said to be whole.
func TestWatchContent(t *testing.T) {
	list := sets(t, "ext4-1k", "data-journal", "fast-commit-6.1", "inline-data")
	g := fslab.Boot(t, "trixie-cloud", list, freshSeed(t), nil)
	for _, s := range list {
		dev, err := g.DiskDevice(t.Context(), s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Mount(t.Context(), dev, "/mnt/"+s.Name, cmp.Or(s.Type, "ext4"), s.Mount); err != nil {
			t.Fatal(err)
		}
	}
	w := watchLive(t, g, vmscope.WatchOptions{Options: watch.Options{Content: 1 << 20}}, len(list))
	steps := []struct{ name, script string }{
		{"made", "echo one >f"},
		{"written over in place", "printf two | dd of=f conv=notrunc"},
		{"appended", "echo three >>f"},
		{"longer than a block", "i=0; while [ $i -lt 900 ]; do echo line $i of a long file; i=$((i+1)); done >/tmp/long; cat /tmp/long >f"},
		{"a part of it written over", "printf xxxxx | dd of=f bs=5 seek=1000 conv=notrunc"},
		{"cut off", "truncate -s 700 f"},
		{"made longer", "truncate -s 9000 f"},
		{"space of a new file", "rm f; fallocate -l 20000 f"},
		{"a part of the space written", "printf yyyyy | dd of=f bs=5 seek=1200 conv=notrunc"},
		{"space and content at once", "rm f; fallocate -l 30000 f; printf zzzzz | dd of=f bs=5 seek=1800 conv=notrunc"},
		{"all of the space written", "dd if=/dev/urandom of=f bs=30000 count=1 conv=notrunc"},
		{"past the end", "printf end | dd of=f bs=5 seek=10000 conv=notrunc"},
		{"without cache", "dd if=/dev/urandom of=f bs=65536 count=1 oflag=direct"},
		{"without cache, over in place", "dd if=/dev/urandom of=f bs=65536 count=1 oflag=direct conv=notrunc"},
		{"another in its place", "echo four >new; fsync new; mv new f; sync"},
		{"empty", ": >f"},
	}
	const fsync = "fsync() { dd if=/dev/null of=$1 conv=notrunc,fsync 2>/dev/null; }\n"
	hash := func(t *testing.T, s string) string {
		if _, ok := strings.CutPrefix(s, "sha256 "); !ok || len(s) != len("sha256 ")+64 {
			t.Fatalf("the guest says %q", s)
		}
		return s[len("sha256 "):]
	}
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			known := map[string]bool{hashOf(nil): true, hashOf(make([]byte, 30000)): true}
			begin := len(w.events())
			for _, step := range steps {
				n := len(w.events())
				out, err := g.Run(t.Context(), fmt.Sprintf(fsync+`cd /mnt/%s && { %s; } 2>/tmp/err || { cat /tmp/err; exit 1; }; fsync f && s=$(sha256sum f) && echo "sha256 ${s%%%% *}"`, s.Name, step.script))
				if err != nil {
					t.Fatalf("%s: %v\n%s", step.name, err, out)
				}
				want := hash(t, strings.TrimSpace(out))
				known[want] = true
				w.TB = t
				w.wait(fmt.Sprintf("version %s (%s)", want[:16], step.name), n, func(e *told) bool {
					return e.Disk == w.disk[s.Name] && e.Path == "/f" && e.Content != nil && !e.Content.Torn && fmt.Sprintf("%x", e.Content.SHA256) == want
				})
			}
			torn := 0
			for _, e := range w.events()[begin:] {
				if e.Disk != w.disk[s.Name] || e.Path != "/f" || e.Content == nil {
					continue
				}
				if e.Content.Torn {
					torn++
				} else if h := fmt.Sprintf("%x", e.Content.SHA256); !known[h] {
					t.Errorf("%s with content that never was whole: %s, %d bytes", e.Op, h[:16], len(e.Content.Data))
				}
			}
			t.Logf("%d versions, %d torn ones", len(steps), torn)
		})
	}
	if n := w.count(event.Lost, ""); n > 0 {
		t.Errorf("%d losses", n)
	}
}
