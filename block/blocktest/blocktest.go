// Package blocktest is the contract that every block.Tap fulfils, as a test. A new tap passes it in a few lines: it says how
// to write to the disk as its guest would.
//
//	func TestContract(t *testing.T) {
//		blocktest.Run(t, func(t *testing.T) blocktest.Rig { return blocktest.Rig{Tap: tap, Write: c.WriteAt} })
//	}
package blocktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"vmscope/block"
)

// Rig is a tap on a disk that nobody else writes to, of 1 MiB at least.
type Rig struct {
	Tap block.Tap
	// Write writes to the disk and returns when that is complete.
	Write func(p []byte, off int64) (int, error)
	// Flush and Zero do what their names say; nil: the tap does not see that.
	Flush func() error
	Zero  func(off, n int64) error
}

// patience bounds the wait for a write that must be there.
const patience = 10 * time.Second

// Run checks taps against the contract of block.Tap. open is called once for each test.
func Run(t *testing.T, open func(t *testing.T) Rig) {
	t.Run("device", func(t *testing.T) { testDevice(t, open(t)) })
	t.Run("writes", func(t *testing.T) { testWrites(t, open(t)) })
	t.Run("end", func(t *testing.T) { testEnd(t, open(t)) })
}

// testDevice reads at and behind the disk's end.
func testDevice(t *testing.T, r Rig) {
	d := r.Tap.Device()
	size := d.Size()
	if size < 1<<20 {
		t.Fatalf("a disk of %d bytes", size)
	}
	b := make([]byte, 1000)
	for _, x := range []struct {
		off int64
		n   int
		eof bool
	}{{0, 1000, false}, {size - 1000, 1000, false}, {size - 999, 999, true}, {size - 1, 1, true}, {size, 0, true}, {777, 1000, false}} {
		n, err := d.ReadAt(b, x.off)
		if n != x.n || x.eof != (err == io.EOF) && !(err == io.EOF && n == len(b)) || err != nil && err != io.EOF {
			t.Errorf("read at %d of %d: %d, %v", x.off, size, n, err)
		}
	}
	for _, off := range []int64{-1, size + 1, 1 << 62} {
		if n, err := d.ReadAt(b, off); err == nil || n != 0 {
			t.Errorf("read at %d: %d, %v", off, n, err)
		}
	}
}

// testWrites makes writes and compares what the tap gives: all of them, in order, with their content.
func testWrites(t *testing.T, r Rig) {
	d := r.Tap.Device()
	image := make([]byte, d.Size())
	if err := block.ReadFull(d, image, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	type want struct {
		op   block.Op
		off  int64
		data []byte
		n    int64
	}
	var list []want
	rng := rand.New(rand.NewPCG(1, 2))
	began := time.Now()
	for i := range 50 {
		off := rng.Int64N(d.Size()/512-256) * 512
		n := int64(1+rng.IntN(8)) * 512
		if i%10 == 0 {
			n = 128 << 10
		}
		w := want{block.OpWrite, off, nil, n}
		var err error
		switch {
		case i%7 == 3 && r.Flush != nil:
			w = want{op: block.OpFlush}
			err = r.Flush()
		case i%11 == 5 && r.Zero != nil:
			w.op = block.OpZeroes
			err = r.Zero(off, n)
		default:
			w.data = bytes.Repeat([]byte{byte(i + 1)}, int(n))
			_, err = r.Write(w.data, off)
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, w)
	}
	var seq uint64
	last := began.Add(-time.Second)
	for w, err := range r.Tap.Writes(ctx) {
		if err != nil {
			t.Fatalf("%v, with %d writes still to come", err, len(list))
		}
		if w.Op == block.OpFlush && list[0].op != block.OpFlush {
			continue // of somebody in between
		}
		if seq != 0 && w.Seq != seq+1 {
			t.Errorf("number %d after %d", w.Seq, seq)
		}
		seq = w.Seq
		if w.Time.Before(last) || w.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("write %d at %v, the one before at %v", w.Seq, w.Time, last)
		}
		last = w.Time
		// One write may come in several pieces, and zeroes as a write of zeroes.
		x := &list[0]
		if w.Off != x.off || w.Len > x.n || w.Op != x.op && !(w.Op == block.OpWrite && x.op == block.OpZeroes) {
			t.Fatalf("%v of %d bytes at %d, want %v of %d at %d", w.Op, w.Len, w.Off, x.op, x.n, x.off)
		}
		switch w.Op {
		case block.OpWrite:
			if int64(len(w.Data)) != w.Len || x.data != nil && !bytes.Equal(w.Data, x.data[:w.Len]) {
				t.Fatalf("write %d has not the content that was written", w.Seq)
			}
			copy(image[w.Off:], w.Data)
		case block.OpZeroes:
			clear(image[w.Off:w.End()])
		}
		x.off, x.n = x.off+w.Len, x.n-w.Len
		if x.data != nil {
			x.data = x.data[w.Len:]
		}
		if x.n == 0 {
			if list = list[1:]; len(list) == 0 {
				break
			}
		}
	}
	now := make([]byte, len(image))
	if err := block.ReadFull(d, now, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(now, image) {
		t.Error("the disk does not hold what was written")
	}
}

// testEnd ends the context while the stream waits.
func testEnd(t *testing.T, r Rig) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	n := 0
	var end error
	for w, err := range r.Tap.Writes(ctx) {
		if end != nil {
			t.Fatalf("goes on behind its end: %+v, %v", w, err)
		}
		var lost *block.LostError
		if err != nil && !errors.As(err, &lost) {
			end = err
		}
		n++
	}
	if !errors.Is(end, context.Canceled) {
		t.Errorf("%d writes, then %v", n, end)
	}
}
