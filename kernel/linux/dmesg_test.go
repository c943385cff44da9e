package linux

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// ring is a log of 8 descriptors and 256 bytes.
type ring struct {
	*world
	l                      *logLayout
	f                      *logFields
	at, descs, infos, data mem.VA
	id, pos                uint64
}

const ringDescs, ringBytes = 8, 256

func newRing(t testing.TB) *ring {
	w := newWorld(t)
	l, err := logFromTypes(w.v.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	r := &ring{world: w, l: l, f: layoutOf[logFields](w)}
	r.at, r.descs, r.infos, r.data = w.alloc(256), w.alloc(ringDescs*r.l.DescSize), w.alloc(ringDescs*r.l.InfoSize), w.alloc(ringBytes)
	w.put(r.at, r.f.CountBits, 3)
	w.put(r.at, r.f.SizeBits, 8)
	w.put(r.at, r.f.Descs, uint64(r.descs))
	w.put(r.at, r.f.Infos, uint64(r.infos))
	w.put(r.at, r.f.Data, uint64(r.data))
	r.id = 1<<32 - ringDescs // of record 0
	r.pos = 1<<63 - 3*ringBytes
	w.put(r.at, r.f.Tail, r.id)
	return r
}

func (r *ring) desc(id uint64) mem.VA { return r.descs + mem.VA(id%ringDescs*r.l.DescSize) }
func (r *ring) info(id uint64) mem.VA { return r.infos + mem.VA(id%ringDescs*r.l.InfoSize) }

// add logs as the kernel does: blocks do not cross the ring's end.
func (r *ring) add(text string, state uint64) (id uint64) {
	id = r.id
	n := (uint64(len(text)) + 8 + 7) &^ 7
	begin, next := r.pos, r.pos+n
	at := begin % ringBytes
	if (next-1)/ringBytes != begin/ringBytes {
		next = (next-1)/ringBytes*ringBytes + n
		at = 0
	}
	r.put64(r.data+mem.VA(at), id)
	r.bytes(r.data+mem.VA(at)+8, text)
	r.pos = next
	r.record(id, state, begin, next, len(text))
	return id
}

func (r *ring) record(id, state, begin, next uint64, n int) {
	d, i := r.desc(id), r.info(id)
	r.put(d, r.f.State, id|state<<62)
	r.put(d, r.f.Begin, begin)
	r.put(d, r.f.Next, next)
	seq := id - (1<<32 - ringDescs)
	r.put(i, r.f.Seq, seq)
	r.put(i, r.f.Time, 1e9*seq)
	r.put(i, r.f.TextLen, uint64(n))
	r.put(i, r.f.Facility, 3)
	r.put(i, r.f.Level, 6)
	r.put(i, r.f.Caller, 1<<31|seq)
	r.bytes(r.f.Subsys.At(i), "pci\x00")
	r.bytes(r.f.Device.At(i), "+pci:0000\x00")
	r.put(r.at, r.f.Head, id)
	if id-(1<<32-ringDescs) >= ringDescs {
		r.put(r.at, r.f.Tail, id-ringDescs+1)
	}
	r.id++
}

func (r *ring) read() (texts []string, err error) {
	lr, err := r.v.logReader(r.l, r.at)
	if err != nil {
		return nil, err
	}
	err = lr.all()
	for _, rec := range lr.out {
		texts = append(texts, fmt.Sprintf("%d %s", rec.Seq, rec.Text))
	}
	return texts, err
}

func TestLog(t *testing.T) {
	r := newRing(t)
	for i := range 20 {
		r.add(strings.Repeat(string(rune('a'+i)), 17+i/4), descFinal)
	}
	lr, err := r.v.logReader(r.l, r.at)
	if err == nil {
		err = lr.all()
	}
	if err != nil || len(lr.out) != ringDescs {
		t.Fatalf("%d records, %v", len(lr.out), err)
	}
	for i, rec := range lr.out {
		seq := 12 + i
		want := strings.Repeat(string(rune('a'+seq)), 17+seq/4)
		if rec.Seq != uint64(seq) || string(rec.Text) != want || rec.Time != time.Duration(seq)*time.Second || rec.Facility != 3 || rec.Level != 6 ||
			rec.Caller != fmt.Sprintf("C%d", seq) || rec.Subsystem != "pci" || rec.Device != "+pci:0000" {
			t.Errorf("%+v, want record %d %q", rec, seq, want)
		}
	}
}

func TestLogOdd(t *testing.T) {
	r := newRing(t)
	r.add("plain", descFinal)
	r.record(r.id, descFinal, 3, 3, 0) // an empty line
	r.record(r.id, descFinal, 1, 1, 9) // its text found no room
	r.add("being written", 0)          // reserved
	r.add("given up", 3)               // reusable
	r.add("to be continued", descCommitted)
	got, err := r.read()
	if want := "[0 plain 1  2  5 to be continued]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}

	// A record whose block, or number, is another's by now.
	stolen := r.add("stolen", descFinal)
	r.put64(r.data+mem.VA((r.pos-16)%ringBytes), stolen+ringDescs)
	later := r.add("later", descFinal)
	r.put(r.info(later), r.f.Seq, later-(1<<32-ringDescs)+ringDescs)
	got, err = r.read()
	if want := "[0 plain 1  2  5 to be continued]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

// overwriting is memory in which something happens while the text is read.
type overwriting struct {
	mem.PhysReader
	text mem.PA
	then func()
}

func (o *overwriting) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if o.then != nil && pa <= o.text && o.text < pa+mem.PA(len(p)) {
		o.then()
		o.then = nil
	}
	return o.PhysReader.ReadPhys(p, pa)
}

// A record that is overwritten after its descriptor was read is not given, also
// where a cache lies between; one that becomes final is.
func TestLogOverwritten(t *testing.T) {
	for _, cached := range []bool{false, true} {
		r := newRing(t)
		r.data = (r.next + mem.PageSize) &^ (mem.PageSize - 1) // on a page of its own
		r.put(r.at, r.f.Data, uint64(r.data))
		first := r.add("first", descFinal)
		r.add("second", descCommitted)
		last := r.id - 1
		var phys mem.PhysReader = &overwriting{r.v.Phys, mem.PA(r.data), func() {
			r.put(r.desc(first), r.f.State, first+ringDescs)
			r.bytes(r.data+8, "fi\x00\x01x")
			r.put(r.desc(last), r.f.State, last|descFinal<<62)
		}}
		if cached {
			phys = mem.NewCache(phys, 16)
		}
		r.v = viewOf(r.v.Kernel, phys)
		if got, err := r.read(); err != nil || fmt.Sprint(got) != "[1 second]" {
			t.Errorf("cached %v: %q, %v", cached, got, err)
		}
	}
}

func TestLogInconsistent(t *testing.T) {
	for name, spoil := range map[string]func(*ring){
		"huge text":       func(r *ring) { r.put(r.at, r.f.SizeBits, 60) },
		"many records":    func(r *ring) { r.put(r.at, r.f.CountBits, 63) },
		"head behind":     func(r *ring) { r.put(r.at, r.f.Tail, r.id) },
		"far head":        func(r *ring) { r.put(r.at, r.f.Head, r.id+100) },
		"block backwards": func(r *ring) { r.put(r.desc(r.id-1), r.f.Next, 8) },
		"block unaligned": func(r *ring) { r.put(r.desc(r.id-1), r.f.Next, r.pos+1) },
		"wrong number":    func(r *ring) { r.put(r.info(r.id-1), r.f.Seq, 77) },
		"shared text": func(r *ring) {
			begin := uint64(1 << 20)
			for i := range uint64(3) {
				r.put(r.desc(r.id-1-i), r.f.Begin, begin)
				r.put(r.desc(r.id-1-i), r.f.Next, begin+ringBytes-8)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.add("first", descFinal)
			for range 4 {
				r.add("another", descFinal)
			}
			spoil(r)
			if got, err := r.read(); !errors.Is(err, mem.ErrInconsistent) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// FuzzLog reads a log whose every answer is the fuzzer's.
func FuzzLog(f *testing.F) {
	r := newRing(f)
	for i := range 9 {
		r.add(strings.Repeat("x", 3*i), descFinal)
	}
	f.Add(r.answers(func(v *View) {
		lr, err := v.logReader(r.l, r.at)
		if err == nil {
			err = lr.all()
		}
		if err != nil || len(lr.out) != ringDescs {
			f.Fatal(err)
		}
	}))
	k := r.v.Kernel
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &memtest.Script{Answers: in}
		lr, err := viewOf(k, s).logReader(r.l, 0x1000)
		if err != nil {
			return
		}
		lr.all()
		total := 0
		for i, rec := range lr.out {
			total += len(rec.Text)
			if i > 0 && uint32(rec.Seq-lr.out[i-1].Seq) == 0 {
				t.Errorf("record %d twice", rec.Seq)
			}
		}
		if total > len(in) || uint64(total) > lr.size || s.Reads > len(in)+4 {
			t.Errorf("%d bytes of text in %d reads of %d bytes, a ring of %d", total, s.Reads, len(in), lr.size)
		}
	})
}
