package mem_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"vmscope/mem"
)

// recordedRAM is 64 pages at 1 MiB of which page i is filled with i.
func recordedRAM(t testing.TB) *mem.RAM {
	data := make([]byte, 64*mem.PageSize)
	for i := range data {
		data[i] = byte(i / mem.PageSize)
	}
	ram, err := mem.NewRAM(mem.Segment{PA: 1 << 20, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return ram
}

func TestRecordAndReplay(t *testing.T) {
	ram := recordedRAM(t)
	rec := mem.NewRecorder(ram)
	type read struct {
		pa   mem.PA
		n    int
		want []byte
	}
	var reads []read
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		r := read{pa: 1<<20 + mem.PA(rnd.Uint64N(60*mem.PageSize)), n: 1 + rnd.IntN(5000)}
		r.want = make([]byte, r.n)
		if n, err := rec.ReadPhys(r.want, r.pa); n != r.n || err != nil {
			t.Fatal(n, err)
		}
		reads = append(reads, r)
	}
	var file bytes.Buffer
	if err := rec.Save(&file); err != nil {
		t.Fatal(err)
	}
	p, err := mem.Load(&file)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reads {
		got := make([]byte, r.n)
		if n, err := p.ReadPhys(got, r.pa); n != r.n || err != nil || !bytes.Equal(got, r.want) {
			t.Fatalf("replay of %d bytes at %#x: %d, %v", r.n, uint64(r.pa), n, err)
		}
	}
	if r := p.Ranges(); len(r) != 1 || r[0] != ram.Ranges()[0] {
		t.Errorf("ranges %v, recorded of %v", r, ram.Ranges())
	}
	x, _ := p.Extents()
	var pages uint64
	for _, e := range x {
		pages += e.Size / mem.PageSize
	}
	if pages != uint64(rec.Pages()) {
		t.Errorf("%d pages replayed, %d recorded", pages, rec.Pages())
	}
	if mem.RAMOf(p) == nil {
		t.Error("a replay is not mapped")
	}
}

func TestReplayHasOnlyRecordedPages(t *testing.T) {
	rec := mem.NewRecorder(recordedRAM(t))
	var b [1]byte
	if _, err := rec.ReadPhys(b[:], 1<<20+5*mem.PageSize); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := rec.Save(&file); err != nil {
		t.Fatal(err)
	}
	p, err := mem.Load(&file)
	if err != nil {
		t.Fatal(err)
	}
	two := make([]byte, 2*mem.PageSize)
	n, err := p.ReadPhys(two, 1<<20+5*mem.PageSize)
	var f *mem.FaultError
	if n != mem.PageSize || !errors.As(err, &f) || f.Addr != 1<<20+6*mem.PageSize || !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("read across the recorded page: %d, %v", n, err)
	}
}

// TestRecorderPassesErrors: what the source cannot give fails as the source
// fails.
func TestRecorderPassesErrors(t *testing.T) {
	rec := mem.NewRecorder(recordedRAM(t))
	two := make([]byte, 2*mem.PageSize)
	n, err := rec.ReadPhys(two, 1<<20+63*mem.PageSize)
	var f *mem.FaultError
	if n != mem.PageSize || !errors.As(err, &f) || f.Addr != 1<<20+64*mem.PageSize {
		t.Errorf("read past the end: %d, %v", n, err)
	}
}

func FuzzLoad(f *testing.F) {
	rec := mem.NewRecorder(recordedRAM(f))
	var b [1]byte
	rec.ReadPhys(b[:], 1<<20)
	rec.ReadPhys(b[:], 1<<20+9*mem.PageSize)
	var file bytes.Buffer
	if err := rec.Save(&file); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte("vmscope pages 1\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := mem.Load(bytes.NewReader(in))
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if p == nil {
			return
		}
		x, _ := p.Extents()
		for _, e := range x {
			if _, err := p.ReadPhys(make([]byte, 1), e.End()-1); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestRecorderRefreshes: a page is what it was until all are read anew.
func TestRecorderRefreshes(t *testing.T) {
	data := make([]byte, 8*mem.PageSize)
	ram, err := mem.NewRAM(mem.Segment{PA: 1 << 20, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	rec := mem.NewRecorder(ram)
	at := func(page int) byte {
		t.Helper()
		var b [1]byte
		if _, err := rec.ReadPhys(b[:], 1<<20+mem.PA(page)*mem.PageSize); err != nil {
			t.Fatal(err)
		}
		return b[0]
	}
	at(1)
	at(2)
	at(5)
	data[2*mem.PageSize], data[3*mem.PageSize] = 7, 9
	if at(2) != 0 || at(3) != 9 {
		t.Error("a page changed, or one that nobody had read did not")
	}
	if err := rec.Refresh(); err != nil || at(2) != 7 || at(1) != 0 {
		t.Errorf("%v, page 2 begins with %d", err, at(2))
	}
	kept, err := rec.Kept()
	if err != nil || len(kept) != 2 || kept[0] != (mem.Range{Start: 1<<20 + mem.PageSize, Size: 3 * mem.PageSize}) || kept[1] != (mem.Range{Start: 1<<20 + 5*mem.PageSize, Size: mem.PageSize}) {
		t.Errorf("%#x, %v", kept, err)
	}
}
