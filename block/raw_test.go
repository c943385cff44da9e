package block

import (
	"bytes"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newRaw(t *testing.T, size int64) *Raw {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRaw(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// pieces cuts p at random places, some of them of no length.
func pieces(p []byte, n int) (v [][]byte) {
	for range n {
		m := mrand.IntN(len(p)/n + 1)
		v = append(v, p[:m])
		p = p[m:]
	}
	return append(v, p)
}

func TestRawVectors(t *testing.T) {
	const size = 1 << 20
	r := newRaw(t, size)
	want, got := make([]byte, size), make([]byte, size)
	for _, n := range []int{0, 1, 7, 1023, 1024, 3000} { // beyond IOV_MAX
		rand.Read(want)
		if m, err := r.WriteVecAt(pieces(want, n), 0); m != size || err != nil {
			t.Fatalf("%d pieces: wrote %d, %v", n, m, err)
		}
		clear(got)
		if m, err := r.ReadVecAt(pieces(got, n), 0); m != size || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d pieces: read %d, %v", n, m, err)
		}
		clear(got)
		if m, err := r.ReadVecNow(pieces(got, n), 0); err != nil || !bytes.Equal(got[:m], want[:m]) {
			t.Errorf("%d pieces: read %d at once, %v", n, m, err)
		}
		off := mrand.Int64N(size)
		if m, err := r.ReadVecAt(pieces(got[off:], n), off); int64(m) != size-off || err != nil || !bytes.Equal(got[off:], want[off:]) {
			t.Errorf("%d pieces from %d on: read %d, %v", n, off, m, err)
		}
	}
}

func TestRawBounds(t *testing.T) {
	const size = 8192
	r := newRaw(t, size)
	for _, x := range []struct{ off, n int64 }{{-1, 1}, {size, 1}, {size - 1, 2}, {1 << 62, 1}, {0, size + 1}} {
		b := make([]byte, x.n)
		_, err1 := r.WriteAt(b, x.off)
		_, err2 := r.WriteVecAt([][]byte{b}, x.off)
		_, err3 := r.ReadVecAt([][]byte{b}, x.off)
		for i, err := range []error{err1, err2, err3, r.Discard(x.off, x.n), r.WriteZeroes(x.off, x.n, true), r.WriteZeroes(x.off, x.n, false)} {
			if !errors.Is(err, ErrOutOfRange) {
				t.Errorf("call %d at %d, %d bytes: %v", i, x.off, x.n, err)
			}
		}
	}
	if st, err := os.Stat(r.Name()); err != nil || st.Size() != size {
		t.Errorf("the image has %d bytes, %v", st.Size(), err)
	}
}

func TestRawZeroes(t *testing.T) {
	const size = 1 << 20
	r := newRaw(t, size)
	want := make([]byte, size)
	for i, how := range []func(off, n int64) error{
		func(off, n int64) error { return r.WriteZeroes(off, n, true) },
		func(off, n int64) error { return r.WriteZeroes(off, n, false) },
		r.Discard, // the host's file systems read it as zeroes
		func(off, n int64) error { r.noZero.Store(true); return r.WriteZeroes(off, n, false) },
		func(off, n int64) error { r.noPunch.Store(true); return r.WriteZeroes(off, n, true) },
	} {
		rand.Read(want)
		if _, err := r.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		const off, n = 1000, 600_000
		if err := how(off, n); err != nil {
			t.Fatal(err)
		}
		clear(want[off : off+n])
		if got, err := os.ReadFile(r.Name()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("way %d: not the zeroes that were asked for, %v", i, err)
		}
	}
	if err := r.Discard(0, 4096); err != nil {
		t.Errorf("a discard that cannot be: %v", err)
	}
}

// A flush that failed once goes on to fail.
func TestRawFlush(t *testing.T) {
	r := newRaw(t, 4096)
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	good := r.f
	r.f = os.NewFile(uintptr(p[0]), "pipe") // cannot be synchronised
	if err := r.Flush(); err == nil {
		t.Error("a pipe was flushed")
	}
	r.f.Close()
	r.f = good
	if err := r.Flush(); err == nil {
		t.Error("a flush went well behind one that failed")
	}
}

func TestOpenRaw(t *testing.T) {
	for _, name := range []string{"/dev/null", t.TempDir(), "/nonexistent"} {
		if r, err := OpenRaw(name); err == nil {
			r.Close()
			t.Errorf("%s is a disk", name)
		}
	}
}
