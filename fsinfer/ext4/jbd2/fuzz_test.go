package jbd2

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

func FuzzParseSuper(f *testing.F) {
	for _, ft := range formats {
		f.Add(encodeSuper(&newJournal(1024, 2000, ft.compat, ft.incompat|IncompatFastCommit).sb))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sb, err := ParseSuper(b)
		if (sb == nil) != (err != nil) {
			t.Fatalf("%v beside %v", sb, err)
		}
		if err != nil {
			return
		}
		first, end := sb.FastCommits()
		if sb.First < 1 || sb.LogEnd() <= sb.First || sb.LogEnd() > sb.MaxLen || first > end || end > sb.MaxLen || first < end && first <= sb.LogEnd() {
			t.Fatalf("%+v: log %d to %d, fast commits %d to %d", sb, sb.First, sb.LogEnd(), first, end)
		}
	})
}

func FuzzDescriptorAndRevoke(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for i, ft := range formats {
		j := newJournal(1024, 100, ft.compat, ft.incompat)
		for _, w := range j.write(j.random(r, 30, 1000), 20) {
			if kind, _ := KindOf(w.data); kind == Descriptor || kind == Revoke {
				f.Add(byte(i), w.data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		ft := formats[int(which)%len(formats)]
		format := newJournal(1024, 20, ft.compat, ft.incompat).f
		KindOf(b)
		if len(b) >= 1024 {
			// So that what is behind the checksum is reached.
			b = append([]byte{}, b[:1024]...)
			(&journal{f: format}).seal(b)
		}
		tags, err := format.Descriptor(b)
		if err != nil && (tags != nil || len(b) == 1024) {
			t.Fatalf("%d tags, %v", len(tags), err)
		}
		if len(tags) > (1024-headerSize)/8 {
			t.Fatalf("%d tags in a block", len(tags))
		}
		for _, tag := range tags {
			if !format.Wide && tag.Block>>32 != 0 {
				t.Fatalf("block %#x", tag.Block)
			}
		}
		blocks, err := format.Revoke(b)
		if err != nil && blocks != nil || len(blocks) > (1024-headerSize)/4 {
			t.Fatalf("%d blocks, %v", len(blocks), err)
		}
	})
}

// The input is what happens to the blocks of true transactions on their way: each two bytes pick a block of those that
// are due, and write it, lose it, hurt it, write it elsewhere or twice. Whatever comes out must be one of them.
func FuzzStream(f *testing.F) {
	f.Add(byte(6), make([]byte, 200))
	f.Add(byte(7), []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x02\x00\x03\x00\x04\x00\x05\x00\x06\x00\x07\x00\x08"))
	f.Add(byte(8), []byte("\x05\x00\x04\x00\x03\x00\x02\x00\x01\x00\x00\x00\x01\x01\x00\x02\x01\x03\x00\x04\x00\x05\x00\x06\x00\x07\x00\x08"))
	f.Fuzz(func(t *testing.T, which byte, script []byte) {
		ft := formats[6:][int(which)%3] // version 3
		r := rand.New(rand.NewPCG(4, 4))
		j := newJournal(1024, 64, ft.compat, ft.incompat)
		j.sb.Start = 1
		j.tid = 1<<31 - 3
		j.sb.Sequence = j.tid
		j.super()
		s := newStream(t, j, j.read)
		built := map[uint32]*Tx{}
		var due []write
		var prev uint32
		any := false
		for len(script) >= 2 {
			pick, act := int(script[0]), script[1]
			script = script[2:]
			if len(due) == 0 {
				tx := j.random(r, 8, 50)
				built[tx.TID] = tx
				due = j.write(tx, 3)
			}
			pick %= len(due)
			if act%16 != 1 && act%16 != 7 { // in their order, most often
				pick = 0
			}
			w := due[pick]
			due = append(due[:pick], due[pick+1:]...)
			switch act % 16 {
			case 2: // lost
				continue
			case 3: // hurt
				d := append([]byte{}, w.data...)
				d[int(act>>4)*61+8] ^= act | 1
				w.data = d
			case 4: // elsewhere; a commit block there would be another transaction
				if kind, _ := KindOf(w.data); kind == Data {
					w.index = 1 + uint32(act>>4)
				}
			case 5: // twice
				due = append([]write{w}, due...)
			case 6: // the tail moves, or the log is begun anew
				j.sb.Sequence, j.sb.Start = j.tid, j.head
				if act>>6 == 3 {
					j.sb.Start = 0
				}
				w = j.super()
			case 8:
				s.Skip(j.tid - uint32(act>>4))
				prev = s.last
				any = true
			case 9: // the guest dies
				due = nil
			}
			j.disk[w.index] = w.data
			tx, err := s.Write(w.index, w.data)
			if tx == nil {
				if w.index == 0 {
					any = false
				}
				continue
			}
			if err != nil && !s.w.f.Async {
				t.Fatalf("transaction %d and %v", tx.TID, err)
			}
			want := built[tx.TID]
			if want == nil || differ(tx, want) != "" {
				t.Fatalf("transaction %d: %s", tx.TID, differ(tx, want))
			}
			if any && !newer(tx.TID, prev) {
				t.Fatalf("transaction %d after %d", tx.TID, prev)
			}
			prev, any = tx.TID, true
			if len(s.slots) > 64 {
				t.Fatalf("%d blocks held", len(s.slots))
			}
		}
	})
}

// Blocks of any content at any place.
func FuzzStreamRaw(f *testing.F) {
	f.Add(byte(0), []byte{1, 1, 0, 2, 0, 3, 2, 0})
	f.Fuzz(func(t *testing.T, which byte, script []byte) {
		ft := formats[int(which)%3] // those without a sum to get right
		j := newJournal(1024, 40, ft.compat, ft.incompat)
		j.sb.Start = 1
		j.super()
		s := newStream(t, j, j.read)
		for len(script) >= 4 {
			index, kind, tid, tags := 1+uint32(script[0])%41, Kind(script[1]%8), uint32(script[2]), script[3]
			script = script[4:]
			b := j.metadata(kind, tid)
			if kind == Data || kind > 5 {
				binary.BigEndian.PutUint32(b, uint32(tid))
			}
			if kind == Descriptor {
				for k := range int(tags) % 32 {
					b[headerSize+k*j.f.TagSize()+7] = flagSameUUID
				}
				b[headerSize+int(tags)%32*j.f.TagSize()+7] = flagSameUUID | flagLast
			} else {
				b[14], b[15] = tags&3, tags
			}
			if index == 41 {
				j.sb.Sequence, j.sb.Start = tid, uint32(tags)%41
				s.Write(0, j.super().data)
				continue
			}
			j.disk[index] = b
			tx, _ := s.Write(index, b)
			if tx != nil && (tx.TID != s.last || len(tx.Blocks) > 40) {
				t.Fatalf("transaction %d of %d blocks, last %d", tx.TID, len(tx.Blocks), s.last)
			}
			if len(s.slots) > 40 {
				t.Fatalf("%d blocks held", len(s.slots))
			}
		}
		reads := 0
		_, _ = Recover(&j.sb, func(p []byte, index uint32) error { reads++; return j.read(p, index) }, func(tx *Tx) error {
			if len(tx.Blocks) > 40 {
				t.Fatalf("%d blocks", len(tx.Blocks))
			}
			return nil
		})
		if reads > 6*42 {
			t.Fatalf("%d reads", reads)
		}
	})
}

// The same for fast commits: true blocks, in a wrong order, hurt, lost or stale.
func FuzzFCStream(f *testing.F) {
	f.Add(make([]byte, 100))
	f.Add([]byte("\x03\x01\x02\x01\x01\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x05"))
	f.Fuzz(func(t *testing.T, script []byte) {
		r := rand.New(rand.NewPCG(4, 4))
		j := fcJournal(1024)
		first, _ := j.sb.FastCommits()
		a := &area{size: 1024, tid: ^uint32(0) - 1, old: len(script)%2 == 0}
		s := NewFCStream(&j.sb, j.read)
		rounds := map[uint32]*round{}
		var d *round
		var due []int
		next := func() {
			d = a.round(r, 3, 8)
			rounds[d.tid] = d
			due = r.Perm(len(d.blocks))
			for k := range due {
				due[k] = k
			}
		}
		next()
		n := 0
		tid := d.tid
		for len(script) >= 2 {
			pick, act := int(script[0]), script[1]
			script = script[2:]
			if len(due) == 0 {
				s.Committed(d.tid)
				next()
			}
			pick %= len(due)
			if act%8 != 1 {
				pick = 0
			}
			k := due[pick]
			due = append(due[:pick], due[pick+1:]...)
			b := d.blocks[k]
			switch act % 8 {
			case 2:
				continue
			case 3:
				b = append([]byte{}, b...)
				b[int(act>>3)*31] ^= act | 1
			case 4:
				k = int(act >> 3)
			case 5:
				s.Committed(d.tid)
				next()
				continue
			case 6:
				due = append(due, k)
			}
			j.disk[int(first)+k] = b
			got, err := s.Write(first+uint32(k), b)
			if err != nil && len(got) > 0 && got[0].TID == 0 {
				t.Fatal(err)
			}
			for _, fc := range got {
				if fc.TID != tid {
					tid, n = fc.TID, 0
				}
				from := rounds[fc.TID]
				if from == nil {
					t.Fatalf("fast commit of transaction %d", fc.TID)
				}
				for n < len(from.want) && !sameOps(from.want[n], fc.Ops) {
					n++
				}
				if n == len(from.want) {
					n = 0
					for n < len(from.want) && !sameOps(from.want[n], fc.Ops) {
						n++
					}
				}
				if n == len(from.want) {
					t.Fatalf("a fast commit that nobody made, of transaction %d", fc.TID)
				}
			}
		}
		for k := uint32(0); k < 3; k++ {
			again := NewFCStream(&j.sb, j.read)
			got, err := again.Recover(tid + k)
			if err != nil {
				t.Fatal(err)
			}
			for _, fc := range got {
				if fc.TID != tid+k {
					t.Fatalf("recovery of %d gives %d", tid+k, fc.TID)
				}
			}
		}
	})
}

func FuzzFastCommitBlock(f *testing.F) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, old := range []bool{true, false} {
		a := &area{size: 1024, old: old}
		for _, b := range a.round(r, 3, 20).blocks {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := fcParser{head: true, tid: 1}
		_ = p.block(b, func() {})
		if len(p.ops)*fcHeader > len(b) {
			t.Fatalf("%d operations in %d bytes", len(p.ops), len(b))
		}
		for _, o := range p.ops {
			named := o.Tag == FCCreat || o.Tag == FCLink || o.Tag == FCUnlink
			if named != (len(o.Name) > 0) || len(o.Name) > fcMaxName || (o.Tag == FCInode) != (len(o.Inode) >= fcInode) {
				t.Fatalf("%+v", o)
			}
		}
	})
}
