package jbd2

import (
	"math/rand/v2"
	"testing"
)

// A transaction of many blocks through the stream: one copy and one CRC-32C of each is the floor.
func BenchmarkStream(b *testing.B) {
	for _, f := range formats {
		for _, n := range []int{8, 2000} {
			b.Run(f.name+map[bool]string{false: " small", true: " large"}[n > 8], func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 1))
				j := newJournal(4096, 20000, f.compat, f.incompat)
				tx := j.random(r, 1, 1)
				tx.Blocks = nil
				for i := range n {
					p := make([]byte, 4096)
					p[0] = byte(i)
					tx.Blocks = append(tx.Blocks, Logged{Block: uint64(i), Data: p})
				}
				ws := j.write(tx, 1000)
				s := newStream(b, j, nil)
				b.SetBytes(int64(len(ws) * 4096))
				b.ReportAllocs()
				for b.Loop() {
					s.known, s.hasNext, s.next, s.nextAt = false, true, tx.TID, 1
					var got *Tx
					for _, w := range ws {
						t, err := s.Write(w.index, w.data)
						if err != nil {
							b.Fatal(err)
						}
						if t != nil {
							got = t
						}
					}
					if got == nil || len(got.Blocks) != n {
						b.Fatal("no transaction")
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ws)), "ns/block")
			})
		}
	}
}

func BenchmarkRecover(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	j := newJournal(4096, 8000, 0, IncompatCsumV3|Incompat64Bit)
	j.sb.Start = 1
	for j.head < 7000 {
		j.apply(j.write(j.random(r, 300, 100_000), 250))
	}
	j.super()
	b.SetBytes(int64(j.head) * 4096)
	for b.Loop() {
		if _, err := Recover(&j.sb, j.read, func(*Tx) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFastCommits(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	j := fcJournal(4096)
	first, _ := j.sb.FastCommits()
	a := &area{size: 4096}
	d := a.round(r, 50, 20)
	s := NewFCStream(&j.sb, nil)
	b.SetBytes(int64(len(d.blocks) * 4096))
	b.ReportAllocs()
	for b.Loop() {
		s.restart()
		n := 0
		for k, p := range d.blocks {
			got, err := s.Write(first+uint32(k), p)
			if err != nil {
				b.Fatal(err)
			}
			n += len(got)
		}
		if n != 50 {
			b.Fatal(n)
		}
	}
}

// What no stream can do without: one copy and one sum of each block.
func BenchmarkFloor(b *testing.B) {
	for _, n := range []int{8, 2000} {
		b.Run(map[bool]string{false: "small", true: "large"}[n > 8], func(b *testing.B) {
			src, dst := make([]byte, n*4096), make([]byte, n*4096)
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				copy(dst, src)
				for i := 0; i < len(dst); i += 4096 {
					crc32c(1, dst[i:i+4096])
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/block")
		})
	}
}
