package jbd2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"vmscope/mem"
)

// area writes a fast-commit area as the kernel does.
type area struct {
	size   int
	old    bool // as kernels before 6.2: the last byte of a block is not used
	tid    uint32
	blocks [][]byte // of the round
	off    int      // in the last of them; 0: none is begun
	crc    uint32
}

// room is how many bytes of a block can be used.
func (a *area) room() int {
	if a.old {
		return a.size - 1
	}
	return a.size
}

func (a *area) put(tag uint16, value []byte) {
	rec := binary.LittleEndian.AppendUint16(nil, tag)
	rec = binary.LittleEndian.AppendUint16(rec, uint16(len(value)))
	rec = append(rec, value...)
	if a.off > 0 && a.off+len(rec)+fcHeader > a.room() {
		b := a.blocks[len(a.blocks)-1]
		binary.LittleEndian.PutUint16(b[a.off:], fcPad)
		binary.LittleEndian.PutUint16(b[a.off+2:], uint16(a.room()-a.off-fcHeader))
		a.crc = crc32c(a.crc, b[a.off:a.room()])
		a.off = 0
	}
	if a.off == 0 {
		b := make([]byte, a.size)
		if a.old {
			b[a.size-1] = 0xA5 // whatever was there
		}
		a.blocks = append(a.blocks, b)
	}
	a.off += copy(a.blocks[len(a.blocks)-1][a.off:], rec)
	a.crc = crc32c(a.crc, rec)
}

func (a *area) op(o FCOp) {
	le := binary.LittleEndian
	var v []byte
	switch o.Tag {
	case FCAddRange:
		n := uint16(o.Len)
		if o.Unwritten {
			n += 1 << 15
		}
		v = le.AppendUint32(le.AppendUint32(nil, o.Ino), o.Block)
		v = le.AppendUint32(le.AppendUint16(le.AppendUint16(v, n), uint16(o.Start>>32)), uint32(o.Start))
	case FCDelRange:
		v = le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, o.Ino), o.Block), o.Len)
	case FCInode:
		v = append(le.AppendUint32(nil, o.Ino), o.Inode...)
	default:
		v = append(le.AppendUint32(le.AppendUint32(nil, o.Parent), o.Ino), o.Name...)
	}
	a.put(uint16(o.Tag), v)
}

// commit writes a fast commit and gives the blocks that it fills, by their offset in the area.
func (a *area) commit(ops []FCOp) (from int, blocks [][]byte) {
	from = len(a.blocks)
	a.crc, a.off = 0, 0
	if from == 0 {
		a.put(fcHead, binary.LittleEndian.AppendUint32(make([]byte, 4), a.tid))
	}
	for _, o := range ops {
		a.op(o)
	}
	tail := make([]byte, 8)
	a.put(fcTail, tail) // finds its place
	b := a.blocks[len(a.blocks)-1]
	rec := b[a.off-fcHeader-8:]
	n := a.room() - (a.off - 8)
	clear(b[a.off:a.room()])
	// The sum begins anew, for the length and the tid are other ones.
	binary.LittleEndian.PutUint16(rec[2:], uint16(n))
	binary.LittleEndian.PutUint32(rec[4:], a.tid)
	a.crc = 0
	for i, blk := range a.blocks[from:] {
		end := a.room()
		if from+i == len(a.blocks)-1 {
			end = a.off - 4
		}
		a.crc = crc32c(a.crc, blk[:end])
	}
	binary.LittleEndian.PutUint32(rec[8:], a.crc)
	return from, a.blocks[from:]
}

func (a *area) full() { a.tid++; a.blocks = nil }

func randomOps(r *rand.Rand, n int) []FCOp {
	var ops []FCOp
	bytesOf := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}
	for range n {
		o := FCOp{Tag: FCTag(1 + r.IntN(6)), Ino: r.Uint32()}
		switch o.Tag {
		case FCAddRange:
			o.Block, o.Len, o.Start, o.Unwritten = r.Uint32(), 1+r.Uint32N(1<<15-1), r.Uint64()>>16, r.IntN(2) == 0
		case FCDelRange:
			o.Block, o.Len = r.Uint32(), r.Uint32()
		case FCInode:
			o.Inode = bytesOf(128 + 32*r.IntN(5))
		default:
			o.Parent, o.Name = r.Uint32(), bytesOf(1+r.IntN(255))
		}
		ops = append(ops, o)
	}
	return ops
}

func sameOps(a, b []FCOp) bool {
	return slices.EqualFunc(a, b, func(a, b FCOp) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
}

func fcJournal(size uint32) *journal {
	j := newJournal(size, 1100, 0, IncompatFastCommit|IncompatCsumV3)
	j.sb.FCBlocks, j.sb.MaxLen = 200, 1300
	j.super()
	for len(j.disk) < 1300 {
		j.disk = append(j.disk, make([]byte, size))
	}
	return j
}

// round is some fast commits of one round, and what they say.
type round struct {
	tid    uint32
	blocks [][]byte
	ends   []int // in blocks, behind each
	want   [][]FCOp
}

func (a *area) round(r *rand.Rand, commits, ops int) *round {
	a.full()
	d := &round{tid: a.tid}
	for range commits {
		want := randomOps(r, 1+r.IntN(ops))
		a.commit(want)
		d.ends, d.want = append(d.ends, len(a.blocks)), append(d.want, want)
	}
	d.blocks = a.blocks
	return d
}

func (d *round) check(t *testing.T, got []FastCommit, n int) int {
	t.Helper()
	for _, fc := range got {
		if n >= len(d.want) || fc.TID != d.tid || !sameOps(fc.Ops, d.want[n]) {
			t.Fatalf("fast commit %d of transaction %d, want %d: wrong operations", n, fc.TID, d.tid)
		}
		n++
	}
	return n
}

func TestFastCommits(t *testing.T) {
	for _, old := range []bool{true, false} {
		for _, size := range []uint32{1024, 4096, 65536} {
			t.Run(fmt.Sprint(old, " ", size), func(t *testing.T) {
				r := rand.New(rand.NewPCG(8, uint64(size)))
				j := fcJournal(size)
				first, _ := j.sb.FastCommits()
				s := NewFCStream(&j.sb, nil)
				a := &area{size: int(size), old: old, tid: ^uint32(0) - 3}
				s.Committed(a.tid)
				for range 8 {
					d := a.round(r, 6, 30)
					n := 0
					for i, from := 0, 0; i < len(d.ends); i++ {
						// The blocks of one fast commit come in any order, and some twice.
						order := r.Perm(d.ends[i] - from)
						order = append(order, order[0])
						for _, k := range order {
							got, err := s.Write(first+uint32(from+k), d.blocks[from+k])
							if err != nil {
								t.Fatal(err)
							}
							n = d.check(t, got, n)
						}
						if n != i+1 {
							t.Fatalf("%d fast commits, want %d", n, i+1)
						}
						from = d.ends[i]
					}
					// The disk tells the same afterwards.
					for k, b := range d.blocks {
						j.disk[int(first)+k] = b
					}
					again := NewFCStream(&j.sb, j.read)
					got, err := again.Recover(d.tid)
					if err != nil || d.check(t, got, 0) != len(d.want) {
						t.Fatalf("recovery: %d fast commits: %v", len(got), err)
					}
					if got, err := again.Recover(d.tid + 1); err != nil || len(got) != 0 {
						t.Fatalf("recovery of another round: %d fast commits: %v", len(got), err)
					}
					s.Committed(d.tid)
				}
			})
		}
	}
}

func TestFastCommitAttach(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 8))
		j := fcJournal(1024)
		first, _ := j.sb.FastCommits()
		a := &area{size: 1024, tid: 5}
		for k, b := range a.round(r, 6, 10).blocks { // an older round
			j.disk[int(first)+k] = b
		}
		d := a.round(r, 6, 10)
		from := r.IntN(len(d.blocks))
		for k, b := range d.blocks[:from] {
			j.disk[int(first)+k] = b
		}
		s := NewFCStream(&j.sb, j.read)
		ahead := from + r.IntN(len(d.blocks)-from+1)
		for k, b := range d.blocks[from:ahead] {
			j.disk[int(first)+from+k] = b
		}
		got, err := s.Recover(d.tid)
		if err != nil {
			t.Fatal(err)
		}
		n := d.check(t, got, 0)
		for k, b := range d.blocks[from:] {
			j.disk[int(first)+from+k] = b
			got, err := s.Write(first+uint32(from+k), b)
			if err != nil {
				t.Fatal(err)
			}
			n = d.check(t, got, n)
		}
		if n != len(d.want) {
			t.Fatalf("seed %d: %d fast commits, want %d", seed, n, len(d.want))
		}
	}
}

// The disk is rounds ahead of the stream when we attach.
func TestFastCommitAttachBehind(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 10))
		j := fcJournal(1024)
		first, _ := j.sb.FastCommits()
		a := &area{size: 1024, tid: 5, old: seed%2 == 0}
		stale := append(slices.Clone(a.round(r, 5, 10).blocks), a.round(r, 5, 10).blocks...)
		at, begin := make([]int, len(stale)), 0
		for k := range at {
			if stale[k][0] == fcHead {
				begin = k
			}
			at[k] = k - begin
		}
		d := a.round(r, 6, 10)
		write := func(k int, b []byte) { j.disk[int(first)+k] = b }
		for k, b := range stale {
			write(at[k], b)
		}
		ahead := r.IntN(len(d.blocks) + 1)
		for k, b := range d.blocks[:ahead] {
			write(k, b)
		}
		s := NewFCStream(&j.sb, j.read)
		got, err := s.Recover(d.tid)
		if err != nil {
			t.Fatal(err)
		}
		n := d.check(t, got, 0)
		from := r.IntN(len(stale))
		for k, b := range stale[from:] {
			if got, err := s.Write(first+uint32(at[from+k]), b); err != nil || len(got) > 0 {
				t.Fatalf("seed %d: %d fast commits of an old round, %v", seed, len(got), err)
			}
		}
		for k, b := range d.blocks {
			if k >= ahead {
				write(k, b)
			}
			got, err := s.Write(first+uint32(k), b)
			if err != nil {
				t.Fatal(err)
			}
			n = d.check(t, got, n)
		}
		if n != len(d.want) {
			t.Fatalf("seed %d: %d fast commits, want %d", seed, n, len(d.want))
		}
	}
}

// The disk is a round ahead of us, who come in the middle of one: that one is of no use, and the next comes in its turn.
func TestFastCommitAttachAhead(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 11))
		j := fcJournal(1024)
		first, _ := j.sb.FastCommits()
		a := &area{size: 1024, tid: 5}
		d, next := a.round(r, 6, 10), a.round(r, 6, 10)
		s := NewFCStream(&j.sb, j.read)
		if got, err := s.Recover(d.tid); err != nil || len(got) > 0 {
			t.Fatal(len(got), err)
		}
		for k, b := range next.blocks {
			j.disk[int(first)+k] = b
		}
		from := 1 + r.IntN(len(d.blocks)-1)
		for k, b := range d.blocks[from:] {
			if got, err := s.Write(first+uint32(from+k), b); err != nil || len(got) > 0 {
				t.Fatalf("seed %d: %d fast commits, %v", seed, len(got), err)
			}
		}
		s.Committed(d.tid)
		n := 0
		for k, b := range next.blocks {
			got, err := s.Write(first+uint32(k), b)
			if err != nil {
				t.Fatal(err)
			}
			n = next.check(t, got, n)
		}
		if n != len(next.want) {
			t.Fatalf("seed %d: %d fast commits, want %d", seed, n, len(next.want))
		}
	}
}

func TestFastCommitUntoldRound(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	j := fcJournal(1024)
	first, _ := j.sb.FastCommits()
	s := NewFCStream(&j.sb, nil)
	a := &area{size: 1024}
	for range 5 {
		d := a.round(r, 4, 10)
		n := 0
		for k, b := range d.blocks {
			got, err := s.Write(first+uint32(k), b)
			if err != nil {
				t.Fatal(err)
			}
			n = d.check(t, got, n)
		}
		if n != len(d.want) {
			t.Fatalf("%d fast commits, want %d", n, len(d.want))
		}
	}
}

func TestFastCommitDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	j := fcJournal(1024)
	first, _ := j.sb.FastCommits()
	s := NewFCStream(&j.sb, nil)
	a := &area{size: 1024, tid: 5}
	s.Committed(4)
	s.Committed(5)
	for range 200 {
		d := a.round(r, 3, 10)
		hurt := r.IntN(len(d.blocks))
		b := d.blocks[hurt]
		b[r.IntN(12)] ^= 1 << r.IntN(8) // behind a tail nothing is summed up
		n, failed := 0, 0
		for k, b := range d.blocks {
			got, err := s.Write(first+uint32(k), b)
			n = d.check(t, got, n)
			if err != nil {
				failed++
				if !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, errors.ErrUnsupported) {
					t.Fatal(err)
				}
			}
		}
		good := 0
		for good < 3 && d.ends[good] <= hurt {
			good++
		}
		if hurt > 0 && failed != 1 { // a head may look like an old one
			t.Fatalf("damage in block %d: %d errors", hurt, failed)
		}
		if n != good || failed > 1 {
			t.Fatalf("damage in block %d: %d fast commits, want %d; %d errors", hurt, n, good, failed)
		}
		s.Committed(d.tid)
	}
}

func TestFastCommitRecords(t *testing.T) {
	rec := func(tag uint16, v ...byte) []byte {
		return append(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, tag), uint16(len(v))), v...)
	}
	head := rec(fcHead, 0, 0, 0, 0, 7, 0, 0, 0)
	for name, b := range map[string][]byte{
		"no head":         rec(fcPad),
		"nothing":         make([]byte, 100),
		"features":        rec(fcHead, 1, 0, 0, 0, 7, 0, 0, 0),
		"short head":      rec(fcHead, 0, 0, 0, 0),
		"other head":      append(bytes.Clone(head), rec(fcHead, 0, 0, 0, 0, 8, 0, 0, 0)...),
		"long record":     append(bytes.Clone(head), 7, 0, 255, 255),
		"unknown record":  append(bytes.Clone(head), rec(77, 1)...),
		"short range":     append(bytes.Clone(head), rec(1, make([]byte, 15)...)...),
		"long range":      append(bytes.Clone(head), rec(2, make([]byte, 13)...)...),
		"no name":         append(bytes.Clone(head), rec(3, make([]byte, 8)...)...),
		"long name":       append(bytes.Clone(head), rec(4, make([]byte, 264)...)...),
		"short inode":     append(bytes.Clone(head), rec(6, make([]byte, 131)...)...),
		"tail of another": append(bytes.Clone(head), rec(fcTail, make([]byte, 8)...)...),
		"short tail":      append(bytes.Clone(head), rec(fcTail, 7, 0, 0, 0)...),
		"wrong sum":       append(bytes.Clone(head), rec(fcTail, 7, 0, 0, 0, 1, 2, 3, 4)...),
	} {
		var p fcParser
		if err := p.block(b, func() { t.Errorf("%s: a fast commit", name) }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFastCommitIsBounded(t *testing.T) {
	j := newJournal(1024, 1100, 0, IncompatFastCommit)
	j.sb.FCBlocks, j.sb.MaxLen = 100_000, 200_000
	s := NewFCStream(&j.sb, nil)
	first, end := j.sb.FastCommits()
	failed := 0
	for i := first + 1; i < end; i++ {
		if _, err := s.Write(i, make([]byte, 1024)); err != nil {
			failed++
		}
	}
	if failed != 1 || len(s.wait) > maxFC/1024 {
		t.Errorf("%d errors, %d blocks held", failed, len(s.wait))
	}
}
