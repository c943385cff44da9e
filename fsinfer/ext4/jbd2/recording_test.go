package jbd2

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/internal/fsoracle"
)

// memory is a disk image.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, m[min(off, int64(len(m))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// eachRecording calls f with each recording of a real guest that the tests of ext4 have, if it has a journal.
func eachRecording(t *testing.T, f func(t *testing.T, p *player)) {
	files, err := filepath.Glob("../testdata/streams/*" + fsoracle.Extension)
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), fsoracle.Extension), func(t *testing.T) {
			r, err := fsoracle.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			if p := newPlayer(t, r); len(p.at) > 0 {
				f(t, p)
			}
		})
	}
}

// player follows the journal of a recorded guest.
type player struct {
	t     *testing.T
	rec   *fsoracle.Recording
	size  int64
	at    []int64          // file system block of a journal block
	index map[int64]uint32 // the reverse
	disk  [][]byte         // the journal
	s     *Stream
	fc    *FCStream
	over  map[uint64][]byte // logged and not yet home
	round int               // fast commits since the last full one
	count struct{ tx, blocks, revoked, fc, ops, home, recovered int }
}

func newPlayer(t *testing.T, r *fsoracle.Recording) *player {
	fs := r.Base[1024:2048]
	p := &player{t: t, rec: r, size: 1024 << fs[24], index: map[int64]uint32{}, over: map[uint64][]byte{}}
	if fs[92]&4 == 0 {
		return p
	}
	// The superblock has a copy of the journal inode's map and size (s_jnl_blocks).
	p.at = fileBlocks(r.Base, p.size, fs[0x10C:0x10C+60])[:int64(binary.LittleEndian.Uint32(fs[0x10C+64:]))/p.size]
	for i, b := range p.at {
		p.index[b] = uint32(i)
		p.disk = append(p.disk, r.Base[b*p.size:(b+1)*p.size])
	}
	return p
}

// fileBlocks reads the map of a file: extents that fit the inode, or up to two levels of pointers.
func fileBlocks(image []byte, size int64, m []byte) (blocks []int64) {
	le := binary.LittleEndian
	if le.Uint16(m) == 0xF30A {
		for i := range int(le.Uint16(m[2:])) {
			e := m[12+12*i:]
			for k := range int64(le.Uint16(e[4:])) {
				blocks = append(blocks, int64(le.Uint16(e[6:]))<<32+int64(le.Uint32(e[8:]))+k)
			}
		}
		return blocks
	}
	var walk func(p []byte, level int)
	walk = func(p []byte, level int) {
		for ; len(p) > 0; p = p[4:] {
			switch b := int64(le.Uint32(p)); {
			case b != 0 && level == 0:
				blocks = append(blocks, b)
			case b != 0:
				walk(image[b*size:(b+1)*size], level-1)
			}
		}
	}
	for level, part := range [][]byte{m[:48], m[48:52], m[52:56]} {
		walk(part, level)
	}
	return blocks
}

// play calls write for each block of the journal that is written, and home for each other one.
func (p *player) play(journal func(index uint32, data []byte), home func(b uint64, data []byte)) {
	r, err := logwrites.NewReader(bytes.NewReader(p.rec.Log), memory(p.rec.Base), logwrites.Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	for w, err := range r.Writes(p.t.Context()) {
		if err != nil {
			p.t.Fatal(err)
		}
		if w.Op != block.OpWrite {
			continue
		}
		for b := w.Off / p.size; b*p.size < w.End(); b++ {
			data := make([]byte, p.size)
			if _, err := r.Device().ReadAt(data, b*p.size); err != nil {
				p.t.Fatal(err)
			}
			if i, ok := p.index[b]; ok {
				journal(i, data)
			} else if home != nil {
				home(uint64(b), data)
			}
		}
	}
}

func (p *player) read(b []byte, index uint32) error { copy(b, p.disk[index]); return nil }

func (p *player) super() *Super {
	p.t.Helper()
	sb, err := ParseSuper(p.disk[0])
	if err == nil {
		err = sb.Check(uint32(p.size), uint64(len(p.at)))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return sb
}

// attach makes the streams, and gives how many fast commits there are on the disk. ahead changes the disk behind the
// back of the stream.
func (p *player) attach(ahead func()) (last uint32, fcs int) {
	var err error
	if p.s, err = NewStream(p.super(), p.read); err != nil {
		p.t.Fatal(err)
	}
	ahead()
	sb := p.super()
	if last, err = Recover(sb, p.read, func(*Tx) error { return nil }); err != nil {
		p.t.Fatal(err)
	}
	p.s.Skip(last)
	p.fc = NewFCStream(sb, p.read)
	found, err := p.fc.Recover(last + 1)
	if err != nil {
		p.t.Fatal(err)
	}
	return last, len(found)
}

// write gives a block to the streams.
func (p *player) write(index uint32, data []byte) (*Tx, []FastCommit) {
	tx, err := p.s.Write(index, data)
	if err != nil {
		p.t.Errorf("%v", err)
	}
	if index == 0 {
		p.fc.Follow(p.s.Super())
	}
	if tx != nil {
		p.fc.Committed(tx.TID)
	}
	fcs, err := p.fc.Write(index, data)
	if err != nil {
		p.t.Errorf("%v", err)
	}
	return tx, fcs
}

// What a real guest's journal says must be what the guest then writes home, and what recovery would find at each moment.
func TestRecordings(t *testing.T) {
	eachRecording(t, func(t *testing.T, p *player) {
		_, p.round = p.attach(func() {})
		p.play(func(index uint32, data []byte) {
			p.disk[index] = data
			tx, fcs := p.write(index, data)
			if tx != nil {
				p.committed(tx)
			}
			for _, fc := range fcs {
				p.count.fc, p.count.ops, p.round = p.count.fc+1, p.count.ops+len(fc.Ops), p.round+1
				if fc.TID != p.s.last+1 {
					t.Errorf("fast commit on %d, the last full commit was %d", fc.TID, p.s.last)
				}
			}
			if len(fcs) > 0 {
				all, err := NewFCStream(p.s.Super(), p.read).Recover(p.s.last + 1)
				if err != nil || len(all) != p.round {
					t.Errorf("recovery finds %d fast commits, not %d: %v", len(all), p.round, err)
				}
			}
		}, p.home)
		t.Logf("%+v", p.count)
		if p.count.tx < 10 {
			t.Errorf("only %d transactions", p.count.tx)
		}
	})
}

func (p *player) home(b uint64, data []byte) {
	old, logged := p.over[b]
	delete(p.over, b)
	if !logged || b == uint64(1024/p.size) { // the superblock is also written past the journal
		return
	}
	p.count.home++
	// A file that outgrows its inode has its first block logged, and then written like any other data. A recovery plays fast
	// commits on top of what it writes home.
	if inline := p.rec.Meta.Name == "inline-data"; !inline && p.round == 0 && !bytes.Equal(old, data) {
		p.t.Errorf("block %d goes home with another content than its transaction has", b)
	}
}

func (p *player) committed(tx *Tx) {
	p.count.tx, p.count.blocks, p.count.revoked = p.count.tx+1, p.count.blocks+len(tx.Blocks), p.count.revoked+len(tx.Revoked)
	p.round = 0
	for _, b := range tx.Revoked {
		delete(p.over, b)
	}
	for _, l := range tx.Blocks {
		p.over[l.Block] = bytes.Clone(l.Data)
	}
	sb := p.super()
	if p.count.tx%4 != 0 && p.count.tx > 20 || sb.Start == 0 {
		return
	}
	p.count.recovered++
	tid := tx.TID
	last, err := Recover(sb, p.read, func(tx *Tx) error {
		for _, l := range tx.Blocks {
			if tx.TID == tid && !bytes.Equal(p.over[l.Block], l.Data) {
				p.t.Errorf("transaction %d: block %d is not recovered as it was committed", tid, l.Block)
			}
		}
		return nil
	})
	if err != nil || last != tid {
		p.t.Errorf("recovery ends with %d, not %d: %v", last, tid, err)
	}
}

// From wherever we begin to watch, with the disk some way ahead of what we see, nothing is missed and nothing comes twice.
func TestRecordingsAttach(t *testing.T) {
	eachRecording(t, func(t *testing.T, p *player) {
		base := append([][]byte{}, p.disk...)
		var ws []write
		p.play(func(index uint32, data []byte) { ws = append(ws, write{index, data}) }, nil)
		type mark struct {
			tid  uint32
			sum  uint32 // of a full commit's blocks
			full bool
		}
		marks := func(tx *Tx, fcs []FastCommit) (list []mark) {
			for _, fc := range fcs {
				list = append(list, mark{tid: fc.TID})
			}
			if tx != nil {
				m := mark{tid: tx.TID, full: true}
				for _, l := range tx.Blocks {
					m.sum = crc32.ChecksumIEEE(append(binary.LittleEndian.AppendUint64(nil, l.Block+uint64(m.sum)), l.Data[:64]...))
				}
				list = append(list, m)
			}
			return list
		}
		all := make([][]mark, len(ws)) // by the write that completes them
		p.attach(func() {})
		for i, w := range ws {
			p.disk[w.index] = w.data
			all[i] = marks(p.write(w.index, w.data))
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 6 {
			p.disk = append([][]byte{}, base...)
			from := r.IntN(len(ws))
			ahead := min(len(ws), from+r.IntN(60))
			for _, w := range ws[:from] {
				p.disk[w.index] = w.data
			}
			last, fcs := p.attach(func() {
				for _, w := range ws[from:ahead] {
					p.disk[w.index] = w.data
				}
			})
			for i, w := range ws[from:] {
				i += from
				p.disk[w.index] = w.data
				got := marks(p.write(w.index, w.data))
				var want []mark
				for _, m := range all[i] {
					if !newer(m.tid, last) || !m.full && m.tid == last+1 && i < ahead {
						continue
					}
					want = append(want, m)
				}
				if len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
					t.Fatalf("from %d, ahead %d (last %d, %d fast commits): write %d gives %v, not %v", from, ahead, last, fcs, i, got, want)
				}
			}
		}
	})
}
