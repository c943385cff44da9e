package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4/jbd2"
)

// linked makes a file system where the file /a/x is /b/y too, attaches to it, and tells inodes by path.
func linked(t *testing.T, change func(image []byte, v *Volume)) (fs *FS, ino map[string]uint32) {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "a"), 0o755), os.Mkdir(filepath.Join(dir, "b"), 0o755), os.WriteFile(filepath.Join(dir, "a/x"), nil, 0o644),
		os.Link(filepath.Join(dir, "a/x"), filepath.Join(dir, "b/y")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	path := mkfs(t, dir, "8M", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg,^inline_data")
	v := look(t, path)
	ino = map[string]uint32{}
	for _, p := range []string{"/a", "/b", "/a/x", "/b/y"} {
		in, err := v.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		ino[p] = in.Number
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(image, v)
	}
	fs, err = Attach(disk{bytes.NewReader(image)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs, ino
}

type disk struct{ *bytes.Reader }

var _ block.Device = disk{}

// firstBlock is the first block of a directory.
func firstBlock(t *testing.T, fs *FS, dir uint32) uint64 {
	t.Helper()
	v := fs.before()
	in, err := v.inode(make([]byte, fs.sb.BlockSize), dir)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := fs.dirSpans(v, &in, nil)
	if err != nil || len(spans) == 0 {
		t.Fatal(spans, err)
	}
	return spans[0].start
}

// without takes a name of one letter out of a directory's block.
func without(t *testing.T, block []byte, name byte) {
	t.Helper()
	for off := 24; off+12 <= len(block); off += int(le.Uint16(block[off+4:])) {
		if block[off+6] == 1 && block[off+8] == name {
			le.PutUint32(block[off:], 0)
			return
		}
	}
	t.Fatalf("no name %q", name)
}

// TestNameThatWentAmidCrawl takes one of two names of a file away and changes the file, when the crawl has seen only that name.
func TestNameThatWentAmidCrawl(t *testing.T) {
	fs, ino := linked(t, nil)
	file := ino["/a/x"]
	for fs.parents.of(file) == 0 {
		if _, _, err := fs.Crawl(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	seen, gone, other := fs.parents.of(file), "/a/x", "/b/y"
	if len(fs.parents.more[file]) > 0 {
		t.Fatal("the crawl has seen both")
	}
	if seen == ino["/b"] {
		gone, other = other, gone
	}
	l := &logging{fs, map[uint64][]byte{}}
	without(t, l.block(firstBlock(t, fs, seen)), gone[3])
	l.inode(seen)[12]++ // its time
	raw := l.inode(file)
	le.PutUint16(raw[26:], 1)
	le.PutUint16(raw, le.Uint16(raw)^0o11)
	events, err := fs.commit(l.tx(1), time.Time{})
	if err != nil || len(events) != 2 || events[0].Op != event.RmFile || events[0].Path != gone || events[1].Op != event.Chmod || events[1].Path != other {
		t.Errorf("%v, %v, want RMFILE: %s and CHMOD: %s", events, err, gone, other)
	}
}

// TestUntold changes a file that no directory names.
func TestUntold(t *testing.T) {
	fs, ino := linked(t, func(image []byte, v *Volume) {
		fs, err := Attach(disk{bytes.NewReader(image)})
		if err != nil {
			t.Fatal(err)
		}
		defer fs.Close()
		for dir, name := range map[string]byte{"/a": 'x', "/b": 'y'} {
			in, err := v.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			without(t, image[firstBlock(t, fs, in.Number)*1024:][:1024], name)
		}
	})
	l := &logging{fs, map[uint64][]byte{}}
	raw := l.inode(ino["/a/x"])
	le.PutUint16(raw, le.Uint16(raw)^0o11)
	if events, err := fs.commit(l.tx(1), time.Time{}); !errors.Is(err, fsinfer.ErrUntold) || len(events) > 0 {
		t.Errorf("%v, %v, want ErrUntold", events, err)
	}
	if fs.parents.next <= fs.parents.total {
		t.Error("the crawl was not brought to its end first")
	}
}

// TestCrawlBehindFastCommit takes one of two names of a file away, by a fast commit: the crawl that comes then is not to count
// the entry that is in the directory's block still.
func TestCrawlBehindFastCommit(t *testing.T) {
	fs, ino := linked(t, nil)
	file := ino["/a/x"]
	fc := &jbd2.FastCommit{TID: 1, Ops: []jbd2.FCOp{unlink(ino["/a"], file, "x")}}
	if events, err := fs.applyFast(fc, time.Time{}); err != nil || len(events) != 1 || events[0].Op != event.RmFile || events[0].Path != "/a/x" {
		t.Fatal(events, err)
	}
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dir, more := fs.parents.of(file), fs.parents.more[file]; dir != ino["/b"] || len(more) > 0 {
		t.Errorf("the file is in directories %d %d, want %d", dir, more, ino["/b"])
	}
}

// TestDirectoryWithTwoNames has a directory get one more name, in a transaction that takes a name of another file away: the disk
// says nothing of the directory's first name, which is told as gone, and that must not cost the other.
func TestDirectoryWithTwoNames(t *testing.T) {
	fs, ino := linked(t, nil)
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := ino["/a/x"]
	if file < ino["/a"] {
		t.Fatal("the file is to be told behind the directory")
	}
	l := &logging{fs, map[uint64][]byte{}}
	b := l.block(firstBlock(t, fs, ino["/b"]))
	without(t, b, 'y')
	last := 0
	for off := 0; off < len(b); off += int(le.Uint16(b[off+4:])) {
		last = off
	}
	room := int(le.Uint16(b[last+4:])) - 12
	le.PutUint16(b[last+4:], 12)
	add := b[last+12:]
	le.PutUint32(add, ino["/a"])
	le.PutUint16(add[4:], uint16(room))
	add[6], add[7], add[8] = 1, FileTypeDir, 'z'
	l.inode(ino["/b"])[12]++ // its time
	le.PutUint16(l.inode(file)[26:], 1)
	events, err := fs.commit(l.tx(1), time.Time{})
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s%s", e.Op, e.OldPath, e.Path))
	}
	slices.Sort(got)
	if want := []string{"RENAME /a/b/z", "RMFILE /b/y"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// TestManyNames takes away a directory, with more names in it than may be held: that is not told, but that it cannot be is.
func TestManyNames(t *testing.T) {
	for most, told := range map[int]bool{0: false, 1: true} {
		fs, ino := linked(t, nil)
		if err := fs.CrawlAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		fs.most = most
		l := &logging{fs, map[uint64][]byte{}}
		without(t, l.block(firstBlock(t, fs, RootInode)), 'a')
		clear(l.inode(ino["/a"])[:128])
		le.PutUint16(l.inode(ino["/a/x"])[26:], 1)
		events, err := fs.commit(l.tx(1), time.Time{})
		if gone := slices.ContainsFunc(events, func(e event.Event) bool { return e.Op == event.RmFile && e.Path == "/a/x" }); gone != told || errors.Is(err, fsinfer.ErrUntold) == told {
			t.Errorf("with %d names: %v, %v", most, events, err)
		}
	}
}
