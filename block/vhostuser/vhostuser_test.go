package vhostuser

import (
	"bytes"
	"crypto/rand"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
)

// recorder is an Observer that keeps what it sees.
type recorder struct {
	mu        sync.Mutex
	want      func(off int64) bool
	writes    []block.Write
	reserved  int
	abandoned int
}

func (r *recorder) Reserve(off int64, n int) []byte {
	r.reserved++
	if r.want != nil && !r.want(off) {
		return nil
	}
	return make([]byte, n)
}

func (r *recorder) Publish(w *block.Write) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes = append(r.writes, *w)
}

func (r *recorder) Abandon(int64, int64, []byte) { r.abandoned++ }

func (r *recorder) seen() []block.Write {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes)
}

func fill(t testing.TB, b []byte) []byte {
	t.Helper()
	rand.Read(b)
	return b
}

func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name     string
		features uint64
	}{{"plain", someFeatures}, {"events", someFeatures | featEventIdx}} {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{want: func(off int64) bool { return off < 1<<20 }}
			x, q := newFixture(t, Options{Observer: rec, Serial: "serial-0123456789"}, tt.features)
			image, err := os.ReadFile(x.image)
			if err != nil {
				t.Fatal(err)
			}
			ram := x.mem.data

			// A read into pieces, of which one lies across two regions.
			status, n := q.do(typeIn, 8, piece{dataAt - 512, 1024, true}, piece{place(lowSize), 512, true})
			if status != statusOK || n != 1537 {
				t.Errorf("read: status %d, %d bytes", status, n)
			}
			got := slices.Concat(ram[dataAt-512:dataAt+512], ram[lowSize:lowSize+512])
			if !bytes.Equal(got, image[4096:4096+1536]) {
				t.Error("read something else")
			}

			// A write whose content is wanted, and one whose is not.
			fill(t, ram[lowSize:lowSize+8192])
			for _, sector := range []uint64{16, 1 << 12} {
				status, n = q.do(typeOut, sector, piece{place(lowSize), 4096, false}, piece{place(lowSize + 4096), 4096, false})
				if status != statusOK || n != 1 {
					t.Errorf("write: status %d, %d bytes", status, n)
				}
				copy(image[sector*512:], ram[lowSize:lowSize+8192])
			}
			// Something large, in several pieces for the observer.
			fill(t, ram[lowSize:])
			if status, _ = q.do(typeOut, 0, piece{place(lowSize), 1<<20 + 512, false}); status != statusOK {
				t.Errorf("large write: status %d", status)
			}
			copy(image, ram[lowSize:lowSize+1<<20+512])
			if status, _ = q.do(typeFlush, 0); status != statusOK {
				t.Errorf("flush: status %d", status)
			}

			// Discard, zeroes.
			seg := dataAt + 0x1000
			le.PutUint64(ram[seg:], 64)
			le.PutUint32(ram[seg+8:], 8)
			le.PutUint32(ram[seg+12:], zeroesUnmap)
			if status, _ = q.do(typeWriteZeroes, 0, piece{uint64(seg), 16, false}); status != statusOK {
				t.Errorf("zeroes: status %d", status)
			}
			clear(image[64*512 : 72*512])
			le.PutUint64(ram[seg:], 128)
			le.PutUint32(ram[seg+12:], 0)
			if status, _ = q.do(typeDiscard, 0, piece{uint64(seg), 16, false}); status != statusOK {
				t.Errorf("discard: status %d", status)
			}
			clear(image[128*512 : 136*512]) // our file system reads holes as zeroes

			if status, n = q.do(typeGetID, 0, piece{dataAt, idLength, true}); status != statusOK || n != idLength+1 {
				t.Errorf("id: status %d, %d bytes", status, n)
			}
			if got := string(bytes.TrimRight(ram[dataAt:dataAt+idLength], "\x00")); got != "serial-0123456789" {
				t.Errorf("id %q", got)
			}

			disk, err := os.ReadFile(x.image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(disk, image) {
				t.Error("the disk holds something else")
			}
			type short struct {
				op   block.Op
				off  int64
				len  int64
				data bool
			}
			var seen []short
			for _, w := range rec.seen() {
				seen = append(seen, short{w.Op, w.Off, w.Len, w.Data != nil})
				if w.Op == block.OpWrite && w.Data != nil && w.Off == 0 && !bytes.Equal(w.Data[:512], image[:512]) {
					t.Error("the observer saw something else")
				}
			}
			want := []short{
				{block.OpWrite, 8192, 8192, true}, {block.OpWrite, 2 << 20, 8192, false},
				{block.OpWrite, 0, 1 << 20, true}, {block.OpWrite, 1 << 20, 512, false}, {block.OpFlush, 0, 0, false},
				{block.OpZeroes, 64 * 512, 4096, false}, {block.OpDiscard, 128 * 512, 4096, false},
			}
			if !slices.Equal(seen, want) {
				t.Errorf("seen %v\nwant %v", seen, want)
			}
			if errs := x.errs.all(); len(errs) > 0 {
				t.Error(errs)
			}
			if base := q.stop(); base != q.avail {
				t.Errorf("stopped at %d, want %d", base, q.avail)
			}
		})
	}
}

// Requests that make no sense get an error where they say where to.
func TestMalformed(t *testing.T) {
	rec := &recorder{}
	x, q := newFixture(t, Options{Observer: rec}, someFeatures)
	ram := x.mem.data
	before, _ := os.ReadFile(x.image)
	seg := dataAt + 0x1000
	segment := func(sector uint64, n, flags uint32) piece {
		le.PutUint64(ram[seg:], sector)
		le.PutUint32(ram[seg+8:], n)
		le.PutUint32(ram[seg+12:], flags)
		return piece{uint64(seg), 16, false}
	}
	const last = diskSize / 512
	data := func(n int, write bool) piece { return piece{dataAt, n, write} }
	tests := []struct {
		name   string
		kind   uint32
		sector uint64
		piece  piece
		want   byte
	}{
		{"unknown", 99, 0, data(512, false), statusUnsupported},
		{"scsi", 2, 0, data(512, true), statusUnsupported},
		{"read behind the end", typeIn, last, data(512, true), statusIOErr},
		{"read across the end", typeIn, last - 1, data(1024, true), statusIOErr},
		{"read far away", typeIn, 1<<64 - 1, data(512, true), statusIOErr},
		{"sector overflows", typeOut, 1 << 55, data(512, false), statusIOErr},
		{"write across the end", typeOut, last - 1, data(1024, false), statusIOErr},
		{"not whole sectors", typeIn, 0, data(511, true), statusIOErr},
		{"half a sector", typeOut, 0, data(256, false), statusIOErr},
		{"nowhere", typeIn, 0, piece{1 << 40, 512, true}, statusIOErr},
		{"segment with flags", typeDiscard, 0, segment(0, 8, 1), statusUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x.frontEnd.t = t
			if status, _ := q.do(tt.kind, tt.sector, tt.piece); status != tt.want {
				t.Errorf("status %d, want %d", status, tt.want)
			}
		})
	}
	x.frontEnd.t = t
	for _, s := range []struct {
		sector   uint64
		n, flags uint32
	}{{last, 1, 0}, {last - 1, 2, 0}, {1 << 63, 1, 0}, {0, 1<<32 - 1, 0}, {0, 1, 2}} {
		for _, kind := range []uint32{typeDiscard, typeWriteZeroes} {
			if status, _ := q.do(kind, 0, segment(s.sector, s.n, s.flags)); status == statusOK {
				t.Errorf("%d of %v went well", kind, s)
			}
		}
	}
	// The status is where there is no memory.
	h, s := q.header(0, typeIn, 0)
	q.chain(q.descs(), 0, h, piece{dataAt, 512, true}, piece{1 << 40, 1, true})
	q.offer(0)
	q.ringBell()
	if _, n, err := q.wait(10 * time.Second); err != nil || n != 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	// No status byte at all, a header that is cut short, no header.
	h, s = q.header(0, typeFlush, 0)
	for _, chain := range [][]piece{{h}, {{h.addr, 7, false}, s}, {s}, {{h.addr, 16, true}}} {
		q.chain(q.descs(), 0, chain...)
		q.offer(0)
		q.ringBell()
		if _, _, err := q.wait(10 * time.Second); err != nil {
			t.Errorf("%v: %v", chain, err)
		}
	}
	if after, _ := os.ReadFile(x.image); !bytes.Equal(before, after) {
		t.Error("the disk was changed")
	}
	if status, _ := q.do(typeOut, 0, data(512, false)); status != statusOK {
		t.Error("a sound request failed after them")
	}
	if n := len(rec.seen()); n != 1 {
		t.Errorf("%d writes seen", n)
	}
}

// A ring that makes no sense is given up, and works again when the guest has reset it.
func TestBrokenRing(t *testing.T) {
	tests := []struct {
		name string
		make func(q *testQueue)
	}{
		{"loop", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 16, descNext, 1)
			putDesc(q.descs(), 1, dataAt, 16, descNext, 0)
			q.offer(0)
		}},
		{"loop of zero bytes", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 0, descNext, 0)
			q.offer(0)
		}},
		{"next outside", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 16, descNext, ringSize)
			q.offer(0)
		}},
		{"head outside", func(q *testQueue) { q.offer(ringSize) }},
		{"jump", func(q *testQueue) { q.avail += ringSize; q.offer(0) }},
		{"read behind write", func(q *testQueue) {
			q.chain(q.descs(), 0, piece{dataAt, 1, true}, piece{dataAt, 16, false})
			q.offer(0)
		}},
		{"indirect in indirect", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 16, descIndirect, 0)
			putDesc(q.fe.mem.data[dataAt:], 0, dataAt, 16, descIndirect, 0)
			q.offer(0)
		}},
		{"indirect with next", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 16, descIndirect|descNext, 1)
			q.offer(0)
		}},
		{"indirect nowhere", func(q *testQueue) {
			putDesc(q.descs(), 0, 1<<50, 16, descIndirect, 0)
			q.offer(0)
		}},
		{"indirect of no size", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 0, descIndirect, 0)
			q.offer(0)
		}},
		{"indirect too long", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, (maxChain+1)*descSize, descIndirect, 0)
			q.offer(0)
		}},
		{"indirect loop", func(q *testQueue) {
			putDesc(q.descs(), 0, dataAt, 32, descIndirect, 0)
			putDesc(q.fe.mem.data[dataAt:], 0, dataAt, 16, descNext, 1)
			putDesc(q.fe.mem.data[dataAt:], 1, dataAt, 16, descNext, 0)
			q.offer(0)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x, q := newFixture(t, Options{}, someFeatures)
			errfd, _ := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			defer unix.Close(errfd)
			x.must(setVringErr, u64(0), errfd)
			tt.make(q)
			q.ringBell()
			var b [8]byte
			for range 1000 {
				if n, _ := unix.Read(errfd, b[:]); n == 8 {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			if b == [8]byte{} {
				t.Fatal("the front end was not told")
			}
			if errs := x.errs.all(); len(errs) != 1 {
				t.Errorf("reported %v", errs)
			}
			if r := q.ring(); r.usedIdx() != 0 {
				t.Error("something was given back")
			}
			// The guest resets its device: QEMU stops the queue and takes new memory for what is in flight.
			q.stop()
			x.inflight(4)
			clear(x.mem.data[q.at : q.at+0x4000])
			q.avail, q.used = 0, 0
			q.start(0)
			if status, _ := q.do(typeIn, 0, piece{dataAt, 512, true}); status != statusOK {
				t.Errorf("after a reset: status %d", status)
			}
		})
	}
}

func TestIndirect(t *testing.T) {
	x, q := newFixture(t, Options{}, someFeatures)
	h, s := q.header(0, typeIn, 0)
	pieces := []piece{h}
	for i := range 100 { // more than the ring has descriptors; the table crosses two regions
		pieces = append(pieces, piece{place(lowSize + i*512), 512, true})
	}
	table := dataAt - 40
	q.chain(x.mem.data[table:], 0, append(pieces, s)...)
	putDesc(q.descs(), 3, uint64(table), (len(pieces)+1)*descSize, descIndirect, 0)
	q.offer(3)
	q.ringBell()
	head, n, err := q.wait(10 * time.Second)
	if err != nil || head != 3 || n != 51201 || q.status(0) != statusOK {
		t.Fatalf("head %d, %d bytes, status %d, %v", head, n, q.status(0), err)
	}
	image, _ := os.ReadFile(x.image)
	if !bytes.Equal(x.mem.data[lowSize:lowSize+51200], image[:51200]) {
		t.Error("read something else")
	}
}
