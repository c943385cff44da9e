package fsoracle

import (
	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// Recovered says that the guest has just mounted the file system, and told this tree. Where it recovered fast commits, it may have
// miscounted the links of directories: Linux counts one link of a directory that a fast commit makes (fs/ext4/fast_commit.c,
// ext4_fc_replay_create), and neither counts it in the directory around it nor leaves out there one that goes
// (ext4_fc_replay_unlink). Nothing mends that but e2fsck, which finds it. What can be explained so is not compared from now on;
// the names always are.
func (r *Replayer) Recovered(truth []wire.File) {
	ones := map[*node]uint32{} // by directory: those in it that have one link
	for _, t := range truth {
		if n := find(r.root, string(t.Path)); n != nil && n.inode.attr.Kind == event.Dir && t.Nlink == 1 {
			ones[n.parent]++
		}
	}
	for _, t := range truth {
		n := find(r.root, string(t.Path))
		if n == nil || n.inode.attr.Kind != event.Dir {
			continue
		}
		want := n.nlink()
		made := t.Nlink == 1 && n != r.root
		if made || t.Nlink < want && want-t.Nlink <= ones[n] || t.Nlink > want && t.Nlink-want <= n.inode.taken {
			n.inode.miscounted = true
		}
	}
}
