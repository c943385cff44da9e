package block_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"vmscope/block"
)

// layout is a volume of all kinds of segments on three disks.
var layout = []block.Segment{
	{Start: 0, Len: 1000, Legs: []block.Leg{{Disk: 0, Off: 5000}}},
	{Start: 1000, Len: 600, Stripe: 100, Legs: []block.Leg{{Disk: 1, Off: 100}, {Disk: 0, Off: 2000}, {Disk: 1, Off: 300}}},
	{Start: 1600, Len: 50},
	{Start: 1650, Len: 350, Legs: []block.Leg{{Disk: 2, Off: 0}}},
	{Start: 2000, Len: 100, Legs: []block.Leg{{Disk: 0, Off: 6000}}},
	{Start: 2100, Len: 10, Legs: []block.Leg{{Disk: -1, Off: 6}}},
}

// Writes of the disks, mapped and made on the volume, give what the volume then
// reads from the disks.
func TestMapBothWays(t *testing.T) {
	m, err := block.NewMap(layout)
	if err != nil {
		t.Fatal(err)
	}
	disks := []block.Bytes{noise(8000, 1), noise(800, 2), noise(400, 3)}
	var devs []block.Device
	for _, d := range disks {
		devs = append(devs, d)
	}
	v := block.NewVolume(m, devs)
	const readable = 2100
	mirror := make([]byte, readable)
	if _, err := v.ReadAt(mirror, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mirror[1600:1650], make([]byte, 50)) || !bytes.Equal(mirror[1100:1200], disks[0][2000:2100]) {
		t.Error("segments are read from elsewhere")
	}
	if _, err := v.ReadAt(make([]byte, 1), 2105); !errors.Is(err, block.ErrNoDisk) {
		t.Errorf("read from no disk: %v", err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	pieces := 0
	for range 5000 {
		d := r.IntN(3)
		n := 1 + r.Int64N(int64(len(disks[d])))
		off := r.Int64N(int64(len(disks[d])) - n + 1)
		data := noise(int(n), r.Uint64())
		copy(disks[d][off:], data)
		w := block.Write{Seq: 9, Op: block.OpWrite, FUA: true, Off: off, Len: n, Data: data}
		touched := false
		for p := m.Pieces(d, w); ; {
			x, ok := p.Next()
			if !ok {
				break
			}
			touched = true
			pieces++
			if x.Seq != 9 || !x.FUA || x.Len <= 0 || x.Len != int64(len(x.Data)) {
				t.Fatalf("piece %+v", x)
			}
			copy(mirror[x.Off:x.End()], x.Data)
		}
		if touched != m.Touches(d, &w) {
			t.Fatalf("Touches says otherwise for disk %d, %d at %d", d, n, off)
		}
	}
	got := make([]byte, readable)
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, mirror) {
		t.Errorf("the volume reads otherwise (%v)", err)
	}
	t.Log(pieces, "pieces")
	for d, want := range []bool{true, true, true, false} {
		p := m.Pieces(d, block.Write{Op: block.OpFlush, Seq: 4})
		if w, ok := p.Next(); ok != want || ok && w.Seq != 4 {
			t.Errorf("flush of disk %d: %v", d, ok)
		}
		if _, ok := p.Next(); ok {
			t.Errorf("two flushes of disk %d", d)
		}
	}
	for _, w := range []block.Write{{Op: block.OpZeroes, Off: -5000, Len: 100}, {Op: block.OpZeroes, Off: 5000, Len: -1}, {Op: block.OpZeroes, Off: 5000},
		{Op: block.OpDiscard, Off: 1<<63 - 10, Len: 100}} {
		if m.Touches(0, &w) {
			t.Errorf("%d bytes at %d touch the volume", w.Len, w.Off)
		}
	}
}

func TestNewMapRefuses(t *testing.T) {
	one := []block.Leg{{}}
	for name, segs := range map[string][]block.Segment{
		"gap":         {{Start: 1, Len: 5, Legs: one}},
		"empty":       {{Legs: one}},
		"negative":    {{Len: -5, Legs: one}},
		"too long":    {{Len: 1 << 60, Legs: one}, {Start: 1 << 60, Len: 1<<63 - 1, Legs: one}},
		"offset":      {{Len: 5, Legs: []block.Leg{{Off: -1}}}},
		"overlap":     {{Len: 10, Legs: one}, {Start: 10, Len: 5, Legs: []block.Leg{{Off: 9}}}},
		"own leg":     {{Len: 20, Stripe: 10, Legs: []block.Leg{{Off: 0}, {Off: 5}}}},
		"half stripe": {{Len: 15, Stripe: 10, Legs: []block.Leg{{Off: 0}, {Off: 50}}}},
		"no stripe":   {{Len: 20, Legs: []block.Leg{{Off: 0}, {Off: 50}}}},
	} {
		if _, err := block.NewMap(segs); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestPiecesAllocateNothing(t *testing.T) {
	m, _ := block.NewMap(layout)
	w := block.Write{Op: block.OpWrite, Off: 0, Len: 8000, Data: make([]byte, 8000)}
	n := 0
	if a := testing.AllocsPerRun(100, func() {
		for p := m.Pieces(0, w); ; n++ {
			if _, ok := p.Next(); !ok {
				break
			}
		}
	}); a != 0 || n == 0 {
		t.Errorf("%v allocations, %d pieces", a, n)
	}
}

func BenchmarkPieces(b *testing.B) {
	var segs []block.Segment
	for i := range int64(1000) {
		segs = append(segs, block.Segment{Start: i << 22, Len: 1 << 22, Legs: []block.Leg{{Off: (999 - i) << 23}}})
	}
	m, err := block.NewMap(segs)
	if err != nil {
		b.Fatal(err)
	}
	w := block.Write{Op: block.OpWrite, Len: 4096, Data: make([]byte, 4096)}
	b.ReportAllocs()
	for b.Loop() {
		w.Off = (w.Off + 12345*4096) % (8 << 30)
		for p := m.Pieces(0, w); ; {
			if _, ok := p.Next(); !ok {
				break
			}
		}
	}
}
