package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/mem"
)

// copyImage copies an image, holes left holes.
func copyImage(tb testing.TB, image string) string {
	tb.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	name := filepath.Join(tb.TempDir(), "copy")
	f, err := os.Create(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	zero := make([]byte, 65536)
	for off := 0; off < len(b); off += len(zero) {
		if p := b[off:min(off+len(zero), len(b))]; !bytes.Equal(p, zero[:len(p)]) {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		tb.Fatal(err)
	}
	return name
}

// changed lists the blocks in which two images differ, and gives those of the second.
func changed(tb testing.TB, a, b string, size int) (blocks []int, content []byte) {
	tb.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		tb.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		tb.Fatal(err)
	}
	for off := 0; off < len(x); off += size {
		if !bytes.Equal(x[off:off+size], y[off:off+size]) {
			blocks = append(blocks, off/size)
			content = append(content, y[off:off+size]...)
		}
	}
	return blocks, content
}

// smallTree is enough to change something in.
func smallTree(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	for i := range 60 {
		name := filepath.Join(dir, fmt.Sprintf("d%d", i%5), fmt.Sprintf("f%d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(name, pattern(i*700, byte(i)), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// logChanges writes what differs between two images into the journal of the first, in several transactions, and says which
// blocks. Something else is logged before, and revoked.
func logChanges(tb testing.TB, image, goal string, size int, open string) []int {
	tb.Helper()
	blocks, content := changed(tb, image, goal, size)
	if len(blocks) < 8 {
		tb.Fatalf("only blocks %v changed", blocks)
	}
	dir := tb.TempDir()
	list := func(blocks []int) string { return strings.Trim(strings.ReplaceAll(fmt.Sprint(blocks), " ", ","), "[]") }
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	// Data that begins with the journal's magic has to be escaped there.
	escaped := pattern(size, 9)
	copy(escaped, "\xc0\x3b\x39\x98")
	half := len(blocks) / 2
	blank := 48<<20/size - 10
	debugfs(tb, image, open,
		fmt.Sprintf("jw -b %s,%d %s", list(blocks), blank, file("one", append(pattern(len(content), 1), escaped...))),
		fmt.Sprintf("jw -b %s %s", list(blocks[:half]), file("two", content[:half*size])),
		fmt.Sprintf("jw -r %d", blank), // in a transaction of its own: debugfs writes no good one with both
		fmt.Sprintf("jw -b %s,%d %s", list(blocks[half:]), blank+1, file("three", append(slices.Clone(content[half*size:]), escaped...))),
		fmt.Sprintf("jw -c -b %s %s", list(blocks), file("four", pattern(len(content), 5))),
		"jc")
	return blocks
}

var changes = []string{
	"mkdir /new", "mkdir /new/sub", "rm /d1/f1", "symlink /d2/link /d1/f6", "ln /d3/f3 /d4/second", "mknod pipe p",
	"set_inode_field /d2/f7 mode 0100600", "set_inode_field /d2/f7 uid 4711", "rmdir /lost+found",
}

var journals = []struct{ name, options, open string }{
	{"checksums", "-t ext4", "jo -c -v 3"},
	{"version 2", "-t ext4 -b 1024", "jo -c -v 2"},
	{"none", "-t ext4 -O ^metadata_csum", "jo"},
	{"ext3", "-t ext3 -b 1024", "jo"},
}

func TestJournal(t *testing.T) {
	tree := smallTree(t)
	for _, c := range journals {
		t.Run(c.name, func(t *testing.T) {
			image := mkfs(t, tree, "48M", strings.Fields(c.options)...)
			home := look(t, image)
			size := home.Super().BlockSize
			goal := copyImage(t, image)
			debugfs(t, goal, changes...)
			before, want := volumeListing(t, home), volumeListing(t, look(t, goal))
			if maps.Equal(before, want) {
				t.Fatal("nothing changed")
			}
			logChanges(t, image, goal, size, c.open)
			raw, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}

			v := look(t, image)
			if diff := volumeListing(t, v).diff(want); diff != "" {
				t.Error(diff)
			}
			rec := v.Recovery()
			if !rec.Needed || rec.Transactions != 4 || rec.Err != nil || rec.LastTID-rec.FirstTID != 3 {
				t.Errorf("%+v", rec)
			}
			f, err := block.OpenFile(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h, err := OpenHome(f)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if diff := volumeListing(t, h).diff(before); diff != "" {
				t.Errorf("without the journal: %s", diff)
			}
			if now, err := os.ReadFile(image); err != nil || !bytes.Equal(now, raw) {
				t.Errorf("the image was changed: %v", err)
			}

			// debugfs's own recovery writes what the look shows.
			got := make([]byte, len(raw))
			if err := block.ReadFull(v.Device(), got, 0); err != nil {
				t.Fatal(err)
			}
			debugfs(t, image, "jr")
			compareRecovered(t, v, image, got)
		})
	}
}

// compareRecovered compares what a look showed with an image that debugfs recovered, the journal and the superblocks, which
// that writes anew, aside.
func compareRecovered(t *testing.T, v *Volume, image string, got []byte) {
	t.Helper()
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	size := v.Super().BlockSize
	skip := map[int]bool{0: true, int(v.Super().superBlockBlock): true}
	in, err := v.Inode(v.Super().JournalInode)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Extents(&in, func(e Extent) bool {
		for i := range int(e.Len) {
			skip[int(e.Physical)+i] = true
		}
		return true
	}, nil); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(want); off += size {
		if !skip[off/size] && !bytes.Equal(got[off:off+size], want[off:off+size]) {
			t.Errorf("block %d is not what debugfs makes of it", off/size)
		}
	}
}

func TestJournalElsewhere(t *testing.T) {
	image := mkfs(t, "", "16M", "-t", "ext4", "-O", "^has_journal")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	super := b[SuperOffset:][:SuperSize]
	super[0x5c] |= CompatHasJournal
	super[0xd0] = 1 // some UUID
	open := func() error {
		le.PutUint32(super[0x3fc:], crc32c(^uint32(0), super[:0x3fc]))
		v, err := Open(block.Bytes(b))
		if err == nil {
			err = v.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Errorf("nothing to recover: %v", err)
	}
	super[0x60] |= IncompatRecover
	if err := open(); !errors.Is(err, ErrExternalJournal) {
		t.Errorf("journal elsewhere: %v", err)
	}
	if v, err := OpenHome(block.Bytes(b)); err != nil {
		t.Error(err)
	} else if _, err := v.ReadDir("/"); err != nil {
		t.Error(err)
	}
	device := mkfs(t, "", "8M", "-O", "journal_dev")
	if b, err = os.ReadFile(device); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(block.Bytes(b)); !errors.Is(err, ErrJournalDevice) {
		t.Errorf("journal device: %v", err)
	}
}

// A journal that cannot be used leaves what is at home, and says so.
func TestBrokenJournal(t *testing.T) {
	image := mkfs(t, smallTree(t), "64M", "-t", "ext4")
	want := volumeListing(t, look(t, image))
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(block.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	var at int64
	in, err := v.Inode(v.Super().JournalInode)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Extents(&in, func(e Extent) bool {
		at = int64(e.Physical) << v.sb.blockBits
		return false
	}, nil); err != nil {
		t.Fatal(err)
	}
	clear(b[at : at+64])
	super := b[SuperOffset:][:SuperSize]
	super[0x60] |= IncompatRecover
	le.PutUint32(super[0x3fc:], crc32c(^uint32(0), super[:0x3fc]))
	v, err = Open(block.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if !errors.Is(v.Recovery().Err, mem.ErrInconsistent) {
		t.Errorf("recovery of no journal: %+v", v.Recovery())
	}
	if diff := volumeListing(t, v).diff(want); diff != "" {
		t.Error(diff)
	}
}
