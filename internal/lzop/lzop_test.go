package lzop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"

	"vmscope/internal/guestlab"
)

// text has blocks of each kind: some that pack well, some that do not, an odd end.
func text() []byte {
	b := bytes.Repeat([]byte("kernel "), 100_000)
	for r := rand.NewPCG(1, 2); len(b) < 2<<20+123; {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

func pack(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "lzop", append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestReal reads what lzop packs, with all that its files may hold, at any place.
func TestReal(t *testing.T) {
	guestlab.Need(t, "lzop")
	want := text()
	for _, args := range [][]string{{"-9"}, {"-1", "--crc32"}, {"-F"}, {"-5", "-P"}} {
		packed := pack(t, want, args...)
		f, err := Open(bytes.NewReader(packed), int64(len(packed)))
		if err != nil || f.Size() != int64(len(want)) {
			t.Fatalf("%v: %v", args, err)
		}
		if got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes of %d, %v", args, len(got), len(want), err)
		}
		r := rand.New(rand.NewPCG(3, 4))
		for range 200 {
			off := r.Int64N(f.Size())
			p := make([]byte, r.IntN(600<<10))
			n, err := f.ReadAt(p, off)
			if end := min(int64(len(p)), f.Size()-off); int64(n) != end || (err != nil) != (n < len(p)) || !bytes.Equal(p[:n], want[off:off+end]) {
				t.Fatalf("%v: %d of %d bytes at %d: %v", args, n, len(p), off, err)
			}
		}
		for n := range 64 {
			cut := n
			if n > 40 {
				cut = len(packed) * n / 64
			}
			if _, err := Open(bytes.NewReader(packed[:cut]), int64(cut)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v: cut at %d of %d: %v", args, cut, len(packed), err)
			}
		}
	}
	packed := pack(t, want)
	packed[len(packed)-1000] ^= 1
	f, err := Open(bytes.NewReader(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size())); err == nil {
		t.Error("a broken block passes its check sum")
	}
}

func FuzzFile(f *testing.F) {
	head := Magic + "\x10\x40\x20\xa0\x09\x40\x03\x09\x03\x00\x00\x0d" + "\x00\x00\x81\xa4" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x01x" + "\x00\x00\x00\x00"
	f.Add([]byte(head + "\x00\x00\x00\x08\x00\x00\x00\x08\x05\x24\x01\xe0abcdefgh\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Open(bytes.NewReader(b), int64(len(b)))
		if (file == nil) == (err == nil) {
			t.Fatal(file, err)
		}
		if file == nil {
			return
		}
		n, err := io.Copy(io.Discard, io.NewSectionReader(file, 0, file.Size()))
		if err == nil && n != file.Size() {
			t.Errorf("%d bytes of %d", n, file.Size())
		}
	})
}
