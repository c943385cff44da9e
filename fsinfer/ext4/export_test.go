package ext4

import (
	"time"

	"vmscope/event"
	"vmscope/fsinfer/ext4/jbd2"
)

// Commit takes a transaction as if the journal had told it.
func (f *FS) Commit(tx *jbd2.Tx) ([]event.Event, error) { return f.commit(tx, time.Time{}) }

// FastCommit does the same with a fast commit.
func (f *FS) FastCommit(fc *jbd2.FastCommit) ([]event.Event, error) {
	return f.applyFast(fc, time.Time{})
}

// IndexBytes is what the index of parents takes.
func (f *FS) IndexBytes() int {
	n := 0
	for _, g := range f.parents.first {
		n += 4 * cap(g)
	}
	return n
}
