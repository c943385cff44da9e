package ring

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const small = 64 << 10

func pair(t testing.TB, size int, disk int64) (*Producer, *Consumer, Files) {
	t.Helper()
	f, err := Create(size, disk)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProducer(f)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConsumer(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); c.Close(); f.Close() })
	return p, c, f
}

func TestPass(t *testing.T) {
	p, c, _ := pair(t, small, 1<<30)
	want := []Record{
		{Kind: Write, Time: 1, Off: 4096, Len: 5, Data: []byte("hello")},
		{Kind: Write, Time: 2, Off: 8192, Len: 1 << 20, Flags: NoData},
		{Kind: Zeroes, Time: 3, Off: 0, Len: 512},
		{Kind: Flush, Time: 4},
		{Kind: PreImage, Time: 5, Off: 1024, Len: 1024, Data: make([]byte, 1024)},
		{Kind: Marker, Time: 6, Extra: 77},
	}
	for i := range want {
		if !p.Append(want[i]) {
			t.Fatal(i)
		}
	}
	var got []Record
	if err := c.Scan(func(_ uint64, r Record) { got = append(got, r) }); err != nil || len(got) != len(want) {
		t.Error(got, err)
	}
	for i, w := range want {
		r, err := c.Next(t.Context())
		if err != nil || !bytes.Equal(r.Data, w.Data) {
			t.Fatal(i, r, err)
		}
		r.Data, w.Data = nil, nil
		if r.Kind != w.Kind || r.Time != w.Time || r.Off != w.Off || r.Len != w.Len || r.Flags != w.Flags || r.Extra != w.Extra {
			t.Errorf("%+v, want %+v", r, w)
		}
	}
	if _, ok, err := c.Poll(); ok || err != nil {
		t.Error(ok, err)
	}
}

// What does not fit is dropped and told, once there is room.
func TestOverflow(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	data := make([]byte, 4096)
	n := 0
	for p.Append(Record{Kind: Write, Len: 4096, Data: data}) {
		n++
	}
	p.Append(Record{Kind: Write, Len: 4096, Data: data})
	if n != small/(4096+headSize) {
		t.Errorf("%d records fit", n)
	}
	if _, err := c.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Poll(); p.Append(Record{Kind: Flush}) { // one record's room is not enough to begin again
		t.Error("taken up again at once")
	}
	for range n - 2 {
		if r, err := c.Next(t.Context()); err != nil || r.Kind != Write {
			t.Fatal(r, err)
		}
	}
	p.Tick()
	p.Append(Record{Kind: Flush})
	if r, err := c.Next(t.Context()); err != nil || r.Kind != Lost || r.Len != 3 || Reason(r.Extra) != Overflow {
		t.Error(r, err)
	}
	if r, err := c.Next(t.Context()); err != nil || r.Kind != Flush {
		t.Error(r, err)
	}
	if p.Losing() {
		t.Error("still losing")
	}
}

// A record that is begun holds up those behind it, one that is given up does not; a new producer gives up what a dead
// one left.
func TestOrder(t *testing.T) {
	p, c, f := pair(t, small, 0)
	a := p.Reserve(Record{Kind: Write, Off: 1, Len: 3}, 3)
	b := p.Reserve(Record{Kind: Write, Off: 2, Len: 3}, 3)
	copy(b.Data, "bbb")
	b.Commit()
	if _, ok, _ := c.Poll(); ok {
		t.Error("order is not kept")
	}
	a.Abandon()
	if r, ok, err := c.Poll(); !ok || err != nil || string(r.Data) != "bbb" {
		t.Error(r, ok, err)
	}
	p.Reserve(Record{Kind: Write, Off: 3, Len: 1}, 1)
	q, err := NewProducer(f)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	q.Lose(1, Restarted)
	if r, ok, err := c.Poll(); !ok || err != nil || r.Kind != Lost || Reason(r.Extra) != Restarted {
		t.Error(r, ok, err)
	}
}

// Scan sees what lies ahead, and each record once; At gives its data until it is consumed.
func TestScan(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	var at []uint64
	scan := func() {
		t.Helper()
		if err := c.Scan(func(pos uint64, r Record) {
			if r.Kind == PreImage {
				at = append(at, pos)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	p.Append(Record{Kind: Write, Len: 1, Data: []byte("x")})
	held := p.Reserve(Record{Kind: Write, Len: 1}, 1) // of another connection
	p.Append(Record{Kind: PreImage, Len: 3, Data: []byte("old")})
	scan()
	scan()
	if len(at) != 1 {
		t.Fatal(at)
	}
	if r, err := c.At(at[0]); err != nil || string(r.Data) != "old" {
		t.Error(r, err)
	}
	held.Commit()
	p.Append(Record{Kind: Write, Flags: Logged, Len: 1, Data: []byte("x")}) // what it belongs to
	for range 5 {
		c.Poll()
	}
	if _, err := c.At(at[0]); !errors.Is(err, ErrDamaged) {
		t.Errorf("released, but: %v", err)
	}
	p.Append(Record{Kind: PreImage, Len: 1, Data: []byte("y")})
	if scan(); len(at) != 2 {
		t.Error(at)
	}
}

// Pre-images stay until the write to the journal that follows them was worked on: however many, and though the ring is more than
// half full.
func TestHold(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	const images = small / headSize / 4 // half of the ring
	for range images {
		p.Append(Record{Kind: PreImage, Len: 3, Data: []byte("old")})
	}
	p.Append(Record{Kind: Write, Off: 7}) // of another connection, without content
	p.Append(Record{Kind: Write, Off: 9, Len: 4, Data: []byte("data")})
	p.Append(Record{Kind: Write, Flags: Logged, Len: 6, Data: []byte("commit")})
	p.Append(Record{Kind: Write})
	for range images + 3 {
		if _, ok, err := c.Poll(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if r, err := c.At(0); err != nil || string(r.Data) != "old" {
		t.Errorf("%v, %v", r, err)
	}
	if c.Poll(); c.Tail() < images*headSize {
		t.Errorf("held up to %d", c.Tail())
	}
}

// What belongs to a write that is lost does not stay: the ring would never have room to tell of it.
func TestHoldLost(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	p.Append(Record{Kind: PreImage, Len: small * 7 / 8, Data: make([]byte, small*7/8)})
	if p.Append(Record{Kind: Write, Flags: Logged, Len: small / 4, Data: make([]byte, small/4)}) {
		t.Fatal("it fits")
	}
	for range 2 {
		c.Poll()
		p.Tick()
	}
	if r, ok, err := c.Poll(); !ok || err != nil || r.Kind != Lost {
		t.Error(r, ok, err)
	}
}

// Records that were given stay as long as there is room.
func TestLag(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	c.Lag = small / 4
	p.Append(Record{Kind: PreImage, Len: 3, Data: []byte("old")})
	for range 3 {
		p.Append(Record{Kind: Write, Flags: Logged, Len: 64, Data: make([]byte, 64)})
		c.Poll()
	}
	if r, err := c.At(0); err != nil || string(r.Data) != "old" {
		t.Errorf("%v, %v", r, err)
	}
	for range small / 2 / 128 {
		p.Append(Record{Kind: Write, Len: 64, Data: make([]byte, 64)})
	}
	if c.Poll(); c.Tail() == 0 {
		t.Error("kept though the ring fills")
	}
	if !p.AppendAll([]Record{{Kind: PreImage, Len: 1, Data: []byte("x")}, {Kind: Write}}) {
		t.Error("no room")
	}
	if p.AppendAll(make([]Record, small/headSize)) {
		t.Error("more than fits")
	}
}

func TestNextWaits(t *testing.T) {
	p, c, _ := pair(t, small, 0)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { p.Append(Record{Kind: Flush}) })
	if r, err := c.Next(t.Context()); err != nil || r.Kind != Flush {
		t.Error(r, err)
	}
}

// The consumer is woken at once for what is durable or commits, for all else now and then.
func TestUrgent(t *testing.T) {
	p, c, f := pair(t, small, 0)
	woken := func() bool {
		t.Helper()
		n, _ := unix.Read(f.Wake, make([]byte, 8))
		return n > 0
	}
	woken() // of the producer's start
	plain := Record{Kind: Write, Len: 512, Data: make([]byte, 512)}
	flush := func() { p.Append(Record{Kind: Flush}) }
	for _, x := range []struct {
		name string
		do   func()
		want bool
	}{
		{"a write", func() { p.Append(plain) }, false},
		{"a tick behind it", p.Tick, true},
		{"a tick behind nothing", p.Tick, false},
		{"a flush", flush, true},
		{"a flush of nothing", flush, false},
		{"a durable write", func() { p.Append(Record{Kind: Write, Flags: FUA}) }, true},
		{"a write to the journal", func() { p.Append(Record{Kind: Write, Flags: Logged}) }, true},
		{"the flush behind a commit", flush, false},
		{"one more write", func() { p.Append(plain) }, false},
		{"the beginning of a transaction", func() { p.Append(Record{Kind: Write, Flags: Logged | More}) }, false},
		{"the flush before its commit", flush, false},
		{"its commit", func() { p.Append(Record{Kind: Write, Flags: Logged}) }, true},
		{"the flush behind it", flush, false},
		{"a write behind it", func() { p.Append(plain) }, false},
		{"the flush of that", flush, true},
		{"another beginning", func() { p.Append(Record{Kind: Write, Flags: Logged | More}) }, false},
		{"a mark", func() { p.Append(Record{Kind: Marker}) }, true},
		{"images", func() { p.AppendAll([]Record{{Kind: PreImage, Len: 1, Data: []byte("x")}}) }, false},
		{"many writes", func() {
			for range small / 16 / 512 {
				p.Append(plain)
			}
		}, true},
		{"nothing answered", p.Answered, false},
		{"from now on, late", p.WakeLate, false},
		{"a late write to the journal", func() { p.Append(Record{Kind: Write, Flags: Logged}) }, false},
		{"its answer", p.Answered, true},
		{"its answer again", p.Answered, false},
		{"a write that nobody is woken for", func() { p.Append(plain) }, false},
		{"a flush, which is told before it is done", flush, true},
		{"a late write that is never answered", func() { p.Append(Record{Kind: Write, Flags: FUA}) }, false},
		{"a tick behind that", p.Tick, true},
	} {
		for _, ok, _ := c.Poll(); ok; _, ok, _ = c.Poll() {
		}
		c.s.word(hdrWaiting).Store(1)
		x.do()
		if got := woken(); got != x.want {
			t.Errorf("%s: woken %v", x.name, got)
		}
	}
}

// Several writers at full speed, a reader that sleeps now and then: what arrives is whole and in each writer's order,
// what does not is counted.
func TestConcurrent(t *testing.T) {
	const writers, each = 4, 5000
	p, c, _ := pair(t, 1<<20, 0)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range each {
				n := rng.IntN(2000)
				s := p.Reserve(Record{Kind: Write, Off: int64(w)<<32 | int64(i), Len: int64(n)}, n)
				if !s.OK() {
					continue
				}
				for k := range s.Data {
					s.Data[k] = byte(i)
				}
				s.Commit()
			}
		})
	}
	done := make(chan bool)
	go func() { wg.Wait(); p.Append(Record{Kind: Marker}); close(done) }()
	last := [writers]int64{-1, -1, -1, -1}
	got, lost := 0, 0
	for {
		select {
		case <-done:
			p.Tick()
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		r, err := c.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			select {
			case <-done:
				if !p.Losing() && got+lost == writers*each {
					return
				}
			default:
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		switch r.Kind {
		case Lost:
			lost += int(r.Len)
		case Write:
			w, i := r.Off>>32, r.Off&(1<<32-1)
			if i <= last[w] {
				t.Fatalf("writer %d: %d after %d", w, i, last[w])
			}
			last[w] = i
			for _, b := range r.Data {
				if b != byte(i) {
					t.Fatal("torn")
				}
			}
			got++
		}
		if lost > 0 && got+lost > writers*each {
			t.Fatal(got, lost)
		}
	}
}

func TestInterest(t *testing.T) {
	const disk = 1 << 30
	p, c, _ := pair(t, small, disk)
	mine, theirs := c.Interest(disk), p.Interest(disk)
	if !theirs.Wanted(0, 1) {
		t.Error("nothing was selected: all is wanted")
	}
	mine.Select(true)
	if theirs.Wanted(0, disk) {
		t.Error("nothing is wanted")
	}
	mine.Set(100<<12, 70<<12, true)
	mine.Set(120<<12, 1, false)
	for _, x := range []struct {
		off, n int64
		want   bool
	}{
		{0, 100 << 12, false}, {0, 100<<12 + 1, true}, {100 << 12, 1, true}, {170<<12 - 1, 1, true}, {170 << 12, disk, false},
		{120 << 12, 4096, false}, {120 << 12, 4097, true}, {-1, 5, false}, {0, 0, false}, {1 << 62, 1 << 62, false},
	} {
		if got := theirs.Wanted(x.off, x.n); got != x.want {
			t.Errorf("%#x+%#x: %v", x.off, x.n, got)
		}
	}
	mine.Set(0, 1<<62, true) // clipped
	if !theirs.Wanted(disk-1, 1) {
		t.Error("the end is not wanted")
	}
	if mine.Clear(); theirs.Wanted(0, disk) {
		t.Error("something is left")
	}
	mine.Select(false)
	if !theirs.Wanted(0, 1) {
		t.Error("all is wanted again")
	}
}

// FuzzHostile reads memory that another process filled as it liked.
func FuzzHostile(f *testing.F) {
	f.Add([]byte{}, uint64(64), uint64(0))
	seed := make([]byte, 256)
	binary.LittleEndian.PutUint32(seed, ready)
	seed[recKind] = byte(Write)
	seed[recTotal] = 128
	seed[recData], seed[recLen] = 5, 5
	f.Add(seed, uint64(128), uint64(0))
	fs, err := Create(small, 0)
	if err != nil {
		f.Fatal(err)
	}
	c, err := NewConsumer(fs)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, head, tail uint64) {
		clear(c.s.at(0, small))
		copy(c.s.at(0, small), b)
		tail &^= headSize - 1
		c.tail, c.cur, c.seen, c.kept, c.gone = tail, tail, tail, nil, 0
		c.s.word(hdrHead).Store(head)
		steps := 0
		scanned := 0
		if err := c.Scan(func(pos uint64, r Record) {
			scanned++
			if len(r.Data) > small || r.Off < 0 || r.Len < 0 {
				t.Fatalf("%+v", r)
			}
		}); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		for {
			r, ok, err := c.Poll()
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if steps++; steps > small/headSize {
				t.Fatal("more records than fit")
			}
			for _, x := range r.Data { // all of it is there
				_ = x
			}
		}
		if scanned > small/headSize {
			t.Fatal("scanned more records than fit")
		}
		// A producer that takes over bears the same.
		c.s.word(hdrTail).Store(tail)
		if p, err := NewProducer(fs); err == nil {
			p.Append(Record{Kind: Flush})
			p.Close()
		}
	})
}

func BenchmarkPass4K(b *testing.B) {
	p, c, _ := pair(b, 1<<20, 0)
	data := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		p.Append(Record{Kind: Write, Len: 4096, Data: data, Time: 1})
		c.Poll()
	}
}
