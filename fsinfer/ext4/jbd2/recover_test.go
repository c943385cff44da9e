package jbd2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"vmscope/mem"
)

// replayed is what recovery should leave: the content of each block that the log holds and does not revoke later.
func replayed(txs []*Tx) map[uint64][]byte {
	home := map[uint64][]byte{}
	for i, tx := range txs {
	blocks:
		for _, l := range tx.Blocks {
			for _, later := range txs[i:] {
				for _, b := range later.Revoked {
					if b == l.Block {
						continue blocks
					}
				}
			}
			home[l.Block] = l.Data
		}
	}
	return home
}

func recoverHome(t *testing.T, j *journal) (map[uint64][]byte, uint32, error) {
	t.Helper()
	sb, err := ParseSuper(j.disk[0])
	if err != nil {
		t.Fatal(err)
	}
	home := map[uint64][]byte{}
	last, err := Recover(sb, j.read, func(tx *Tx) error {
		for _, l := range tx.Blocks {
			home[l.Block] = bytes.Clone(l.Data)
		}
		return nil
	})
	return home, last, err
}

func sameHome(t *testing.T, got, want map[uint64][]byte) {
	t.Helper()
	for b, d := range want {
		if !bytes.Equal(got[b], d) {
			t.Fatalf("block %d is wrong (present: %v)", b, got[b] != nil)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d blocks, want %d", len(got), len(want))
	}
}

func TestRecover(t *testing.T) {
	for _, f := range formats {
		for _, size := range []uint32{1024, 65536} {
			t.Run(fmt.Sprint(f.name, " ", size), func(t *testing.T) {
				r := rand.New(rand.NewPCG(11, uint64(size)))
				j := newJournal(size, 90, f.compat, f.incompat)
				j.tid = ^uint32(0) - 10
				j.sb.Sequence, j.sb.Start = j.tid, 1
				var live []*Tx
				var used []uint32 // blocks of each live transaction
				free := uint32(90)
				for range 40 {
					tx := j.random(r, 15, 40)
					at := j.head
					ws := j.write(tx, 1+r.IntN(6))
					for free <= uint32(len(ws)) { // the tail moves on
						at := j.sb.Start + used[0]
						if at > 90 {
							at -= 90
						}
						free += used[0]
						live, used = live[1:], used[1:]
						j.sb.Start, j.sb.Sequence = at, j.sb.Sequence+1
					}
					j.super()
					if len(live) == 0 && j.sb.Start != at {
						t.Fatal("the test lost its tail")
					}
					// Each cut of the transaction leaves those before it.
					cut := r.IntN(len(ws))
					j.apply(ws[:cut])
					home, last, err := recoverHome(t, j)
					if err != nil || last != tx.TID-1 {
						t.Fatalf("cut at %d of %d: last %d, want %d: %v", cut, len(ws), last, tx.TID-1, err)
					}
					sameHome(t, home, replayed(live))
					j.apply(ws[cut:])
					live, used = append(live, tx), append(used, uint32(len(ws)))
					free -= uint32(len(ws))
					home, last, err = recoverHome(t, j)
					if err != nil || last != tx.TID {
						t.Fatalf("last %d, want %d: %v", last, tx.TID, err)
					}
					sameHome(t, home, replayed(live))
				}
			})
		}
	}
}

func TestRecoverEmpty(t *testing.T) {
	j := newJournal(1024, 50, 0, 0)
	j.sb.Sequence = 77
	j.super()
	home, last, err := recoverHome(t, j)
	if len(home) != 0 || last != 76 || err != nil {
		t.Errorf("%d blocks, last %d, %v", len(home), last, err)
	}
}

func TestRecoverDamage(t *testing.T) {
	for _, f := range formats {
		if f.compat == 0 && f.incompat&(IncompatCsumV2|IncompatCsumV3) == 0 {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			for range 60 {
				j := newJournal(1024, 120, f.compat, f.incompat)
				j.sb.Start = 1
				j.super()
				var txs []*Tx
				var all [][]write
				for range 4 {
					tx := j.random(r, 15, 40)
					ws := j.write(tx, 1+r.IntN(6))
					j.apply(ws)
					txs, all = append(txs, tx), append(all, ws)
				}
				hit := r.IntN(4)
				hurt := all[hit][r.IntN(len(all[hit]))].data
				if kind, _ := KindOf(hurt); f.compat != 0 && (kind == Revoke || kind == Commit) {
					hurt[12] ^= 0x40
				} else {
					hurt[20] ^= 0x40
				}
				home, last, err := recoverHome(t, j)
				if last != uint32(hit) {
					t.Fatalf("last %d, damage in %d: %v", last, hit+1, err)
				}
				// An asynchronous commit whose blocks are wrong was interrupted.
				if async := f.incompat&IncompatAsyncCommit != 0; async && err != nil || !async && !errors.Is(err, mem.ErrInconsistent) {
					t.Fatalf("damage in %d: error %v", hit+1, err)
				}
				sameHome(t, home, replayed(txs[:hit]))
			}
		})
	}
}

// An older life of the journal left a transaction with the tid that is due, but its data is gone.
func TestRecoverLeftover(t *testing.T) {
	j := newJournal(1024, 50, 0, IncompatCsumV3)
	r := rand.New(rand.NewPCG(3, 5))
	a, b := j.random(r, 5, 40), j.random(r, 5, 40)
	b.Time = a.Time.Add(-5e9)
	j.apply(j.write(a, 5))
	ws := j.write(b, 5)
	ws[1].data[500] ^= 1
	j.apply(ws)
	j.sb.Start = 1
	j.super()
	home, last, err := recoverHome(t, j)
	if err != nil || last != a.TID {
		t.Fatalf("last %d: %v", last, err)
	}
	sameHome(t, home, replayed([]*Tx{a}))
}

func TestRecoverWhileItMoves(t *testing.T) {
	j := newJournal(1024, 50, 0, IncompatCsumV3)
	r := rand.New(rand.NewPCG(3, 6))
	j.sb.Start = 1
	j.super()
	for range 3 {
		j.apply(j.write(j.random(r, 5, 40), 5))
	}
	sb, err := ParseSuper(j.disk[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = Recover(sb, j.read, func(*Tx) error {
		j.sb.Start, j.sb.Sequence = j.head, j.tid
		j.super()
		return nil
	})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("the tail moved: %v", err)
	}
	j.sb.Start, j.sb.Sequence = 1, 1
	j.super()
	_, err = Recover(sb, j.read, func(*Tx) error {
		for _, b := range j.disk[1:] {
			clear(b)
		}
		return nil
	})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("the log was overwritten: %v", err)
	}
}

// A transaction is committed while it is being read.
func TestRecoverWhileItGrows(t *testing.T) {
	j := newJournal(1024, 50, 0, IncompatCsumV3)
	r := rand.New(rand.NewPCG(3, 7))
	j.sb.Start = 1
	j.super()
	j.apply(j.write(j.random(r, 5, 40), 5))
	tx := j.random(r, 5, 40)
	ws := j.write(tx, 5)
	j.apply(ws)
	torn := map[uint32]bool{ws[1].index: true, ws[len(ws)-2].index: true}
	last, err := Recover(&j.sb, func(p []byte, index uint32) error {
		if torn[index] {
			delete(torn, index)
			clear(p)
			return nil
		}
		return j.read(p, index)
	}, func(*Tx) error { return nil })
	if last != 2 && last != 1 || err != nil {
		t.Errorf("last %d, %v", last, err)
	}
}

// A log that has no end, and one that cannot be read.
func TestRecoverHostile(t *testing.T) {
	j := newJournal(1024, 5000, 0, 0)
	j.sb.Start = 1
	j.super()
	for i := range j.disk[1:] {
		j.disk[1+i] = j.metadata(Descriptor, 1)
		j.disk[1+i][headerSize+7] = flagLast
	}
	reads := 0
	_, err := Recover(&j.sb, func(p []byte, index uint32) error { reads++; return j.read(p, index) }, func(*Tx) error { return nil })
	if !errors.Is(err, mem.ErrInconsistent) || reads > 12000 {
		t.Errorf("%d reads, %v", reads, err)
	}
	sick := fmt.Errorf("sick: %w", mem.ErrInconsistent)
	_, err = Recover(&j.sb, func(p []byte, index uint32) error { return sick }, func(*Tx) error { return nil })
	if !errors.Is(err, sick) {
		t.Errorf("unreadable: %v", err)
	}
	_, err = Recover(&Super{BlockSize: 3}, j.read, nil)
	if !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("no superblock: %v", err)
	}
}

func TestApplyEnds(t *testing.T) {
	j := newJournal(1024, 50, 0, 0)
	j.sb.Start = 1
	j.super()
	j.apply(j.write(j.random(rand.New(rand.NewPCG(1, 1)), 5, 40), 5))
	enough := errors.New("enough")
	if _, err := Recover(&j.sb, j.read, func(*Tx) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}
