package ext4

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
)

// Records that are ahead of their names leave no name of a file that is deleted.
func TestLookHolds(t *testing.T) {
	b, err := os.ReadFile(mkfs(t, "", "8M", "-t", "ext4"))
	if err != nil {
		t.Fatal(err)
	}
	made := []jbd2.FCOp{file(20, 1, 1), creat(RootInode, 20, "a"), file(21, 1, 1), creat(RootInode, 21, "b")}
	for _, c := range []struct {
		what string
		ops  []jbd2.FCOp
		want []string
	}{
		{"gone, and the number another's", []jbd2.FCOp{file(20, 2, 0)}, []string{"a 20/1", "b 21/1"}},
		{"gone", []jbd2.FCOp{file(20, 1, 0)}, []string{"a 20/1", "b 21/1"}},
		{"gone with its name", []jbd2.FCOp{unlink(RootInode, 20, "a"), file(20, 1, 0)}, []string{"b 21/1"}},
		{"a new one, gone", []jbd2.FCOp{file(22, 1, 0), creat(RootInode, 22, "c"), file(22, 1, 0)}, []string{"a 20/1", "b 21/1"}},
		{"moved, and gone", []jbd2.FCOp{link(RootInode, 20, "c"), unlink(RootInode, 20, "a"), file(20, 1, 0)}, []string{"a 20/1", "b 21/1"}},
		{"a name that goes twice", []jbd2.FCOp{unlink(RootInode, 21, "b"), link(RootInode, 20, "b"), unlink(RootInode, 20, "a"),
			unlink(RootInode, 20, "b"), file(20, 1, 0)}, nil},
		{"a name that is another's", []jbd2.FCOp{file(22, 1, 1), creat(RootInode, 22, "a")}, []string{"a 20/1", "b 21/1"}},
		{"a name that does not lead there", []jbd2.FCOp{unlink(RootInode, 21, "a")}, []string{"a 20/1", "b 21/1"}},
		{"a directory", []jbd2.FCOp{dir(22, 1), creat(RootInode, 22, "d")}, []string{"a 20/1", "b 21/1", "d 22/1"}},
	} {
		v, err := Open(block.Bytes(b))
		if err != nil {
			t.Fatal(err)
		}
		if v.fast, err = v.newFastLook(); err != nil {
			t.Fatal(err)
		}
		root, err := v.Inode(RootInode)
		if err != nil {
			t.Fatal(err)
		}
		for _, ops := range [][]jbd2.FCOp{made, c.ops} {
			if err := v.fastCommit(v.fast, &jbd2.FastCommit{Ops: ops}); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		var got []string
		if err := v.Walk("/", func(path string, in *Inode, err error) error {
			if in.Number >= 20 {
				got = append(got, fmt.Sprintf("%s %d/%d", path[1:], in.Number, in.Generation))
			}
			return err
		}); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
		want := root.Links
		if slices.Contains(c.want, "d 22/1") {
			want++
		}
		if now, err := v.Inode(RootInode); err != nil || now.Links != want {
			t.Errorf("%s: the root has %d links, want %d, %v", c.what, now.Links, want, err)
		}
		v.Close()
	}
}
