package tap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/internal/ring"
)

// pair is a volume in two pieces of 128 blocks on two disks, with its journal from block 100 on.
type pair struct {
	t     *testing.T
	where *block.Map
	taps  []*Tap
	disks []*nbd.Client
	joint *Joint
}

func newPair(t *testing.T) *pair {
	t.Helper()
	where, err := block.NewMap([]block.Segment{
		{Len: 128 * bs, Legs: []block.Leg{{Disk: 0, Off: 8 * bs}}}, {Start: 128 * bs, Len: 128 * bs, Legs: []block.Leg{{Disk: 2}}}})
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, where: where, taps: make([]*Tap, 3), disks: make([]*nbd.Client, 3)}
	for _, disk := range []int{0, 2} {
		dir := t.TempDir()
		image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
		if err := os.WriteFile(image, make([]byte, 136*bs), 0o600); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if p.taps[disk], err = Serve(t.Context(), ln, Service{Image: image}, Options{InProcess: true}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.taps[disk].Close() })
		if p.disks[disk], err = nbd.Dial(t.Context(), "nbd+unix:///?socket="+socket, nbd.Options{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.disks[disk].Close() })
	}
	p.joint = Join(where, p.taps)
	t.Cleanup(p.joint.Close)
	for _, disk := range []int{0, 2} {
		content, err := p.taps[2-disk].Content(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.taps[disk].Capture(t.Context(), []Journal{{
			Format: jbd2.Format{BlockSize: bs}, Disk: disk, Volume: where.Segments(),
			Extents: []block.Range{{Off: 100 * bs, Len: 56 * bs}}, Others: map[int]Content{2 - disk: content},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// write writes a block of the volume.
func (p *pair) write(n int64, b []byte) {
	p.t.Helper()
	at := p.where.Locate(n * bs)
	if _, err := p.disks[at.Disk].WriteAt(b, at.Off); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) fill(n int64, b byte) { p.t.Helper(); p.write(n, bytes.Repeat([]byte{b}, bs)) }

// make makes the next write of a disk.
func (p *pair) make(disk int) {
	p.t.Helper()
	_, err := p.taps[disk].Next(p.t.Context())
	if mark := (*CapturingError)(nil); errors.As(err, &mark) {
		p.make(disk)
		return
	}
	if err == nil {
		err = p.joint.Made(disk)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// holds says what a block holds, and whether that is known.
func (p *pair) holds(n int64, want byte, exact bool) {
	p.t.Helper()
	b := make([]byte, bs)
	if _, err := p.joint.ReadAt(b, n*bs); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{want}, bs)) || p.joint.Inexact() == exact {
		p.t.Errorf("block %d holds %d, %v; want %d, exact %v", n, b[0], err, want, exact)
	}
}

// Reads of a volume on two disks are of where the reader is in both, whichever disk holds the journal, and what lies there now.
func TestJoint(t *testing.T) {
	p := newPair(t)
	for _, disk := range []int{0, 2} { // that holds the log
		log := []int64{0: 100, 2: 140}[disk]
		for _, n := range []int64{3, 200} {
			p.fill(n, 1)
		}
		p.make(0)
		p.make(2)
		p.write(log, descriptor(1, 3, 200))
		p.write(log+1, meta(2, 1))
		p.fill(3, 2)
		p.fill(200, 2)
		p.fill(201, 9)                     // by no transaction
		p.write(log+2, descriptor(2, 200)) // of what the first has made
		p.write(log+3, meta(2, 2))
		p.fill(200, 3)
		p.holds(3, 1, true)
		p.holds(200, 1, true)
		p.holds(201, 9, false)
		p.holds(202, 0, true)
		p.make(disk) // the log
		p.make(disk)
		p.holds(3, 1, true)
		p.holds(200, 1, true)
		if disk == 0 {
			p.make(0)
			p.holds(3, 2, true)
			p.holds(200, 1, true)
			p.make(2)
		} else {
			p.make(2)
			p.holds(3, 1, true)
			p.holds(200, 2, true)
			p.make(0)
		}
		p.holds(3, 2, true)
		p.holds(200, 2, true)
		p.make(2)
		p.holds(201, 9, true)
		p.make(disk)
		p.make(disk)
		p.holds(200, 2, true)
		p.make(2)
		p.holds(200, 3, true)
		p.fill(201, 0)
		p.make(2)
	}
}

// What another disk's receiver cannot be read for is a loss.
func TestJointLoses(t *testing.T) {
	p := newPair(t)
	if _, err := p.taps[0].Capture(t.Context(), []Journal{{
		Format: jbd2.Format{BlockSize: bs}, Volume: p.where.Segments(), Extents: []block.Range{{Off: 100 * bs, Len: 8 * bs}},
		Others: map[int]Content{2: {File: filepath.Join(t.TempDir(), "no")}},
	}}); err != nil {
		t.Fatal(err)
	}
	p.write(100, descriptor(1, 200))
	for {
		_, err := p.taps[0].Next(t.Context())
		if lost := (*block.LostError)(nil); errors.As(err, &lost) {
			return
		}
		if mark := (*CapturingError)(nil); !errors.As(err, &mark) {
			t.Fatalf("%v, want a loss", err)
		}
	}
}

// Disks are written to and caught at random, and what a joint reads at each write compared with what was there then: it is
// right, or said to be inexact, which it is not where all was caught.
func TestJointAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const half, stripe = 32 << 10, 1 << 10
	where, err := block.NewMap([]block.Segment{{Len: 2 * half, Stripe: stripe, Legs: []block.Leg{{Disk: 0, Off: 4096}, {Disk: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	inexact := 0
	for round := range 300 {
		catch := rng.IntN(3) // 0: all that is written
		j := &Joint{where: where, taps: make([]*Tap, 2), waiting: make([][]*span, 2)}
		disks := []block.Bytes{make([]byte, half+4096), make([]byte, half)}
		now := block.NewVolume(where, []block.Device{disks[0], disks[1]})
		type entry struct {
			ring.Record
			to int // the ring
		}
		var history []entry
		add := func(to int, r ring.Record) {
			r.Time = int64(len(history))
			history = append(history, entry{r, to})
		}
		states := [][]byte{make([]byte, 2*half)} // by the number of writes
		for range 40 {
			disk := rng.IntN(2)
			n := 512 * (1 + rng.Int64N(4))
			if rng.IntN(10) == 0 {
				n = 512 * (1 + rng.Int64N(30))
			}
			off := 512 * rng.Int64N((int64(len(disks[disk]))-n)/512+1)
			for at := off; at < off+n; at += 512 {
				if catch == 0 || rng.IntN(3) > 0 {
					add(rng.IntN(2), ring.Record{Kind: ring.PreImage, Extra: uint32(disk) + 1, Off: at, Len: 512, Data: bytes.Clone(disks[disk][at : at+512])})
				}
			}
			for i := range n {
				disks[disk][off+i] = byte(rng.Uint32())
			}
			add(disk, ring.Record{Kind: ring.Write, Off: off, Len: n})
			state := make([]byte, 2*half)
			if err := block.ReadFull(now, state, 0); err != nil {
				t.Fatal(err)
			}
			states = append(states, state)
		}
		for _, to := range rng.Perm(2) {
			for pos, e := range history {
				if e.to == to {
					j.saw(to, uint64(pos), &e.Record)
				}
			}
		}
		made := 0
		for pos, e := range history {
			if e.Kind != ring.Write {
				continue
			}
			j.made(e.to, uint64(pos))
			made++
			for range 5 {
				off := rng.Int64N(2 * half)
				b := make([]byte, 1+rng.Int64N(min(8192, 2*half-off)))
				copy(b, states[len(states)-1][off:])
				j.overlay(b, off)
				if j.Inexact() {
					inexact++
					if catch == 0 {
						t.Fatalf("round %d, write %d: %d+%d is said to be inexact", round, made, off, len(b))
					}
				} else if !bytes.Equal(b, states[made][off:off+int64(len(b))]) {
					t.Fatalf("round %d, write %d: %d+%d is wrong", round, made, off, len(b))
				}
			}
		}
		if len(j.ahead.chunks)+len(j.ahead.wide)+len(j.waiting[0])+len(j.waiting[1]) > 0 {
			t.Fatal("writes are left")
		}
	}
	if inexact == 0 {
		t.Error("nothing was inexact")
	}
}

// spans is compared with a list.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var x spans
	var all []*span
	random := func() block.Range {
		n := 1 + rng.Int64N(8<<10)
		if rng.IntN(20) == 0 {
			n = rng.Int64N(32<<20) + 1
		}
		return block.Range{Off: rng.Int64N(64 << 20), Len: n}
	}
	for i := range int64(3000) {
		m := &span{Range: random(), at: i}
		x.add(m)
		all = append(all, m)
		if n := rng.IntN(len(all)); rng.IntN(2) == 0 {
			if rng.IntN(2) == 0 {
				n = 0
			}
			x.drop(all[n])
			all = slices.Delete(all, n, n+1)
		}
		r := random()
		var want []*span
		for _, m := range all {
			if m.Off < r.End() && r.Off < m.End() {
				want = append(want, m)
			}
		}
		if got := x.overlapping(r); !slices.Equal(got, want) {
			t.Fatalf("%+v: %d, want %d", r, len(got), len(want))
		}
	}
	for _, m := range all {
		x.drop(m)
	}
	if len(x.chunks)+len(x.wide) > 0 {
		t.Error("something is left")
	}
}
