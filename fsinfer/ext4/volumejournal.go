package ext4

import (
	"errors"
	"fmt"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/mem"
)

// recoverTries is how often a journal is read that a running guest moves on meanwhile.
const recoverTries = 5

// recover applies the journal in memory. It fails where nothing can be said of the journal at all; what else goes wrong is
// in Recovery.
func (v *Volume) recover() error {
	// As the kernel does (ext4_load_journal): without the flag, a journal is wiped unread.
	if !v.sb.incompat(IncompatRecover) {
		return nil
	}
	v.rec.Needed = true
	if v.sb.JournalInode == 0 {
		return ErrExternalJournal
	}
	for try := 1; ; try++ {
		err := v.replay()
		if !errors.Is(err, jbd2.ErrChanged) || try == recoverTries {
			v.rec.Err = err
			break
		}
		if err := v.dev.Close(); err != nil {
			return err
		}
		v.dev, v.rec = block.NewOverlay(v.base, overlayMemory, overlayFile), Recovery{Needed: true}
	}
	home := v.sb
	if err := v.super(); err != nil { // the journal's copy of it, or one of a guest that goes on
		v.sb = home
		v.rec.Err = errors.Join(v.rec.Err, err)
	}
	return nil
}

// journalFile opens the journal as the disk has it.
func (v *Volume) journalFile() (*File, error) {
	// What is logged must not change what is read of the log.
	home := &Volume{sb: v.sb, base: v.base, dev: block.NewOverlay(v.base, 0, 0)}
	in, err := home.Inode(v.sb.JournalInode)
	if err != nil {
		return nil, fmt.Errorf("ext4: journal: %w", err)
	}
	if !in.IsRegular() || in.Inline() || in.Links == 0 {
		return nil, fmt.Errorf("ext4: journal: inode %d of mode %#o, flags %#x: %w", in.Number, in.Mode, in.Flags, mem.ErrInconsistent)
	}
	return &File{v: home, in: in}, nil
}

func (v *Volume) replay() error {
	f, err := v.journalFile()
	if err != nil {
		return err
	}
	b := make([]byte, v.sb.BlockSize)
	if err := block.ReadFull(f, b, 0); err != nil {
		return fmt.Errorf("ext4: journal: %w", err)
	}
	js, err := jbd2.ParseSuper(b)
	if err != nil {
		return err
	}
	if err := js.Check(uint32(v.sb.BlockSize), uint64(f.Size())>>v.sb.blockBits); err != nil {
		return err
	}
	read := func(p []byte, index uint32) error {
		return block.ReadFull(f, p, int64(index)<<v.sb.blockBits)
	}
	seen := map[uint64]struct{}{} // no more than the journal has blocks
	var outside error
	last, err := jbd2.Recover(js, read, func(tx *jbd2.Tx) error {
		for _, l := range tx.Blocks {
			if l.Block >= uint64(v.dev.Size())>>v.sb.blockBits {
				outside = fmt.Errorf("ext4: journal: transaction %d logs block %d: %w", tx.TID, l.Block, mem.ErrInconsistent)
				continue
			}
			w := block.Write{Op: block.OpWrite, Off: int64(l.Block) << v.sb.blockBits, Len: int64(len(l.Data)), Data: l.Data}
			if err := v.dev.Apply(w); err != nil {
				return fmt.Errorf("ext4: journal: transaction %d: %w", tx.TID, err)
			}
			seen[l.Block] = struct{}{}
		}
		if v.rec.Transactions == 0 {
			v.rec.FirstTID = tx.TID
		}
		v.rec.LastTID = tx.TID
		v.rec.Transactions++
		return nil
	})
	v.rec.Blocks = len(seen)
	if err == nil {
		err = v.replayFast(js, read, last)
	}
	if err == nil {
		err = outside
	}
	return err
}
