package vhostuser

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRequest is the time of one request at a time, from the guest's kick to its interrupt.
func BenchmarkRequest(b *testing.B) {
	for _, bb := range []struct {
		name string
		kind uint32
		n    int
		o    Options
	}{
		{"read 4k", typeIn, 4096, Options{}},
		{"read 1M", typeIn, 1 << 20, Options{}},
		{"write 4k", typeOut, 4096, Options{}},
		{"write 1M", typeOut, 1 << 20, Options{}},
		{"write 4k copied", typeOut, 4096, Options{Observer: &slots{}}},
		{"write 1M copied", typeOut, 1 << 20, Options{Observer: &slots{}}},
		{"id", typeGetID, idLength, Options{}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			x, q := newFixture(b, bb.o, someFeatures|featEventIdx)
			h, s := q.header(0, bb.kind, 0)
			q.chain(q.descs(), 0, h, piece{place(lowSize), bb.n, bb.kind != typeOut}, s)
			fill(b, x.mem.data[lowSize:lowSize+bb.n])
			r := q.ring()
			var event [8]byte
			unix.Read(q.call, event[:])
			b.SetBytes(int64(bb.n))
			for b.Loop() {
				q.offer(0)
				q.ringBell()
				for q.used++; r.usedIdx() != q.used; {
					runtime.Gosched()
				}
				for deadline := time.Now().Add(time.Second); ; runtime.Gosched() {
					if n, _ := unix.Read(q.call, event[:]); n == 8 {
						break
					}
					if time.Now().After(deadline) {
						b.Fatal("no interrupt")
					}
				}
				r.avail[4+2*ringSize], r.avail[5+2*ringSize] = byte(q.used), byte(q.used>>8)
			}
			if q.status(0) != statusOK {
				b.Errorf("status %d", q.status(0))
			}
		})
	}
}
