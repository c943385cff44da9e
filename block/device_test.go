package block_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vmscope/block"
)

func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestSection(t *testing.T) {
	base := block.Bytes(noise(1000, 1))
	s, err := block.NewSection(base, 100, 50)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		n    int
		want int
		err  error
	}{
		{0, 50, 50, nil}, {10, 5, 5, nil}, {40, 20, 10, io.EOF}, {50, 1, 0, io.EOF}, {50, 0, 0, nil},
		{51, 1, 0, block.ErrOutOfRange}, {-1, 1, 0, block.ErrOutOfRange},
	} {
		p := make([]byte, c.n)
		n, err := s.ReadAt(p, c.off)
		if n != c.want || !errors.Is(err, c.err) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v, want %d, %v", c.n, c.off, n, err, c.want, c.err)
		}
		if n > 0 && !bytes.Equal(p[:n], base[100+c.off:100+c.off+int64(n)]) {
			t.Errorf("ReadAt(%d bytes, %d): other bytes", c.n, c.off)
		}
	}
	for _, r := range [][2]int64{{-1, 5}, {0, -1}, {0, 1001}, {1001, 0}, {1 << 62, 1 << 62}} {
		if _, err := block.NewSection(base, r[0], r[1]); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("NewSection(%d, %d) = %v", r[0], r[1], err)
		}
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	data := noise(5000, 2)
	if err := os.WriteFile(image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := block.OpenFile(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Size() != 5000 {
		t.Errorf("size %d", f.Size())
	}
	p := make([]byte, 200)
	if n, err := f.ReadAt(p, 4900); n != 100 || err != io.EOF || !bytes.Equal(p[:n], data[4900:]) {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	// What shrinks below us is an error, not zeros.
	if err := os.Truncate(image, 4096); err != nil {
		t.Fatal(err)
	}
	if err := block.ReadFull(f, p, 4500); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read what is gone: %v", err)
	}

	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, fifo, "/dev/null", filepath.Join(dir, "none")} {
		if f, err := block.OpenFile(name); err == nil {
			f.Close()
			t.Errorf("%s was opened as a disk", name)
		}
	}
}

// Random writes on an overlay give the same bytes as on a plain copy, in memory
// and in the file.
func TestOverlay(t *testing.T) {
	const size = 9<<20 + 1234 // no whole page at the end
	for _, c := range []struct {
		name         string
		memory, file int64
	}{{"memory", 1 << 30, 0}, {"file", 64 << 10, 1 << 30}, {"both", 1 << 20, 1 << 30}} {
		t.Run(c.name, func(t *testing.T) {
			base := block.Bytes(noise(size, 3))
			before := bytes.Clone(base)
			want := bytes.Clone(base)
			o := block.NewOverlay(base, c.memory, c.file)
			defer o.Close()
			r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
			for i := range 3000 {
				n := int64(1) << r.IntN(16)
				if r.IntN(4) == 0 {
					n += r.Int64N(n)
				}
				if r.IntN(100) == 0 {
					n = r.Int64N(5 << 20)
				}
				off := r.Int64N(size - n + 1)
				if r.IntN(2) == 0 {
					off &^= 4095
				}
				if r.IntN(20) == 0 {
					off = size - n
				}
				w := block.Write{Seq: uint64(i), Op: block.OpWrite, Off: off, Len: n}
				switch r.IntN(4) {
				case 0:
					w.Op = []block.Op{block.OpZeroes, block.OpDiscard, block.OpFlush}[r.IntN(3)]
					if w.Op != block.OpFlush {
						clear(want[off : off+n])
					}
				default:
					if n > 1<<17 {
						continue
					}
					w.Data = noise(int(n), r.Uint64())
					copy(want[off:], w.Data)
				}
				if err := o.Apply(w); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, min(n+8192, size-off))
				if _, err := o.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+int64(len(got))]) {
					t.Fatalf("write %d, %v of %d at %d: reads otherwise (%v)", i, w.Op, n, off, err)
				}
			}
			got := make([]byte, size+1)
			if n, err := o.ReadAt(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], want) {
				t.Errorf("all of it: %d bytes, %v, equal %v", n, err, bytes.Equal(got[:n], want))
			}
			if !bytes.Equal(base, before) {
				t.Error("the base device was written")
			}
		})
	}
}

func TestOverlayBounds(t *testing.T) {
	const size = 1 << 40
	o := block.NewOverlay(empty(size), 1<<20, 1<<20)
	defer o.Close()
	// All of a large disk may be discarded.
	if err := o.Apply(block.Write{Op: block.OpDiscard, Len: 8 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := o.Apply(block.Write{Op: block.OpDiscard, Len: size}); !errors.Is(err, block.ErrFull) {
		t.Errorf("an index above the limit: %v", err)
	}
	o = block.NewOverlay(empty(size), 1<<20, 1<<20)
	defer o.Close()
	var err error
	page := make([]byte, 4096)
	n := int64(0)
	for ; n < 1<<20 && err == nil; n++ {
		err = o.Apply(block.Write{Op: block.OpWrite, Off: size/2 + n*4096, Len: 4096, Data: page})
	}
	if !errors.Is(err, block.ErrFull) || n < 256 {
		t.Errorf("after %d pages: %v", n, err)
	}
	for _, w := range []block.Write{
		{Op: block.OpWrite, Off: size, Len: 1, Data: page[:1]}, {Op: block.OpZeroes, Off: -1, Len: 1},
		{Op: block.OpZeroes, Off: 1, Len: 1<<63 - 1}, {Op: block.OpWrite, Len: 5, Data: page}, {Op: 77, Len: 1}, {Op: block.OpZeroes, Len: -5},
	} {
		if err := o.Apply(w); err == nil {
			t.Errorf("%v of %d at %d was applied", w.Op, w.Len, w.Off)
		}
	}
}

// empty is a large disk of zeros.
type empty int64

func (e empty) Size() int64                           { return int64(e) }
func (e empty) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func BenchmarkOverlay(b *testing.B) {
	const size = 1 << 30
	o := block.NewOverlay(empty(size), size, 0)
	defer o.Close()
	w := block.Write{Op: block.OpWrite, Len: 4096, Data: noise(4096, 1)}
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		w.Off = (w.Off + 12345*4096) % (64 << 20)
		if err := o.Apply(w); err != nil {
			b.Fatal(err)
		}
	}
}
