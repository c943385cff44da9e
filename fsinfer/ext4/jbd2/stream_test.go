package jbd2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"vmscope/mem"
)

// formats are all ways to write a journal.
var formats = []struct {
	name             string
	compat, incompat uint32
}{
	{"plain", 0, IncompatRevoke},
	{"wide", 0, IncompatRevoke | Incompat64Bit},
	{"v1", CompatChecksum, IncompatRevoke},
	{"v1 async", CompatChecksum, IncompatRevoke | Incompat64Bit | IncompatAsyncCommit},
	{"v2", 0, IncompatRevoke | IncompatCsumV2},
	{"v2 wide", 0, IncompatRevoke | Incompat64Bit | IncompatCsumV2},
	{"v3", 0, IncompatRevoke | IncompatCsumV3},
	{"v3 wide", 0, IncompatRevoke | Incompat64Bit | IncompatCsumV3},
	{"v3 async", 0, IncompatRevoke | Incompat64Bit | IncompatCsumV3 | IncompatAsyncCommit},
}

func newStream(t testing.TB, j *journal, read func([]byte, uint32) error) *Stream {
	t.Helper()
	s, err := NewStream(&j.sb, read)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// feed writes blocks to the journal and the stream, and expects exactly the transactions want, each at a write.
func feed(t testing.TB, j *journal, s *Stream, ws []write, want ...*Tx) {
	t.Helper()
	for i, w := range ws {
		j.disk[w.index] = w.data
		tx, err := s.Write(w.index, w.data)
		if err != nil {
			t.Fatalf("write %d of %d: %v", i, len(ws), err)
		}
		if tx == nil {
			continue
		}
		if len(want) == 0 {
			t.Fatalf("write %d of %d: unexpected transaction %d", i, len(ws), tx.TID)
		}
		if d := differ(tx, want[0]); d != "" {
			t.Fatalf("write %d of %d: %s", i, len(ws), d)
		}
		want = want[1:]
	}
	if len(want) > 0 {
		t.Fatalf("transaction %d did not come", want[0].TID)
	}
}

func TestStreamFormats(t *testing.T) {
	for _, f := range formats {
		for _, size := range []uint32{1024, 4096, 65536} {
			t.Run(fmt.Sprint(f.name, " ", size), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, uint64(size)))
				j := newJournal(size, 61, f.compat, f.incompat)
				s := newStream(t, j, nil)
				j.sb.Start = 1
				feed(t, j, s, []write{j.super()})
				for range 20 { // several laps
					tx := j.random(r, 20, 1000)
					feed(t, j, s, j.write(tx, 1+r.IntN(9)), tx)
					if n := len(s.slots); n > 61 {
						t.Fatalf("%d blocks held", n)
					}
				}
				if len(s.slots) > 24 {
					t.Errorf("%d blocks held at the end", len(s.slots))
				}
			})
		}
	}
}

func TestAsyncCommitAnyOrder(t *testing.T) {
	for _, f := range formats {
		if f.incompat&IncompatAsyncCommit == 0 {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(2, 3))
			j := newJournal(1024, 100, f.compat, f.incompat)
			j.sb.Start = 1
			s := newStream(t, j, nil)
			for range 60 {
				tx := j.random(r, 20, 1000)
				ws := j.write(tx, 1+r.IntN(9))
				r.Shuffle(len(ws), func(a, b int) { ws[a], ws[b] = ws[b], ws[a] })
				ws = append(ws, ws[r.IntN(len(ws))]) // and one again
				feed(t, j, s, ws, tx)
			}
		})
	}
}

func TestSyncCommitMissingBlock(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 5))
			j := newJournal(1024, 100, f.compat, f.incompat)
			j.sb.Start = 1
			s := newStream(t, j, nil)
			for range 40 {
				a, b := j.random(r, 20, 1000), j.random(r, 20, 1000)
				ws := j.write(a, 7)
				lost := r.IntN(len(ws) - 1)
				ws = append(ws[:lost], ws[lost+1:]...)
				ws = append(ws, j.write(b, 7)...)
				var failed, came int
				for _, w := range ws {
					tx, err := s.Write(w.index, w.data)
					var e *Error
					switch {
					case err != nil && (!errors.As(err, &e) || e.TID != a.TID || !errors.Is(err, mem.ErrInconsistent)):
						t.Fatalf("unexpected error %v", err)
					case err != nil:
						failed++
					}
					if tx != nil {
						came++
						if d := differ(tx, b); d != "" {
							t.Fatal(d)
						}
					}
				}
				if failed != 1 || came != 1 {
					t.Fatalf("%d errors and %d transactions, want 1 and 1", failed, came)
				}
			}
		})
	}
}

func TestDamage(t *testing.T) {
	for _, f := range formats[2:] {
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			j := newJournal(1024, 200, f.compat, f.incompat)
			j.sb.Start = 1
			s := newStream(t, j, nil)
			for range 60 {
				a, b := j.random(r, 20, 1000), j.random(r, 20, 1000)
				ws := j.write(a, 7)
				hurt := ws[r.IntN(len(ws))].data
				kind, _ := KindOf(hurt)
				at := 20 + r.IntN(len(hurt)-20)
				if f.compat == CompatChecksum && (kind == Commit || kind == Revoke) {
					at = 17 // version 1 sums up descriptors and data only
					if kind == Revoke {
						at = 12 // the length
					}
				}
				hurt[at] ^= 0x40
				failed := 0
				for i, w := range append(ws, j.write(b, 7)...) {
					tx, err := s.Write(w.index, w.data)
					if err != nil {
						failed++
						if !errors.Is(err, mem.ErrInconsistent) {
							t.Fatal(err)
						}
					}
					if tx != nil && differ(tx, b) != "" {
						t.Fatalf("write %d: transaction %d: %s", i, tx.TID, differ(tx, b))
					}
				}
				if failed == 0 {
					t.Fatalf("damage in a block of kind %d at %d was not seen", kind, at)
				}
				j.sb.Sequence, j.sb.Start = j.tid, j.head
				feed(t, j, s, []write{j.super()})
			}
		})
	}
}

// A guest dies in the middle of a transaction, and the next mount begins anew with other tids.
func TestCrash(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			j := newJournal(1024, 80, f.compat, f.incompat)
			j.sb.Start = 1
			s := newStream(t, j, nil)
			for range 30 {
				for range r.IntN(4) {
					tx := j.random(r, 20, 1000)
					feed(t, j, s, j.write(tx, 7), tx)
				}
				ws := j.write(j.random(r, 20, 1000), 7)
				feed(t, j, s, ws[:r.IntN(len(ws)-1)])
				// Recovery passes over the tid of what it did not find committed. The log is begun at its start.
				j.head = 1
				j.sb.Start, j.sb.Sequence = 1, j.tid
				feed(t, j, s, []write{j.super()})
			}
		})
	}
}

func TestAttach(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for seed := range uint64(60) {
				r := rand.New(rand.NewPCG(seed, 9))
				j := newJournal(1024, 60, f.compat, f.incompat)
				j.sb.Start = 1
				j.tid = ^uint32(0) - 4 // wraps soon
				j.sb.Sequence = j.tid
				j.super()
				type step struct {
					w  write
					tx *Tx // that it completes
				}
				var steps []step
				for range 12 {
					tx := j.random(r, 10, 1000)
					ws := j.write(tx, 4)
					for _, w := range ws[:len(ws)-1] {
						steps = append(steps, step{w: w})
					}
					steps = append(steps, step{ws[len(ws)-1], tx})
				}
				// What was written before: the last few blocks of the log are the tail.
				from := 20 + r.IntN(len(steps)-20)
				for i, st := range steps[:from] {
					j.apply([]write{st.w})
					if st.tx != nil && i+20 < from {
						j.sb.Start, j.sb.Sequence = after(st.w.index, 1, j.sb.LogEnd()), st.tx.TID+1
						j.super()
					}
				}
				s := newStream(t, j, j.read)
				// The disk is ahead of the stream.
				ahead := min(len(steps), from+r.IntN(12))
				for _, st := range steps[from:ahead] {
					j.apply([]write{st.w})
				}
				last, err := Recover(&j.sb, j.read, func(*Tx) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				s.Skip(last)
				for i, st := range steps[from:] {
					if from+i >= ahead {
						j.apply([]write{st.w})
					}
					tx, err := s.Write(st.w.index, st.w.data)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					want := st.tx
					if want != nil && !newer(want.TID, last) {
						want = nil
					}
					if (tx == nil) != (want == nil) {
						t.Fatalf("seed %d: transaction %v, want %v (last %d)", seed, tx != nil, want != nil, last)
					}
					if tx != nil && differ(tx, want) != "" {
						t.Fatalf("seed %d: %s", seed, differ(tx, want))
					}
				}
			}
		})
	}
}

// Blocks and commits that come again say nothing new.
func TestDuplicates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	j := newJournal(1024, 300, 0, IncompatCsumV3)
	s := newStream(t, j, nil)
	for range 50 {
		tx := j.random(r, 20, 1000)
		ws := j.write(tx, 7)
		n := len(ws) - 1
		twice := append(append([]write{}, ws[:n]...), ws...)
		feed(t, j, s, twice, tx)
		feed(t, j, s, ws[n:])
	}
}

// Features are turned on at mount, by a new superblock.
func TestFeaturesChange(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	j := newJournal(1024, 1500, 0, 0)
	s := newStream(t, j, nil)
	for _, f := range formats {
		tx := j.random(r, 20, 1000)
		feed(t, j, s, j.write(tx, 7), tx)
		j.sb.Compat, j.sb.Incompat = f.compat, f.incompat|IncompatFastCommit
		j.sb.FCBlocks = 100
		j.sb.ChecksumType = checksumCRC32C
		j.sb.Start, j.sb.Sequence, j.head = 1, j.tid, 1
		j.f = j.sb.Format()
		feed(t, j, s, []write{j.super()})
		if *s.Super() != j.sb {
			t.Fatalf("superblock %+v, want %+v", s.Super(), j.sb)
		}
		tx = j.random(r, 20, 1000)
		feed(t, j, s, j.write(tx, 7), tx)
		first, end := j.sb.FastCommits()
		if first != 1402 || end != 1501 {
			t.Fatalf("fast commits %d to %d", first, end)
		}
		feed(t, j, s, []write{{first, j.metadata(Commit, j.tid)}})
	}
}

func TestStreamIsBounded(t *testing.T) {
	j := newJournal(1024, 8000, 0, 0)
	s := newStream(t, j, nil)
	data := make([]byte, 1024)
	failed := false
	for i := range uint32(8000) {
		_, err := s.Write(1+i, data)
		failed = failed || errors.Is(err, mem.ErrInconsistent)
		if len(s.slots) > 4000 {
			t.Fatalf("%d blocks are held", len(s.slots))
		}
	}
	if !failed {
		t.Error("a transaction without end was no error")
	}
}

func TestStreamRefuses(t *testing.T) {
	j := newJournal(1024, 50, 0, IncompatCsumV3)
	s := newStream(t, j, nil)
	if _, err := s.Write(3, make([]byte, 512)); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("half a block: %v", err)
	}
	if tx, err := s.Write(51, make([]byte, 1024)); tx != nil || err != nil {
		t.Errorf("behind the journal: %v, %v", tx, err)
	}
	torn := encodeSuper(&j.sb)
	torn[27] ^= 1
	if _, err := s.Write(0, torn); !errors.Is(err, ErrChecksum) {
		t.Errorf("torn superblock: %v", err)
	}
}
