package ext4

import (
	"testing"
	"time"

	"vmscope/block"
)

// TestLargeInodes has a file made whose inode is larger than 4 KiB, where no inode was written before.
func TestLargeInodes(t *testing.T) {
	f, err := block.OpenFile(mkfs(t, "", "256M", "-t", "ext4", "-b", "65536", "-I", "8192", "-N", "4096"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := Attach(f)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	if fs.sb.InodeSize != 8192 {
		t.Fatalf("inodes of %d bytes", fs.sb.InodeSize)
	}
	root, err := fs.before().inode(make([]byte, fs.sb.BlockSize), RootInode)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := fs.dirSpans(fs.before(), &root, nil)
	if err != nil || len(spans) == 0 {
		t.Fatalf("the root lies at %v, %v", spans, err)
	}
	const ino = 40 // mke2fs wrote those up to 11
	l := &logging{fs, map[uint64][]byte{}}
	if unused := fs.newTxn(nil, 1, time.Time{}, "").unused(0); unused >= ino {
		t.Fatalf("%d inodes were used", unused)
	}
	l.put(ino, fileMode, 1)
	le.PutUint16(l.inode(RootInode)[26:], 4)
	putDirents(l.block(spans[0].start), 3, func(i uint32) (uint32, string) {
		return []uint32{RootInode, RootInode, ino}[i], []string{".", "..", "large"}[i]
	})
	events, err := fs.commit(l.tx(1), time.Time{})
	var made bool
	for _, e := range events {
		made = made || e.Op == "MKFILE" && e.Path == "/large" && e.Inode == ino
	}
	if err != nil || !made {
		t.Errorf("%+v, %v, want MKFILE: /large", events, err)
	}
}

// TestScatteredJournal looks for the blocks of a journal of which each lies by itself. To try one piece after another for each
// would take a hundred thousand million steps.
func TestScatteredJournal(t *testing.T) {
	const pieces = 1 << 19
	j := &journal{spans: make([]journalSpan, pieces)}
	for i := range j.spans {
		j.spans[i] = journalSpan{start: 10 + 3*uint64(i), count: 2, index: uint32(2 * (pieces - i))}
	}
	for i := range uint64(pieces) {
		for k := range uint64(3) {
			index, ok := j.at(10 + 3*i + k)
			if want := uint32(2*(pieces-i) + k); ok != (k < 2) || ok && index != want {
				t.Fatalf("block %d: %d, %v, want %d", 10+3*i+k, index, ok, want)
			}
		}
	}
	for _, b := range []uint64{0, 9, 10 + 3*pieces, 1 << 63} {
		if index, ok := j.at(b); ok {
			t.Errorf("block %d is said to be that of index %d", b, index)
		}
	}
}
