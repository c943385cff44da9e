package logwrites_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/mem"
)

const diskSize = 4 << 20

// record logs random writes and gives the disk's content after them.
func record(t *testing.T, w *logwrites.Writer, sector int64, seed uint64) (want []byte, writes []block.Write) {
	t.Helper()
	want = make([]byte, diskSize)
	r := rand.New(rand.NewPCG(seed, 5))
	for i := range 300 {
		n := (1 + r.Int64N(20)) * sector
		off := r.Int64N((diskSize-n)/sector) * sector
		b := block.Write{Seq: uint64(i + 1), Op: block.OpWrite, Off: off, Len: n, FUA: r.IntN(5) == 0}
		switch r.IntN(8) {
		case 0:
			b = block.Write{Seq: b.Seq, Op: block.OpFlush}
		case 1:
			b.Op, b.FUA = block.OpZeroes, false
			clear(want[off : off+n])
		case 2:
			b.Op, b.FUA = block.OpDiscard, false
			clear(want[off : off+n])
		default:
			b.Data = bytes.Repeat([]byte{byte(1 + r.IntN(255))}, int(n))
			copy(want[off:], b.Data)
		}
		if err := w.Add(b); err != nil {
			t.Fatal(err)
		}
		writes = append(writes, b)
	}
	return want, writes
}

func TestRoundTrip(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		path := filepath.Join(t.TempDir(), "log")
		w, err := logwrites.Create(path, sector)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Mark("begin"); err != nil {
			t.Fatal(err)
		}
		want, writes := record(t, w, int64(sector), 1)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var marks []string
		base := block.Bytes(make([]byte, diskSize))
		r, err := logwrites.Open(path, base, logwrites.Options{Mark: func(n string) { marks = append(marks, n) }})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		i := 0
		for got, err := range r.Writes(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			if i >= len(writes) {
				t.Fatal("more writes than were made")
			}
			b := writes[i]
			if got.Seq != b.Seq || got.Op != b.Op || got.Off != b.Off || got.Len != b.Len || got.FUA != b.FUA || !bytes.Equal(got.Data, b.Data) {
				t.Fatalf("write %d is %+v, want %+v", i, got, b)
			}
			i++
		}
		got := make([]byte, diskSize)
		if err := block.ReadFull(r.Device(), got, 0); err != nil || !bytes.Equal(got, want) || i != len(writes) {
			t.Errorf("sector %d: %d writes of %d, %v, the disk is equal: %v", sector, i, len(writes), err, bytes.Equal(got, want))
		}
		if !slices.Equal(marks, []string{"begin"}) {
			t.Errorf("marks %q", marks)
		}
	}
}

// A log without holes is the same log.
func TestWithoutHoles(t *testing.T) {
	dir := t.TempDir()
	a, err := logwrites.Create(filepath.Join(dir, "a"), 512)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := logwrites.NewWriter(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	record(t, a, 512, 2)
	record(t, b, 512, 2)
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	x, _ := os.ReadFile(filepath.Join(dir, "a"))
	y, _ := os.ReadFile(filepath.Join(dir, "b"))
	if !bytes.Equal(x, y) || len(x) == 0 {
		t.Errorf("%d and %d bytes, not equal", len(x), len(y))
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // as QEMU begins
		t.Fatal(err)
	}
	if _, err := logwrites.Open(path, block.Bytes(make([]byte, diskSize)), logwrites.Options{}); !errors.Is(err, logwrites.ErrNotLog) {
		t.Errorf("an empty log: %v", err)
	}
	r, err := logwrites.Open(path, block.Bytes(make([]byte, diskSize)), logwrites.Options{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan []byte)
	go func() {
		w, err := logwrites.NewWriter(f, 512)
		if err != nil {
			t.Error(err)
			cancel()
		}
		want, _ := record(t, w, 512, 3)
		if err := errors.Join(w.Mark("end"), w.Close()); err != nil {
			t.Error(err)
			cancel()
		}
		done <- want
	}()
	n := 0
	var last error
	for w, err := range r.Writes(ctx) {
		if err != nil {
			last = err
			break
		}
		if w.Time.IsZero() || time.Since(w.Time) > time.Hour {
			t.Fatalf("time %v", w.Time)
		}
		if n++; n == 300 {
			cancel()
		}
	}
	want := <-done
	got := make([]byte, diskSize)
	if err := block.ReadFull(r.Device(), got, 0); err != nil || !bytes.Equal(got, want) || !errors.Is(last, context.Canceled) {
		t.Errorf("%d writes, %v, %v, equal %v", n, last, err, bytes.Equal(got, want))
	}
}

// logOf is a log with one entry, as its fields say.
func logOf(count uint64, sectorSize uint32, entry ...uint64) []byte {
	b := make([]byte, 4096)
	le := binary.LittleEndian
	le.PutUint64(b, 0x6a736677736872)
	le.PutUint64(b[8:], 1)
	le.PutUint64(b[16:], count)
	le.PutUint32(b[24:], sectorSize)
	for i, v := range entry {
		le.PutUint64(b[512+8*i:], v)
	}
	return b
}

func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		log  []byte
		want error
	}{
		{"no log", []byte("QFI\xfb"), logwrites.ErrNotLog},
		{"sector of 3 bytes", logOf(0, 3), mem.ErrInconsistent},
		{"sector of 256 bytes", logOf(0, 256), mem.ErrInconsistent},
		{"sector of 2 GiB", logOf(0, 1<<31), mem.ErrInconsistent},
		{"more than there is", logOf(1<<60, 4096, 0), io.ErrUnexpectedEOF},
		{"unknown flag", logOf(1, 512, 0, 0, 1<<20), mem.ErrInconsistent},
		{"behind the disk", logOf(1, 512, diskSize/512, 1), block.ErrOutOfRange},
		{"discard behind the disk", logOf(1, 512, diskSize/512, 1, 4), block.ErrOutOfRange},
		{"far behind the disk", logOf(1, 512, 1<<60, 1), mem.ErrInconsistent},
		{"too long", logOf(1, 512, 0, 1<<60), mem.ErrInconsistent},
		{"around", logOf(1, 512, 1<<63, 1<<63), mem.ErrInconsistent},
		{"long mark", logOf(1, 512, 0, 0, 8, 481), mem.ErrInconsistent},
		{"nothing", logOf(1, 512), mem.ErrInconsistent},
		{"longer than the log", logOf(1, 512, 0, 100), io.ErrUnexpectedEOF},
	} {
		if err := readAll(c.log); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := readAll(logOf(1, 512, 0, 1)); err != nil {
		t.Errorf("a sound log: %v", err)
	}
}

func readAll(log []byte) error {
	r, err := logwrites.NewReader(bytes.NewReader(log), block.Bytes(make([]byte, diskSize)), logwrites.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	for w, err := range r.Writes(context.Background()) {
		if err != nil {
			return err
		}
		if w.Len > 1<<20 && w.Op != block.OpDiscard {
			return errors.New("a write of unbounded size")
		}
	}
	return nil
}

func TestWriterRefuses(t *testing.T) {
	w, err := logwrites.Create(filepath.Join(t.TempDir(), "log"), 512)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, b := range []block.Write{
		{Op: block.OpWrite, Off: 1, Len: 512, Data: make([]byte, 512)}, {Op: block.OpZeroes, Len: 100},
		{Op: block.OpWrite, Len: 512}, {Op: 99, Len: 512}, {Op: block.OpZeroes, Off: -512, Len: 512},
	} {
		if err := w.Add(b); err == nil {
			t.Errorf("%+v was taken", b)
		}
	}
	if err := w.Mark(string(make([]byte, 500))); err == nil {
		t.Error("a mark longer than a sector was taken")
	}
	if _, err := logwrites.Create(filepath.Join(t.TempDir(), "log"), 1000); err == nil {
		t.Error("sectors of 1000 bytes were taken")
	}
}

// An entry that is counted before it is there is waited for.
func TestFollowEarlyCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	early := logOf(1, 512)
	if err := os.WriteFile(path, early, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := logwrites.Open(path, block.Bytes(make([]byte, diskSize)), logwrites.Options{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		time.Sleep(20 * time.Millisecond)
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			f.WriteAt(logOf(1, 512, 8, 1, 2), 0)
			f.Close()
		}
	}()
	for w, err := range r.Writes(t.Context()) {
		if err != nil || w.Off != 8*512 || !w.FUA {
			t.Errorf("%+v, %v", w, err)
		}
		break
	}
}

func FuzzReader(f *testing.F) {
	f.Add(logOf(2, 512, 0, 1, 1, 0))
	f.Add(logOf(2, 512, 8, 2, 4, 0))
	f.Add(logOf(1, 512, 0, 0, 8, 5))
	base := block.Bytes(make([]byte, diskSize))
	f.Fuzz(func(t *testing.T, log []byte) {
		r, err := logwrites.NewReader(bytes.NewReader(log), base, logwrites.Options{})
		if err != nil {
			return
		}
		defer r.Close()
		n, seq := 0, uint64(0)
		for w, err := range r.Writes(context.Background()) {
			if err != nil {
				break
			}
			if seq++; w.Seq != seq || w.Off < 0 || w.Len < 0 || w.End() > diskSize || w.Data != nil && int64(len(w.Data)) != w.Len {
				t.Fatalf("write %+v", w)
			}
			n++
		}
		if n > 2*len(log)/512 { // a flush and a write from each sector
			t.Fatalf("%d writes from %d bytes", n, len(log))
		}
	})
}
