package ext4

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
)

// A record of a hand-made fast commit.
func creat(dir, ino uint32, name string) jbd2.FCOp {
	return jbd2.FCOp{Tag: jbd2.FCCreat, Parent: dir, Ino: ino, Name: []byte(name)}
}

func link(dir, ino uint32, name string) jbd2.FCOp {
	return jbd2.FCOp{Tag: jbd2.FCLink, Parent: dir, Ino: ino, Name: []byte(name)}
}

func unlink(dir, ino uint32, name string) jbd2.FCOp {
	return jbd2.FCOp{Tag: jbd2.FCUnlink, Parent: dir, Ino: ino, Name: []byte(name)}
}

func inode(ino uint32, mode uint16, generation uint32, links uint16) jbd2.FCOp {
	raw := make([]byte, 160)
	le.PutUint16(raw, mode)
	le.PutUint16(raw[26:], links)
	le.PutUint32(raw[100:], generation)
	le.PutUint16(raw[128:], 32)
	return jbd2.FCOp{Tag: jbd2.FCInode, Ino: ino, Inode: raw}
}

func file(ino, generation uint32, links uint16) jbd2.FCOp {
	return inode(ino, sIFREG|0o644, generation, links)
}

func dir(ino, generation uint32) jbd2.FCOp { return inode(ino, sIFDIR|0o755, generation, 2) }

func texts(events []event.Event) []string {
	var list []string
	for _, e := range events {
		text := fmt.Sprintf("%s %s %d/%d", e.Op, e.Path, e.Inode, e.Generation)
		if e.OldPath != "" {
			text = fmt.Sprintf("%s %s -> %s %d/%d", e.Op, e.OldPath, e.Path, e.Inode, e.Generation)
		}
		if e.Attr != nil && e.Attr.Kind != event.Dir {
			text += fmt.Sprintf(" links %d", e.Attr.Nlink)
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

// attachSmall attaches to an empty file system with fast commits: its root has lost+found, inode 11, and no other name.
func attachSmall(t *testing.T) *FS {
	t.Helper()
	f, err := block.OpenFile(mkfs(t, "", "16M", "-t", "ext4", "-b", "1024", "-O", "fast_commit,^uninit_bg,^metadata_csum,^metadata_csum_seed,^orphan_file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fs, err := Attach(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	return fs
}

// TestFastCommits has fast commits tell names and inodes that do not go together, as those of real guests with several
// processes do now and then, and checks what is told of each, and what of the full commit behind them, which logs nothing:
// it takes back all that they told.
func TestFastCommits(t *testing.T) {
	type commit struct {
		ops  []jbd2.FCOp
		want []string
	}
	made := commit{[]jbd2.FCOp{file(12, 1, 1), creat(2, 12, "a")}, []string{"MKFILE /a 12/1 links 1"}}
	for _, c := range []struct {
		name    string
		commits []commit
		full    []string
	}{
		{"a link before its name", []commit{
			made,
			{[]jbd2.FCOp{file(12, 1, 2)}, nil},
			{[]jbd2.FCOp{link(2, 12, "b")}, []string{"LINK /b 12/1 links 2"}},
		}, []string{"RMFILE /a 12/1 links 0", "RMFILE /b 12/1 links 0"}},
		{"no link before its name goes", []commit{
			made,
			{[]jbd2.FCOp{file(12, 1, 0)}, nil},
			{[]jbd2.FCOp{unlink(2, 12, "a")}, []string{"RMFILE /a 12/1 links 0"}},
		}, nil},
		{"told again", []commit{made, {made.ops, nil}}, []string{"RMFILE /a 12/1 links 0"}},
		{"told again, and renamed", []commit{
			made,
			{[]jbd2.FCOp{file(12, 1, 1), creat(2, 12, "a"), link(2, 12, "b"), unlink(2, 12, "a")}, []string{"RENAME /a -> /b 12/1 links 1"}},
		}, []string{"RMFILE /b 12/1 links 0"}},
		{"a name that came and went", []commit{{[]jbd2.FCOp{unlink(2, 12, "a")}, nil}}, nil},
		{"a number that went to another file", []commit{
			made,
			{[]jbd2.FCOp{unlink(2, 12, "a"), file(12, 2, 1), creat(2, 12, "b")}, []string{"MKFILE /b 12/2 links 1", "RMFILE /a 12/1 links 0"}},
		}, []string{"RMFILE /b 12/2 links 0"}},
		{"a number and its name", []commit{
			made,
			{[]jbd2.FCOp{unlink(2, 12, "a"), file(12, 2, 1), creat(2, 12, "a")}, []string{"MKFILE /a 12/2 links 1", "RMFILE /a 12/1 links 0"}},
		}, []string{"RMFILE /a 12/2 links 0"}},
		{"the number of a file that has a name", []commit{made, {[]jbd2.FCOp{file(12, 2, 1), creat(2, 12, "b")}, nil}}, []string{"RMFILE /a 12/1 links 0"}},
		{"a name that another file has", []commit{made, {[]jbd2.FCOp{file(13, 1, 1), creat(2, 13, "a")}, nil}}, []string{"RMFILE /a 12/1 links 0"}},
		{"a name without a record", []commit{{[]jbd2.FCOp{link(2, 12, "a")}, nil}}, nil},
		{"a record without a name", []commit{{[]jbd2.FCOp{file(12, 1, 1)}, nil}, made}, []string{"RMFILE /a 12/1 links 0"}},
		{"a new file without links", []commit{{[]jbd2.FCOp{file(12, 1, 0), creat(2, 12, "a")}, nil}}, nil},
		{"in a directory that nobody told", []commit{
			{[]jbd2.FCOp{file(12, 1, 1), creat(20, 12, "a")}, nil},
			{[]jbd2.FCOp{file(12, 1, 2), link(2, 12, "b")}, nil},
		}, nil},
		{"in directories below it", []commit{
			{[]jbd2.FCOp{dir(21, 1), creat(20, 21, "d"), file(12, 1, 1), creat(21, 12, "a"), dir(22, 1), creat(21, 22, "d")}, nil},
		}, nil},
		{"in a new directory", []commit{
			{[]jbd2.FCOp{dir(20, 1), creat(2, 20, "d"), file(12, 1, 1), creat(20, 12, "a")}, []string{"MKDIR /d 20/1", "MKFILE /d/a 12/1 links 1"}},
			{[]jbd2.FCOp{unlink(20, 12, "a"), unlink(2, 20, "d")}, []string{"RMDIR /d 20/1", "RMFILE /d/a 12/1 links 0"}},
		}, nil},
		{"a directory that is not empty", []commit{
			{[]jbd2.FCOp{dir(20, 1), creat(2, 20, "d"), file(12, 1, 1), creat(20, 12, "a")}, []string{"MKDIR /d 20/1", "MKFILE /d/a 12/1 links 1"}},
			{[]jbd2.FCOp{unlink(2, 20, "d")}, nil},
			{[]jbd2.FCOp{unlink(2, 20, "d"), dir(20, 2), creat(2, 20, "e")}, nil},
		}, []string{"RMDIR /d 20/1", "RMFILE /d/a 12/1 links 0"}},
		{"a directory's number", []commit{
			{[]jbd2.FCOp{dir(20, 1), creat(2, 20, "d"), file(12, 1, 1), creat(20, 12, "a")}, []string{"MKDIR /d 20/1", "MKFILE /d/a 12/1 links 1"}},
			{[]jbd2.FCOp{unlink(20, 12, "a"), unlink(2, 20, "d"), dir(20, 2), creat(2, 20, "e"), file(12, 2, 1), creat(20, 12, "a")}, []string{
				"MKDIR /e 20/2", "MKFILE /e/a 12/2 links 1", "RMDIR /d 20/1", "RMFILE /d/a 12/1 links 0",
			}},
		}, []string{"RMDIR /e 20/2", "RMFILE /e/a 12/2 links 0"}},
		{"a directory with two names", []commit{
			{[]jbd2.FCOp{dir(20, 1), creat(2, 20, "d")}, []string{"MKDIR /d 20/1"}},
			{[]jbd2.FCOp{link(2, 20, "e")}, nil},
		}, []string{"RMDIR /d 20/1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := attachSmall(t)
			tid := fs.Last() + 1
			for i, fc := range c.commits {
				events, err := fs.FastCommit(&jbd2.FastCommit{TID: tid, Ops: fc.ops})
				if got := texts(events); err != nil || !slices.Equal(got, fc.want) {
					t.Errorf("commit %d: %s, %v; want %s", i, strings.Join(got, ", "), err, strings.Join(fc.want, ", "))
				}
			}
			events, err := fs.Commit(&jbd2.Tx{TID: tid})
			if got := texts(events); err != nil || !slices.Equal(got, c.full) {
				t.Errorf("full commit: %s, %v; want %s", strings.Join(got, ", "), err, strings.Join(c.full, ", "))
			}
		})
	}
}

// TestRecoveredFastCommits has a recovery make of a fast commit what lies at home.
func TestRecoveredFastCommits(t *testing.T) {
	fs := attachSmall(t)
	tid := fs.Last() + 1
	for _, ops := range [][]jbd2.FCOp{
		{file(12, 1, 1), creat(2, 12, "a"), file(13, 1, 1), creat(2, 13, "b")},
		{unlink(2, 11, "lost+found"), unlink(2, 13, "b")},
	} {
		if _, err := fs.FastCommit(&jbd2.FastCommit{TID: tid, Ops: ops}); err != nil {
			t.Fatal(err)
		}
	}
	events, err := fs.forgetJournal(time.Time{})
	want := []string{"MKDIR /lost+found 11/0", "RMFILE /a 12/1 links 0"}
	if got := texts(events); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s, %v; want %s", strings.Join(got, ", "), err, strings.Join(want, ", "))
	}
	if events, err := fs.forgetJournal(time.Time{}); len(events) > 0 || err != nil {
		t.Errorf("again: %v, %v", events, err)
	}
}
