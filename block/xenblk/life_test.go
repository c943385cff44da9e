package xenblk

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"vmscope/block"
)

// connected gives a bench with a guest that uses its disk.
func connected(t *testing.T, d block.Disk) (*bench, *frontRing) {
	b := newBench(t, d, Options{})
	b.serve()
	b.attach()
	b.until(stateInitWait)
	return b, b.connect(layout64, 1, 1, true)[0]
}

func (b *bench) alive(r *frontRing) {
	b.t.Helper()
	r.do(b.t, statusOK, func() uint64 { return r.rw(opRead, 0, segment{100, 0, 7}) })
}

// A guest that closes its disk and opens it again, as a kernel does that boots another one by kexec.
func TestReconnect(t *testing.T) {
	b, r := connected(t, newDisk())
	for range 3 {
		b.alive(r)
		b.set(frontPath+"/state", stateClosing)
		b.until(stateClosing)
		b.alive(r) // it may still have something to do
		b.set(frontPath+"/state", stateClosed)
		b.until(stateClosed)
		if n := b.g.mappings(); n != 0 {
			t.Errorf("%d mappings are left", n)
		}
		b.set(frontPath+"/state", stateInitialising)
		b.until(stateInitWait)
		r = b.connect(layout32, 1, 0, false)[0]
	}
	b.alive(r)
	// Without a word.
	b.set(frontPath+"/state", stateInitialising)
	b.until(stateInitWait)
	b.alive(b.connect(layout64, 1, 2, false)[0])
}

// A disk that is taken from a running guest is served until the guest lets go of it.
func TestDetach(t *testing.T) {
	b, r := connected(t, newDisk())
	b.set(backPath+"/online", 0)
	b.set(backPath+"/state", stateClosing)
	for range 5 {
		b.alive(r)
		time.Sleep(time.Millisecond)
	}
	if n := b.value(backPath + "/state"); n != stateClosing {
		t.Errorf("state %d", n)
	}
	b.set(frontPath+"/state", stateClosing)
	b.set(frontPath+"/state", stateClosed)
	b.until(stateClosed)
	// The same disk is plugged in again.
	b.store.Drop(backPath)
	b.store.Drop(frontPath)
	b.attach()
	b.until(stateInitWait)
	b.alive(b.connect(layout64, 1, 0, true)[0])
}

// What xl destroy does: the guest's end is removed, and ours is to close.
func TestDestroy(t *testing.T) {
	b, r := connected(t, newDisk())
	b.alive(r)
	b.store.Drop(frontPath)
	b.set(backPath+"/online", 0)
	b.set(backPath+"/state", stateClosing)
	b.until(stateClosed)
	if n := b.g.mappings(); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
	// The same disk for the domain that comes next, while the old one's is still in the store.
	old := "/local/domain/0/backend/vbd/8/51712"
	for _, k := range []string{"frontend", "frontend-id", "params", "mode", "online", "state"} {
		v, _ := b.store.Value(backPath + "/" + k)
		b.store.Set(old+"/"+k, v)
	}
	b.store.Drop(backPath)
	b.attach()
	b.until(stateInitWait)
	b.alive(b.connect(layout64, 1, 0, true)[0])
	// All of it is gone at once.
	b.store.Drop("/local/domain/7")
	b.store.Drop("/local/domain/0/backend/vbd/7")
	for try := 0; b.g.mappings() != 0; try++ {
		if try == 2000 {
			t.Fatal("it is still mapped")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, there := b.store.Value(backPath + "/state"); there {
		t.Error("what was removed is there again")
	}
}

// A ring that makes no sense ends the connection, and another one may be made.
func TestHostileRing(t *testing.T) {
	for name, harm := range map[string]func(*bench, *frontRing){
		"more than fits": func(_ *bench, r *frontRing) { r.prod += r.size + 1; r.push() },
		"far away":       func(_ *bench, r *frontRing) { r.prod += 1 << 31; r.push() },
		"backwards":      func(_ *bench, r *frontRing) { r.prod--; r.push(); call(r.port.back) },
	} {
		t.Run(name, func(t *testing.T) {
			b, r := connected(t, newDisk())
			b.alive(r)
			harm(b, r)
			b.until(stateClosing)
			var e *RingError
			if err := <-b.errs; !errors.As(err, &e) || !errors.Is(err, errRing) || e.Domain != guestID {
				t.Errorf("reported: %v", err)
			}
			b.set(frontPath+"/state", stateClosed)
			b.until(stateClosed)
			b.set(frontPath+"/state", stateInitialising)
			b.until(stateInitWait)
			b.alive(b.connect(layout64, 1, 1, true)[0])
		})
	}
}

// A front end that asks for what cannot be is refused.
func TestHostileKeys(t *testing.T) {
	for key, v := range map[string]string{
		"protocol": "vax-abi", "ring-page-order": "5", "multi-queue-num-queues": "65", "event-channel": "x", "ring-ref0": "-1",
		"ring-ref1": "99999999999", "feature-persistent": "yes", "ring-page-order ": "",
	} {
		t.Run(key, func(t *testing.T) {
			b := newBench(t, newDisk(), Options{})
			b.serve()
			b.attach()
			b.until(stateInitWait)
			for k, w := range map[string]string{"ring-page-order": "1", "ring-ref0": "1", "ring-ref1": "2", "event-channel": "3"} {
				b.store.Set(frontPath+"/"+k, w)
			}
			if v == "" {
				b.store.Set(frontPath+"/ring-ref1", "9") // the grants are there, the mapping is not
			} else {
				b.store.Set(frontPath+"/"+key, v)
			}
			b.set(frontPath+"/state", stateInitialised)
			b.until(stateClosing)
			var e *VbdError
			if err := <-b.errs; !errors.As(err, &e) {
				t.Errorf("reported: %v", err)
			}
			if n := b.g.mappings(); n != 0 {
				t.Errorf("%d mappings are left", n)
			}
		})
	}
}

// Whoever serves the disk next goes on where the last one was, with what was asked meanwhile.
func TestTakeOver(t *testing.T) {
	d := newDisk()
	b, r := connected(t, d)
	copy(b.g.mem[100*pageSize:], "one")
	r.do(t, statusOK, func() uint64 { return r.rw(opWrite, 0, segment{100, 0, 0}) })
	for i := range 5 {
		b.end()
		if n := b.value(backPath + "/state"); n != stateConnected {
			t.Fatalf("state %d", n)
		}
		copy(b.g.mem[101*pageSize:], fmt.Sprint("two", i))
		w := r.rw(opWrite, 1, segment{101, 0, 0})
		rd := r.rw(opRead, 0, segment{102, 0, 1})
		f := r.rw(opFlush, 0)
		r.push()
		b.serve()
		for _, id := range []uint64{w, rd, f} {
			if got := r.wait(t); got.id != id || got.status != statusOK {
				t.Fatalf("answer %+v to request %d", got, id)
			}
		}
		if got := b.g.mem[102*pageSize:]; string(got[:3]) != "one" || string(got[512:516]) != fmt.Sprint("two", i) {
			t.Errorf("read %q, %q", got[:3], got[512:516])
		}
	}
}

// A back end that is killed at any moment leaves each request that was not answered where the next one finds it, and none
// that was.
func TestRingKilled(t *testing.T) {
	g := newGuest()
	f := g.newRing(1, 2, layout64, 10)
	r, err := newRing(f.mem, layout64)
	if err != nil {
		t.Fatal(err)
	}
	var want []uint64 // not answered
	for round := range 200 {
		for f.prod-f.cons < f.size {
			want = append(want, f.rw(opRead, 0, segment{1, 0, 0}))
		}
		f.push()
		var slot [maxSlot]byte
		type taken struct {
			index uint32
			id    uint64
		}
		var all []taken
		for range round % int(f.size) {
			index, ok, err := r.take(&slot)
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			all = append(all, taken{index, le.Uint64(slot[8:])})
		}
		// Some are answered, in any order.
		for i := range all {
			j := (i*7 + round) % len(all)
			if x := all[j]; (j+round)%5 != 0 && !r.ready[x.index&(r.size-1)].there && x.index-r.prod < r.size {
				r.answer(x.index, x.id, opRead, 0)
			}
		}
		for f.word(rspProd).Load() != f.cons {
			if got := f.wait(t); got.id != want[0] {
				t.Fatalf("answer to %d, want %d", got.id, want[0])
			}
			want = want[1:]
		}
		if r, err = newRing(f.mem, layout64); err != nil {
			t.Fatal(err)
		}
		for i, id := range want {
			if got := le.Uint64(r.slot(r.prod + uint32(i))[8:]); got != id {
				t.Fatalf("round %d: request %d is %d, want %d", round, i, got, id)
			}
		}
	}
}

// Behind an answered flush nothing is missing on the disk, and none is answered before it is done.
func TestFlushWaits(t *testing.T) {
	d := newDisk()
	d.gate = make(chan struct{})
	b, r := connected(t, d)
	copy(b.g.mem[100*pageSize:], bytes.Repeat([]byte{7}, 512))
	id := r.rw(opWrite, 0, segment{100, 0, 0})
	r.push()
	if got := r.wait(t); got.id != id {
		t.Fatal(got)
	}
	r.rw(opFlush, 0)
	r.push()
	time.Sleep(20 * time.Millisecond)
	if r.word(rspProd).Load() != r.cons {
		t.Error("the flush was answered before it was done")
	}
	close(d.gate)
	if got := r.wait(t); got.status != statusOK || d.data[0] != 7 {
		t.Error(got, d.data[0])
	}
}
