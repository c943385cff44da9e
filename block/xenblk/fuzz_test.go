package xenblk

import (
	"bytes"
	"testing"
)

// FuzzRing serves a ring that is made of the input, and a page of segments. Whatever it is: the observer's disk is the real
// one, no more is answered than was asked, and a ring that is given up contradicts itself.
func FuzzRing(f *testing.F) {
	for _, l := range []layout{layout64, layout32} {
		g := newGuest()
		r := g.newRing(1, 1, l, 1)
		segs := []segment{{3, 0, 7}, {4, 1, 2}}
		r.rw(opWrite, 3, segs...)
		r.rw(opRead, 2, segs...)
		r.rw(opFlush, 0)
		r.discard(8, 16)
		r.indirect(opWrite, 7, 2, segs...)
		r.indirect(opRead, 7, 2, segs...)
		r.rw(opBarrier, 9, segs...)
		r.push()
		f.Add(l == layout32, true, bytes.Clone(g.mem[pageSize:2*pageSize]), bytes.Clone(g.mem[2*pageSize:2*pageSize+64]))
		f.Add(l == layout32, false, bytes.Clone(g.mem[pageSize:2*pageSize]), bytes.Clone(g.mem[2*pageSize:2*pageSize+64]))
	}
	f.Fuzz(func(t *testing.T, narrow, persistent bool, ringPage, segments []byte) {
		l := layout64
		if narrow {
			l = layout32
		}
		g := newGuest()
		copy(g.mem[2*pageSize:3*pageSize], segments)
		mem := g.mem[pageSize : 2*pageSize]
		copy(mem, ringPage)
		for i := range 16 {
			g.mem[(3+i)*pageSize] = byte(i + 1)
		}
		d, m := newDisk(), &model{data: make([]byte, diskSize)}
		srv, err := New(d, Options{Observer: m})
		if err != nil {
			t.Fatal(err)
		}
		// The disk is small, so that requests fit by chance; the model wants all of it.
		srv.size = diskSize / 2
		h := &Host{Grants: g, Events: g}
		before := le.Uint32(mem[rspProd:])
		asked := le.Uint32(mem[reqProd:]) - before
		q, err := newQueue(t.Context(), srv, h, Vbd{Domain: guestID}, 0, ringKeys{[]uint32{1}, 1}, l, persistent)
		if err != nil {
			if asked <= 32 {
				t.Fatalf("a ring of %d requests: %v", asked, err)
			}
			return
		}
		for i := 0; ; i++ {
			var slot [maxSlot]byte
			var r request
			index, ok, err := q.ring.take(&slot)
			if err != nil && asked <= 32 && !touched(g, ringPage) {
				t.Fatalf("a ring of %d requests: %v", asked, err)
			}
			if !ok || err != nil || i > 1000 {
				break
			}
			q.serve(index, &slot, &r)
		}
		q.beside.Wait()
		if n := q.ring.prod - before; n > q.ring.cons-before {
			t.Fatalf("%d answers to %d requests", n, q.ring.cons-before)
		}
		if !bytes.Equal(d.data, m.data) {
			t.Fatal("the observer saw another disk")
		}
		q.drop()
		if n := g.mappings(); n != 0 {
			t.Errorf("%d mappings are left", n)
		}
	})
}

// touched reports whether the guest had its own ring's words written, by a read into it.
func touched(g *guest, was []byte) bool {
	var w [reqEvent]byte
	copy(w[:], was)
	return !bytes.Equal(g.mem[pageSize:pageSize+reqEvent], w[:])
}
