package ext4

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab/wire"
)

// streams gives the recordings of real guests: those of testdata, and those in the directory that the environment names
// (internal/guestlab/record makes them), as far as they are wanted.
func streams(t *testing.T, wanted func(name string) bool, test func(t *testing.T, r *fsoracle.Recording)) {
	t.Helper()
	packed, err := filepath.Glob("testdata/streams/*" + fsoracle.Extension)
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	if at := os.Getenv("VMSCOPE_STREAMS"); at != "" {
		if dirs, err = filepath.Glob(filepath.Join(at, "*", "log")); err != nil {
			t.Fatal(err)
		}
	}
	if len(packed)+len(dirs) == 0 {
		t.Skip("no recordings of guests in testdata/streams or $VMSCOPE_STREAMS")
	}
	run := func(name string, open func(string) (*fsoracle.Recording, error), path string) {
		if !wanted(name) {
			return
		}
		r, err := open(path)
		t.Run(name, func(t *testing.T) {
			if err != nil {
				t.Fatal(err)
			}
			test(t, r)
		})
	}
	for _, p := range packed {
		run(strings.TrimSuffix(filepath.Base(p), fsoracle.Extension), fsoracle.Open, p)
	}
	for _, d := range dirs {
		run(filepath.Base(filepath.Dir(d)), fsoracle.ReadDir, filepath.Dir(d))
	}
}

// At every moment of which the guest told its tree, a look at the disk shows that tree.
func TestStreams(t *testing.T) {
	few := []string{"ext4", "ext2-1k", "inline-data", "ea-inode", "fast-commit", "recover-ext4"}
	wanted := func(name string) bool { return !testing.Short() || slices.Contains(few, name) }
	streams(t, wanted, func(t *testing.T, r *fsoracle.Recording) {
		journal, fast := 0, 0
		points := r.Points
		if len(points) > 0 && points[0].What == "mounted" {
			// What the guest saw once it had recovered the journal is what a look before it shows.
			first := points[0]
			first.Entries = 0
			points = append([]fsoracle.Point{first}, points...)
		}
		for _, p := range points {
			if p.Tree == nil {
				continue
			}
			image, err := r.Image(p.Entries)
			if err != nil {
				t.Fatal(err)
			}
			v, err := Open(block.Bytes(image))
			if err != nil {
				t.Fatal(err)
			}
			if rec := v.Recovery(); rec.Err != nil {
				t.Errorf("entry %d: recovery: %v", p.Entries, rec.Err)
			}
			got, want := guestListing(t, v), toldListing(p.Tree)
			if v.Super().incompat(IncompatEncrypt) {
				got, want = withoutSecrets(got), withoutSecrets(want)
			}
			if v.Super().incompat(IncompatInlineData) {
				oldContent(t, v, got, want)
			}
			if diff := got.diff(want); diff != "" {
				t.Errorf("entry %d, %s: %+v\n%s", p.Entries, p.What, v.Recovery(), diff)
			}
			journal += v.Recovery().Transactions
			fast += v.Recovery().FastCommits
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
		t.Logf("%d transactions and %d fast commits replayed", journal, fast)
	})
}

// withoutSecrets lists inodes instead of names, without what only the owner of the key knows.
func withoutSecrets(l listing) listing {
	out := listing{}
	for _, s := range l {
		ino, rest, _ := strings.Cut(s, " ")
		head, tail, _ := strings.Cut(rest, " target=")
		_, tail, _ = strings.Cut(tail, " xattrs=")
		if strings.Contains(head, " symlink ") {
			head, _, _ = strings.Cut(head, " size=")
		}
		out[ino] = head + tail
	}
	return out
}

// oldContent forgives what the kernel does wrong, in one file at most: what lay in an inode is logged as a block when it
// becomes too large for that (ext4_convert_inline_data_nolock). When the file goes and the block becomes another file's,
// the block's log entry is not revoked, and its old content is written home over the new one. The guest does not see that
// as long as its page cache lasts, e2fsck and debugfs do.
func oldContent(t *testing.T, v *Volume, got, want listing) {
	t.Helper()
	cut := func(s string) (before, sum, after string) {
		before, s, _ = strings.Cut(s, " sum=")
		sum, after, _ = strings.Cut(s, " ")
		return before, sum, after
	}
	for path := range got {
		before, sum, after := cut(got[path])
		told, wantSum, rest := cut(want[path])
		if before != told || after != rest || sum == wantSum {
			continue
		}
		if in, err := v.Lstat(path); err == nil && in.IsRegular() && !in.Inline() {
			t.Logf("%q: content is not what the guest saw", path)
			got[path] = want[path]
			return
		}
	}
}

const guestFormat = "ino=%d gen=%d %s mode=%o uid=%d gid=%d size=%d nlink=%d target=%q dev=%x sum=%s xattrs=%s"

// told is a tree as the guest told it.
func toldListing(tree []wire.File) listing {
	l := listing{}
	for _, f := range tree {
		var attrs []string
		for _, x := range f.Xattrs {
			attrs = append(attrs, fmt.Sprintf("%q:%d:%.16s", x.Name, x.Len, x.Sum))
		}
		sort.Strings(attrs)
		l[string(f.Path)] = fmt.Sprintf(guestFormat, f.Inode, f.Generation, f.Kind, f.Mode, f.UID, f.GID, f.Size, f.Nlink, f.Target, f.Device, fmt.Sprintf("%.16s", f.Sum), attrs)
	}
	return l
}

// guestListing is the same of a volume.
func guestListing(t *testing.T, v *Volume) listing {
	t.Helper()
	l := listing{}
	sum := func(b []byte) string {
		s := sha256.Sum256(b)
		return hex.EncodeToString(s[:8])
	}
	err := v.Walk("/", func(path string, in *Inode, err error) error {
		if err != nil {
			t.Errorf("%q: %v", path, err)
			return nil
		}
		if !in.ChecksumOK {
			t.Errorf("%q: inode %d has a wrong checksum", path, in.Number)
		}
		var content, target string
		switch {
		case in.IsRegular():
			f, err := v.OpenInode(in)
			if errors.Is(err, ErrEncrypted) {
				break
			} else if err != nil {
				t.Errorf("%q: %v", path, err)
				break
			}
			b := make([]byte, f.Size())
			if n, err := f.ReadAt(b, 0); n < len(b) {
				t.Errorf("%q: %v", path, err)
			}
			content = sum(b)
		case in.IsSymlink():
			if target, err = v.Target(in); err != nil {
				t.Errorf("%q: %v", path, err)
			}
		}
		xattrs, err := v.Xattrs(in)
		if err != nil {
			t.Errorf("%q: %v", path, err)
		}
		var attrs []string
		for _, x := range xattrs {
			if x.Name != EncryptionXattr { // the guest shows it to nobody
				attrs = append(attrs, fmt.Sprintf("%q:%d:%s", x.Name, len(x.Value), sum(x.Value)))
			}
		}
		sort.Strings(attrs)
		a := in.Attr()
		l[path] = fmt.Sprintf(guestFormat, in.Number, in.Generation, a.Kind, a.Mode, a.UID, a.GID, a.Size, a.Nlink, target, in.Rdev(), content, attrs)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return l
}

// Wherever the guest's power fails, a look shows what e2fsck's recovery makes of the disk.
func TestStreamsCut(t *testing.T) {
	if testing.Short() {
		t.Skip("short: runs e2fsck often")
	}
	tool(t, "e2fsck")
	cuts := 2
	if os.Getenv("VMSCOPE_STREAMS") != "" {
		cuts = 8
	}
	wanted := func(name string) bool {
		// Without a journal, what a cut leaves is anything. e2fsck 1.47.0 gives up on the fast commits of Linux 6.1 and 7.2.
		return !strings.HasPrefix(name, "ext2") && name != "no-journal" && !strings.Contains(name, "fast")
	}
	streams(t, wanted, func(t *testing.T, r *fsoracle.Recording) {
		total, err := r.Entries()
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(1, total))
		for range cuts {
			entries := rnd.Uint64N(total)
			image, err := r.Image(entries)
			if err != nil {
				t.Fatal(err)
			}
			v, err := Open(block.Bytes(image))
			if err != nil {
				t.Fatal(err)
			}
			got := guestListing(t, v)
			rec := v.Recovery()
			file := filepath.Join(t.TempDir(), "cut")
			if err := os.WriteFile(file, image, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "e2fsck", "-p", file)
			want := guestListing(t, look(t, file))
			if diff := got.diff(want); diff != "" {
				t.Errorf("entry %d of %d: %+v\n%s", entries, total, rec, diff)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			v.Close()
		}
	})
}

// At any moment, fast commits leave a tree in which each inode has as many names as links. With several writers they do not:
// the kernel takes the names of a commit before it writes the inodes' records, so that a record may know of an unlink whose
// name is only in the next commit, and a recovery there leaves what e2fsck has to mend. Neither do they behind the recovery of one
// that makes a directory, which the kernel miscounts (fsoracle.Replayer.Recovered).
func TestStreamsFast(t *testing.T) {
	wanted := func(name string) bool {
		return strings.Contains(name, "fast") && !strings.HasPrefix(name, "workers") && !strings.HasPrefix(name, "power-loss-mkdir")
	}
	streams(t, wanted, func(t *testing.T, r *fsoracle.Recording) {
		total, err := r.Entries()
		if err != nil {
			t.Fatal(err)
		}
		cuts, replayed := uint64(100), 0
		if testing.Short() {
			cuts = 20
		}
		for i := range cuts {
			entries := total * i / cuts
			image, err := r.Image(entries)
			if err != nil {
				t.Fatal(err)
			}
			v, err := Open(block.Bytes(image))
			if err != nil {
				t.Fatal(err)
			}
			rec := v.Recovery()
			if rec.Err != nil {
				t.Errorf("entry %d: %v", entries, rec.Err)
			}
			if replayed += rec.FastCommits; rec.FastCommits > 0 {
				for _, s := range countLinks(t, v) {
					t.Errorf("entry %d: %s", entries, s)
				}
			}
			v.Close()
		}
		if replayed == 0 {
			t.Error("no fast commit was met")
		}
	})
}

// countLinks tells of inodes that have not as many names as links.
func countLinks(t *testing.T, v *Volume) (wrong []string) {
	t.Helper()
	names, links := map[uint32]uint32{}, map[uint32]uint32{}
	if err := v.Walk("/", func(path string, in *Inode, err error) error {
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		names[in.Number]++
		links[in.Number] = in.Links
		if !in.IsDir() {
			return v.Extents(in, nil, nil)
		}
		names[in.Number]++ // "."
		return v.Entries(in, func(e Entry) bool {
			if sub, err := v.Inode(e.Ino); err == nil && sub.IsDir() {
				names[in.Number]++ // its ".."
			}
			return true
		})
	}); err != nil {
		wrong = append(wrong, err.Error())
	}
	for ino, n := range names {
		if links[ino] != n {
			wrong = append(wrong, fmt.Sprintf("inode %d has %d links and %d names", ino, links[ino], n))
		}
	}
	return wrong
}

// moving is the disk of a guest that goes on: from some read on it is as it was later.
type moving struct {
	now, later block.Bytes
	reads      int // until then
}

func (m *moving) Size() int64 { return m.now.Size() }

func (m *moving) ReadAt(p []byte, off int64) (int, error) {
	if m.reads--; m.reads < 0 {
		return m.later.ReadAt(p, off)
	}
	return m.now.ReadAt(p, off)
}

// A look at a guest that writes on meanwhile is of one moment or the other where the journal moved while it was read, and
// nothing worse than contradictory where it moved later.
func TestStreamsMove(t *testing.T) {
	streams(t, func(name string) bool { return name == "small-journal" || name == "fast-commit" }, func(t *testing.T, r *fsoracle.Recording) {
		total, err := r.Entries()
		if err != nil {
			t.Fatal(err)
		}
		now, err := r.Image(total / 3)
		if err != nil {
			t.Fatal(err)
		}
		later, err := r.Image(total / 2)
		if err != nil {
			t.Fatal(err)
		}
		open := func(reads int) (*Volume, *moving) {
			m := &moving{now: now, later: later, reads: reads}
			v, err := Open(m)
			if err != nil {
				t.Fatalf("moved at read %d: %v", reads, err)
			}
			return v, m
		}
		v, _ := open(0)
		want, last := guestListing(t, v), v.Recovery().LastTID
		moved := 0
		for reads := 1; reads < 400; reads = reads*5/4 + 1 {
			v, m := open(reads)
			if m.reads >= 0 { // it moves after Open
				exercise(t, v)
				break
			}
			rec := v.Recovery()
			// An error is told; without one the journal was read as it was then, the old one or the new one.
			if rec.Err == nil && rec.LastTID == last {
				moved++
				if diff := guestListing(t, v).diff(want); diff != "" {
					t.Errorf("moved at read %d: %+v\n%s", reads, rec, diff)
				}
			} else {
				exercise(t, v)
			}
			v.Close()
		}
		if moved == 0 {
			t.Error("the journal never moved while it was read")
		}
	})
}
