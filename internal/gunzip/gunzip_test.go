package gunzip

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// sample has what dumps have: text, pages of zeros, noise, runs.
func sample(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, 0, size+1<<17)
	for len(out) < size {
		n := r.IntN(1 << 17)
		switch r.IntN(5) {
		case 0:
			out = append(out, make([]byte, 4*n)...)
		case 1:
			for range n / 8 {
				out = append(out, byte(r.Uint32()), byte(r.Uint32()), 0, 0, 0xff, 0xff, 0x88, 0x80)
			}
		case 2:
			for range n {
				out = append(out, byte(r.Uint32()))
			}
		case 3:
			for range n / 10 {
				out = append(out, strings.Repeat("abcdefgh ", 1+r.IntN(3))[r.IntN(9):]...)
			}
		case 4:
			from := r.IntN(len(out) + 1)
			out = append(out, out[from:min(from+n, len(out))]...)
		}
	}
	return out[:size]
}

func packed(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range parts {
		z, err := gzip.NewWriterLevel(&out, level)
		if err != nil {
			t.Fatal(err)
		}
		z.Name, z.Comment, z.Extra = "vmcore", "a dump", []byte("XX\x02\x00..")
		if _, err := z.Write(p); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func open(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)), func(int64) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// same reads all of f in pieces that differ, and at many places by several readers at once.
func same(t *testing.T, f *File, want []byte) {
	t.Helper()
	if f.Size() != int64(len(want)) {
		t.Fatalf("%d bytes, not %d", f.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()+10))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("in turn: %d bytes, %v", len(got), err)
	}
	var all sync.WaitGroup
	for reader := range 3 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(reader)))
			for range 200 {
				off := r.IntN(len(want) + 1)
				p := make([]byte, r.IntN(3*4096))
				n, err := f.ReadAt(p, int64(off))
				if w := want[off:min(off+len(p), len(want))]; !bytes.Equal(p[:n], w) || (err == nil) != (n == len(p)) {
					t.Errorf("at %d: %d bytes of %d, %v", off, n, len(p), err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestFile(t *testing.T) {
	want := sample(20 << 20)
	for _, level := range []int{flate.BestSpeed, flate.DefaultCompression, flate.HuffmanOnly, flate.NoCompression} {
		same(t, open(t, packed(t, level, want)), want)
	}
	parts := packed(t, 6, want[:7<<20], nil, want[7<<20:7<<20+100], want[7<<20+100:])
	same(t, open(t, append(parts, make([]byte, 1000)...)), want) // with zeros at its end
	same(t, open(t, packed(t, 6, nil)), nil)
	if _, err := Open(bytes.NewReader(append(parts, "text that was not packed"...)), int64(len(parts)+24), func(int64) error { return nil }); !errors.Is(err, errNoMember) {
		t.Error(err)
	}
}

// TestThin has the places of a file thinned out as they are of larger ones.
func TestThin(t *testing.T) {
	want := sample(20 << 20)
	f := open(t, packed(t, 6, want))
	for len(f.points) > 2 {
		f.points, f.cursors = f.points[:len(f.points)-1], nil // but for the end
		f.thin()
		f.points = append(f.points, point{at: f.size})
		same(t, f, want)
	}
}

func TestBroken(t *testing.T) {
	b := packed(t, 6, sample(3<<20))
	ctx := errors.New("enough")
	if _, err := Open(bytes.NewReader(b), int64(len(b)), func(done int64) error {
		if done <= 0 || done > int64(len(b)) {
			t.Errorf("%d bytes of %d were read", done, len(b))
		}
		return ctx
	}); !errors.Is(err, ctx) {
		t.Error(err)
	}
	for n := 0; n < len(b); n += 1 + len(b)/97 {
		if _, err := Open(bytes.NewReader(b[:n]), int64(n), func(int64) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
		bad := bytes.Clone(b)
		bad[n] ^= 0x10
		_, err := Open(bytes.NewReader(bad), int64(len(b)), func(int64) error { return nil })
		if _, werr := gunzip(bad); (err == nil) != (werr == nil) {
			t.Errorf("byte %d changed: %v, Go's reader: %v", n, err, werr)
		}
	}
}

// gunzip is Go's own reader.
func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// FuzzOpen compares with Go's own reader.
func FuzzOpen(f *testing.F) {
	small := sample(100 << 10)
	for _, level := range []int{flate.BestSpeed, flate.DefaultCompression, flate.HuffmanOnly, flate.NoCompression} {
		f.Add(packed(f, level, small[:4000], small[4000:9000]))
	}
	f.Add(packed(f, 9, make([]byte, 3<<20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := Open(bytes.NewReader(b), int64(len(b)), func(int64) error { return nil })
		want, werr := gunzip(b)
		for err == nil && werr != nil && b[len(b)-1] == 0 { // zeros at the end are nothing to Go
			b = b[:len(b)-1]
			want, werr = gunzip(b)
		}
		if (err == nil) != (werr == nil) {
			t.Fatalf("%v, where Go says %v", err, werr)
		}
		if err != nil {
			return
		}
		got, err := io.ReadAll(io.NewSectionReader(z, 0, z.Size()))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, not %d: %v", len(got), len(want), err)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	raw := sample(64 << 20)
	z := packed(b, 6, raw)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		open(b, z)
	}
}

func BenchmarkGo(b *testing.B) {
	raw := sample(64 << 20)
	z := packed(b, 6, raw)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		r, err := gzip.NewReader(bytes.NewReader(z))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
