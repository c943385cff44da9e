package tap

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/internal/ring"
)

// The journal of the tests: 1 KiB blocks, no checksums, on a volume that begins at partAt on its disk. It has two extents.
const (
	bs     = 1024
	partAt = 63 * 512
	volume = 256 * bs
)

func testJournal() Journal {
	return Journal{
		Format: jbd2.Format{BlockSize: bs}, Disk: 1,
		Volume:  []block.Segment{{Len: volume, Legs: []block.Leg{{Disk: 1, Off: partAt}}}},
		Extents: []block.Range{{Off: 100 * bs, Len: 8 * bs}, {Off: 50 * bs, Len: 4 * bs}},
	}
}

// Blocks of a journal by hand (include/linux/jbd2.h).
func meta(kind, tid uint32) []byte {
	b := make([]byte, bs)
	binary.BigEndian.PutUint32(b, 0xC03B3998)
	binary.BigEndian.PutUint32(b[4:], kind)
	binary.BigEndian.PutUint32(b[8:], tid)
	return b
}

func descriptor(tid uint32, blocks ...uint32) []byte {
	b := meta(1, tid)
	for i, n := range blocks {
		flags := uint16(2)
		if i == len(blocks)-1 {
			flags |= 8
		}
		binary.BigEndian.PutUint32(b[12+8*i:], n)
		binary.BigEndian.PutUint16(b[12+8*i+6:], flags)
	}
	return b
}

func revoke(tid uint32, blocks ...uint32) []byte {
	b := meta(5, tid)
	binary.BigEndian.PutUint32(b[12:], uint32(16+4*len(blocks)))
	for i, n := range blocks {
		binary.BigEndian.PutUint32(b[16+4*i:], n)
	}
	return b
}

func TestLogReader(t *testing.T) {
	l, err := newLogReader(testJournal())
	if err != nil {
		t.Fatal(err)
	}
	at := func(n int64) int64 { return partAt + n*bs }
	for _, x := range []struct {
		name    string
		off     int64
		data    []byte
		need    []int64 // blocks
		commits int
	}{
		{"descriptor", at(100), descriptor(7, 3, 9), []int64{3, 9}, 0},
		{"descriptor in the other extent", at(53), descriptor(7, 3), []int64{3}, 0},
		{"several blocks at once", at(101), slices.Concat(descriptor(7, 3), make([]byte, bs), revoke(7, 4, 5), meta(2, 7)), []int64{3, 4, 5}, 1},
		{"from before the journal into it", at(99), slices.Concat(descriptor(7, 1), descriptor(7, 2)), []int64{2}, 0},
		{"out of the journal", at(107), slices.Concat(descriptor(7, 1), descriptor(7, 2)), []int64{1}, 0},
		{"half a block", at(100) + bs/2, descriptor(7, 1), nil, 0},
		{"block behind the volume", at(100), descriptor(7, 256, 1<<31), nil, 0},
		{"somewhere else", at(10), descriptor(7, 1), nil, 0},
		{"data", at(100), make([]byte, bs), nil, 0},
	} {
		var need []int64
		commits := 0
		l.read(x.off, x.data, func(r place) {
			if r.Len != bs {
				t.Errorf("%s: %+v", x.name, r)
			}
			need = append(need, (r.Off-partAt)/bs)
		}, func() { commits++ })
		if !slices.Equal(need, x.need) || commits != x.commits {
			t.Errorf("%s: blocks %v, %d commits; want %v, %d", x.name, need, commits, x.need, x.commits)
		}
	}
	for _, bad := range []func(*Journal){
		func(j *Journal) { j.Format.BlockSize = 1000 },
		func(j *Journal) { j.Format.BlockSize = 0 },
		func(j *Journal) { j.Extents[0].Len = 1 << 62 },
		func(j *Journal) { j.Extents[0].Off = -1 },
		func(j *Journal) { j.Volume = append(j.Volume, j.Volume[0]) },
	} {
		j := testJournal()
		bad(&j)
		if _, err := newLogReader(j); err == nil {
			t.Errorf("%+v is taken", j)
		}
	}
}

func FuzzLogReader(f *testing.F) {
	f.Add(int64(partAt+100*bs), descriptor(1, 2, 3), uint8(0))
	f.Add(int64(partAt+50*bs), slices.Concat(revoke(1, 2), meta(2, 1)), uint8(3))
	f.Fuzz(func(t *testing.T, off int64, data []byte, kind uint8) {
		if off < 0 || off > partAt+volume || len(data) > 16*bs {
			return
		}
		j := testJournal()
		j.Format.Csum, j.Format.Wide = kind&3, kind&4 != 0
		l, err := newLogReader(j)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		l.read(off, data, func(r place) {
			n++
			if r.Off < partAt || r.End() > partAt+volume || r.Len <= 0 {
				t.Fatalf("%+v is not of the volume", r)
			}
		}, func() {})
		if n > len(data)/4 {
			t.Fatalf("%d blocks named by %d bytes", n, len(data))
		}
	})
}

// rig is a capture on a disk in memory.
type rig struct {
	*capture
	disk []byte
	con  *ring.Consumer
	wait chan struct{} // reads wait for it, if not nil
	fail error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	f, err := ring.Create(1<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ring.NewProducer(f)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{disk: make([]byte, partAt+volume)}
	for i := range r.disk {
		r.disk[i] = byte(i / bs)
	}
	if r.con, err = ring.NewConsumer(f); err != nil {
		t.Fatal(err)
	}
	r.capture, err = newCapture(1, []Journal{testJournal()}, p, 64*bs, func(ctx context.Context, b []byte, off int64) error {
		if r.wait != nil {
			<-r.wait
		}
		copy(b, r.disk[off:])
		return r.fail
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); r.con.Close(); f.Close() })
	return r
}

// got gives the blocks of the images that have come, sorted, and the number of losses.
func (r *rig) got(t *testing.T) (blocks []int64, lost int) {
	t.Helper()
	for {
		x, ok, err := r.con.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			slices.Sort(blocks)
			return blocks, lost
		}
		switch x.Kind {
		case ring.PreImage:
			if string(x.Data) != string(r.disk[x.Off:x.Off+x.Len]) {
				t.Errorf("image of %d is wrong", x.Off)
			}
			blocks = append(blocks, (x.Off-partAt)/bs)
		case ring.Lost:
			lost++
		}
	}
}

func (r *rig) log(blocks ...[]byte) { r.logged(partAt+100*bs, slices.Concat(blocks...)) }

func (r *rig) want(t *testing.T, blocks ...int64) {
	t.Helper()
	if got, lost := r.got(t); !slices.Equal(got, blocks) || lost != 0 {
		t.Errorf("images of %v, %d losses; want %v", got, lost, blocks)
	}
}

// A block is captured by the first transaction that changes it, and again only when it was written home.
func TestCapture(t *testing.T) {
	r := newRig(t)
	if r.covers(0, partAt+50*bs) || !r.covers(0, partAt+50*bs+1) || r.covers(partAt+54*bs, 46*bs) {
		t.Error("which writes are to be looked at")
	}
	r.log(descriptor(1, 3, 4, 9))
	r.want(t) // not before the commit
	r.log(meta(2, 1))
	r.want(t, 3, 4, 9)
	r.log(descriptor(2, 4, 9, 10), revoke(2, 3, 11), meta(2, 2))
	r.want(t, 10, 11)
	r.overwritten(partAt+9*bs, bs)
	r.overwritten(partAt+3*bs+512, 512)
	r.log(descriptor(3, 3, 4, 9), meta(2, 3))
	r.want(t, 3, 9)
	r.log(meta(2, 4))
	r.want(t)
	r.overwritten(0, partAt+volume) // a discard of all
	r.log(descriptor(5, 3, 4), meta(2, 5))
	r.want(t, 3, 4)
}

// Only what may complete a transaction is worth waking somebody for.
func TestCaptureMore(t *testing.T) {
	r := newRig(t)
	image := make([]byte, bs)
	for _, x := range []struct {
		name   string
		blocks [][]byte
		want   bool
	}{
		{"a beginning", [][]byte{descriptor(1, 3, 4), image, image}, true},
		{"with what it revokes", [][]byte{revoke(1, 3), descriptor(1, 4), image}, true},
		{"more images, or a fast commit", [][]byte{image, image}, false},
		{"a commit block", [][]byte{meta(2, 1)}, false},
		{"all at once", [][]byte{descriptor(2, 3), image, meta(2, 2)}, false},
	} {
		if got := r.logged(partAt+100*bs, slices.Concat(x.blocks...)); got != x.want {
			t.Errorf("%s: more %t", x.name, got)
		}
	}
}

// Some of what a transaction changes is in memory, and read without waiting; the rest is read beside.
func TestCaptureCached(t *testing.T) {
	r := newRig(t)
	inMemory := 0
	r.cached = func(b []byte, off int64) bool {
		if (off-partAt)/bs%2 == 0 {
			return false
		}
		inMemory++
		copy(b, r.disk[off:])
		return true
	}
	r.log(descriptor(1, 3, 6, 9), meta(2, 1))
	r.want(t, 3, 6, 9)
	if inMemory != 2 {
		t.Errorf("%d blocks were read from memory, want 2", inMemory)
	}
	r.fail = errors.New("no") // of the disk: it is not asked
	r.log(descriptor(2, 11), meta(2, 2))
	r.want(t, 11)
}

// What cannot be read in time, or at all, or is too much, is told as a loss; afterwards all is as it should be.
func TestCaptureFails(t *testing.T) {
	r := newRig(t)
	lost := func(what string) {
		t.Helper()
		if got, n := r.got(t); n != 1 || len(got) != 0 {
			t.Errorf("%s: images of %v, %d losses", what, got, n)
		}
		r.ring.Tick()
	}
	r.fail = errors.New("no")
	r.log(descriptor(1, 3), meta(2, 1))
	lost("error")
	r.fail = nil
	r.wait = make(chan struct{})
	began := time.Now()
	r.log(descriptor(2, 3), meta(2, 2))
	if d := time.Since(began); d < capturePatience {
		t.Errorf("waited for %v only", d)
	}
	lost("late")
	close(r.wait)
	var many []uint32
	for i := range uint32(70) {
		many = append(many, i)
	}
	r.log(descriptor(3, many...), meta(2, 3))
	lost("too much")
	r.log(descriptor(4, 3, 5), meta(2, 4))
	r.want(t, 3, 5)
}

// marks is compared with a map of its units.
func TestMarks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const units = 3 * markChunk
	var m marks
	model := map[int64]bool{}
	each := func(r block.Range, f func(u int64)) {
		for u := r.Off / markUnit; u*markUnit < r.End(); u++ {
			f(u)
		}
	}
	for range 3000 {
		r := block.Range{Off: rng.Int64N(units * markUnit), Len: 1 + rng.Int64N(20<<10)}
		switch rng.IntN(4) {
		case 0, 1:
			m = m.set(r)
			each(r, func(u int64) { model[u] = true })
		case 2:
			if rng.IntN(10) == 0 {
				r.Len = markChunk * markUnit * 3
			}
			m.clear(r)
			each(r, func(u int64) { delete(model, u) })
		}
		want := true
		each(r, func(u int64) { want = want && model[u] })
		if got := m.all(r); got != want {
			t.Fatalf("%+v: %v", r, got)
		}
	}
}
