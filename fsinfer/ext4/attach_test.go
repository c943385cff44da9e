package ext4

import (
	"bytes"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
)

// TestKeptWhileBehind writes a block home twice that the journal held at Attach: what comes first may be older than what the
// journal held, though it is alike, and the disk may hold yet another.
func TestKeptWhileBehind(t *testing.T) {
	fs, ino := linked(t, nil)
	b, held := firstBlock(t, fs, ino["/a"]), bytes.Repeat([]byte{1}, fs.sb.BlockSize)
	if err := fs.store.put(b, held); err != nil {
		t.Fatal(err)
	}
	for _, caughtUp := range []bool{false, true} {
		if caughtUp {
			fs.CaughtUp()
		}
		w := block.Write{Op: block.OpWrite, Off: int64(b) * int64(len(held)), Len: int64(len(held)), Data: held}
		if _, err := fs.Apply(w); err != nil {
			t.Fatal(err)
		}
		if fs.store.has(b) == caughtUp {
			t.Errorf("caught up: %v, kept: %v", caughtUp, fs.store.has(b))
		}
	}
}

// TestFoundFastCommits has a device show the past at Attach, when /a did not have its name yet: the fast commit that was found,
// by which it went, is worked out when the device has come to the time of Attach.
func TestFoundFastCommits(t *testing.T) {
	for _, c := range []struct {
		what string
		ask  func(fs *FS) error
	}{
		{"caught up", func(fs *FS) error { fs.CaughtUp(); return nil }},
		{"a crawl", func(fs *FS) error { return fs.CrawlAll(t.Context()) }},
		{"a newer one", func(fs *FS) error { _, err := fs.applyFast(&jbd2.FastCommit{TID: 1}, time.Time{}); return err }},
		{"nothing", func(*FS) error { return nil }},
	} {
		var image, now []byte
		fs, ino := linked(t, func(b []byte, v *Volume) {
			in, err := v.Stat("/a")
			if err != nil {
				t.Fatal(err)
			}
			image, now = b, bytes.Clone(b)
			if err := v.Extents(&in, func(e Extent) bool {
				without(t, image[e.Physical*1024:][:1024], 'x')
				return false
			}, nil); err != nil {
				t.Fatal(err)
			}
		})
		fs.journal.found = []jbd2.FastCommit{{TID: 1, Ops: []jbd2.FCOp{unlink(ino["/a"], ino["/a/x"], "x")}}}
		copy(image, now)
		if err := c.ask(fs); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		names := 0
		if err := fs.Look().Names(uint64(ino["/a"]), func(string, uint64) bool { names++; return true }); err != nil || names > 0 {
			t.Errorf("%s: %d names, %v", c.what, names, err)
		}
	}
}
