package ext4

import (
	"errors"
	"time"

	"vmscope/event"
)

// recovered says whether all that the model holds of the journal is at home: its superblock says that the log is empty, or that
// it goes on behind a transaction that never was, which is how a recovery ends (fs/jbd2/recovery.c, jbd2_journal_recover). A
// superblock from before Attach says neither, or else there was nothing to recover then.
func (j *journal) recovered() bool {
	sb := j.stream.Super()
	ahead := int32(sb.Sequence - (j.last + 1))
	return ahead > 0 || ahead == 0 && sb.Start == 0
}

// forgetJournal takes the blocks at home for all there is. A recovery plays fast commits there, past the journal, and where it
// made something else of them than was told, that is told now.
func (f *FS) forgetJournal(when time.Time) ([]event.Event, error) {
	f.takeFound()
	f.store.clear()
	f.journal.behind = false
	if f.fast.size == 0 {
		return nil, nil
	}
	t := f.newTxn(nil, uint64(f.journal.last)+1, when, event.FastCommit)
	f.reads = map[uint64][]byte{}
	defer func() { f.reads, f.fast = nil, fastState{} }()
	for ino := range f.fast.inodes {
		t.compareHome(ino)
	}
	at := map[uint32]map[string]entry{}
	for dir, names := range f.fast.names {
		at[dir] = make(map[string]entry, len(names))
		for name := range names {
			at[dir][name] = entry{}
		}
		t.fail(wrapDir(dir, f.lookup(t.new, dir, at[dir])))
		for _, e := range at[dir] {
			if e.ino != 0 && e.ino <= f.sb.Inodes {
				t.compareHome(e.ino)
			}
		}
	}
	for dir, names := range f.fast.names {
		for name, e := range names {
			now := at[dir][name].ino
			if e.is == now && (now == 0 || !t.isReplaced(now)) {
				continue
			}
			if e.is != 0 {
				t.removed = append(t.removed, edit{place: place{node{ino: dir}, name}, ino: e.is})
			}
			if now != 0 {
				t.added = append(t.added, edit{place: place{node{dir, t.isReplaced(dir)}, name}, ino: now})
			}
		}
	}
	t.locate()
	t.names()
	t.attributes()
	t.remember()
	t.release()
	return t.events, t.err()
}

// compareHome compares an inode, as fast commits told it, with that at home.
func (t *txn) compareHome(ino uint32) {
	if t.inodes.of(ino) != nil {
		return
	}
	old, _, err := t.rawInode(t.old, ino)
	now, _, herr := t.rawInode(t.new, ino)
	if err = errors.Join(err, herr); err != nil {
		t.fail(err)
		return
	}
	c := &change{ino: ino, old: old, new: now}
	if c.stays() && old.Size == now.Size {
		c.old.Block, c.old.Mtime = now.Block, now.Mtime // recovery builds the map anew, of the same blocks
	}
	t.note(c)
}
