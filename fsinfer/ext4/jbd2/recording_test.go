package jbd2

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"vmscope/block"
	"vmscope/block/logwrites"
)

// recordings is where whole recordings of real guests are looked for (internal/guestlab/record makes them): a directory
// with base.img and log for each.
const recordings = "VMSCOPE_STREAMS"

// What a real guest's journal says must be what the guest then writes home, and what recovery would find at each moment.
func TestRecordings(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(os.Getenv(recordings), "*", "log"))
	if err != nil || len(dirs) == 0 || os.Getenv(recordings) == "" {
		t.Skip("no recordings in $" + recordings)
	}
	need(t, "debugfs")
	for _, log := range dirs {
		dir := filepath.Dir(log)
		t.Run(filepath.Base(dir), func(t *testing.T) { playRecording(t, dir) })
	}
}

type player struct {
	t      *testing.T
	dev    block.Device
	size   int64
	index  map[int64]uint32 // journal block of a file system block
	at     []int64          // the reverse
	s      *Stream
	fc     *FCStream
	area   uint32 // where fc begins
	over   map[uint64][]byte
	round  int // fast commits since the last full one
	counts struct{ tx, blocks, revoked, fc, ops, home, recovered int }
}

func playRecording(t *testing.T, dir string) *player {
	base, err := block.OpenFile(filepath.Join(dir, "base.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	at := journalBlocks(t, filepath.Join(dir, "base.img"))
	if len(at) == 0 {
		t.Skip("no journal")
	}
	r, err := logwrites.Open(filepath.Join(dir, "log"), base, logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var fs [1024]byte
	if _, err := base.ReadAt(fs[:], 1024); err != nil {
		t.Fatal(err)
	}
	p := &player{t: t, dev: r.Device(), size: 1024 << fs[24], at: at, index: map[int64]uint32{}, over: map[uint64][]byte{}}
	for i, b := range at {
		p.index[b] = uint32(i)
	}
	if p.s, err = NewStream(p.super(), p.read); err != nil {
		t.Fatal(err)
	}
	for w, err := range r.Writes(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if w.Op != block.OpWrite {
			continue
		}
		buf := make([]byte, p.size)
		for b := w.Off / p.size; b*p.size < w.End(); b++ {
			if _, err := p.dev.ReadAt(buf, b*p.size); err != nil {
				t.Fatal(err)
			}
			if i, ok := p.index[b]; ok {
				p.journal(i, buf)
				continue
			}
			if old, ok := p.over[uint64(b)]; ok && b != 1024/p.size {
				p.counts.home++
				// A file that outgrows its inode has its first block logged, and then written like any other data.
				if inline := filepath.Base(dir) == "inline-data"; !inline && !bytes.Equal(old, buf) {
					t.Errorf("write %d: block %d goes home with another content than its transaction has", w.Seq, b)
				}
			}
			delete(p.over, uint64(b))
		}
	}
	t.Logf("%+v", p.counts)
	return p
}

func (p *player) read(b []byte, index uint32) error {
	_, err := p.dev.ReadAt(b, p.at[index]*p.size)
	return err
}

func (p *player) super() *Super {
	p.t.Helper()
	b := make([]byte, p.size)
	if err := p.read(b, 0); err != nil {
		p.t.Fatal(err)
	}
	sb, err := ParseSuper(b)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := sb.Check(uint32(p.size), uint64(len(p.at))); err != nil {
		p.t.Fatal(err)
	}
	return sb
}

func (p *player) journal(index uint32, data []byte) {
	tx, err := p.s.Write(index, data)
	if err != nil {
		p.t.Errorf("%v", err)
	}
	if first, end := p.s.Super().FastCommits(); first < end && (p.fc == nil || p.area != first) {
		p.fc, p.area = NewFCStream(p.s.Super(), p.read), first
	}
	if tx != nil {
		p.counts.tx++
		p.counts.blocks += len(tx.Blocks)
		p.counts.revoked += len(tx.Revoked)
		for _, b := range tx.Revoked {
			delete(p.over, b)
		}
		for _, l := range tx.Blocks {
			p.over[l.Block] = bytes.Clone(l.Data)
		}
		if p.fc != nil {
			p.fc.Committed(tx.TID)
		}
		p.round = 0
		p.recover(tx.TID)
	}
	if p.fc == nil || index == 0 {
		return
	}
	fcs, err := p.fc.Write(index, data)
	if err != nil {
		p.t.Errorf("%v", err)
	}
	for _, fc := range fcs {
		p.counts.fc++
		p.counts.ops += len(fc.Ops)
		p.round++
		if fc.TID != p.s.last+1 {
			p.t.Errorf("fast commit on %d, the last full commit was %d", fc.TID, p.s.last)
		}
	}
	if len(fcs) > 0 {
		again := NewFCStream(p.s.Super(), p.read)
		if all, err := again.Recover(p.s.last + 1); err != nil || len(all) != p.round {
			p.t.Errorf("recovery finds %d fast commits, not %d: %v", len(all), p.round, err)
		}
	}
}

// recover compares with what recovery would find.
func (p *player) recover(tid uint32) {
	sb := p.super()
	if p.counts.tx%4 != 0 && p.counts.tx > 20 || sb.Start == 0 {
		return
	}
	p.counts.recovered++
	last, err := Recover(sb, p.read, func(tx *Tx) error {
		if tx.TID == tid {
			for _, l := range tx.Blocks {
				if !bytes.Equal(p.over[l.Block], l.Data) {
					p.t.Errorf("transaction %d: block %d is not recovered as it was committed", tid, l.Block)
				}
			}
		}
		return nil
	})
	if err != nil || last != tid {
		p.t.Errorf("recovery ends with %d, not %d: %v", last, tid, err)
	}
}
