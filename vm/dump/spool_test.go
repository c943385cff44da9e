package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// TestSpool writes more than stays in memory, with holes.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	want := make([]byte, 1<<20+100)
	copy(want, pattern(1, 100<<10))
	copy(want[512<<10:], pattern(2, 200<<10))
	for _, inMemory := range []uint64{1 << 20, 200 << 10, 0} {
		s, err := newSpool("dump", 0)
		if err != nil {
			t.Fatal(err)
		}
		s.inMemory = inMemory
		for p := want; len(p) > 0; p = p[min(len(p), 16*mem.PageSize):] {
			if _, err := s.Write(p[:min(len(p), 16*mem.PageSize)]); err != nil {
				t.Fatal(err)
			}
		}
		f, err := s.done()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, len(want))
		if err := readFull(f, got, 0); err != nil || !bytes.Equal(got, want) || f.Size() != uint64(len(want)) || f.Name() != "dump" {
			t.Errorf("%d bytes of %s, %v", f.Size(), f.Name(), err)
		}
		if onDisk := s.dir == dir; onDisk != (inMemory < 300<<10) {
			t.Errorf("of %d bytes in memory: in %q", inMemory, s.dir)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.(*plainFile).Fd()), &st); err != nil || st.Nlink != 0 || st.Blocks*512 >= int64(len(want)) {
			t.Errorf("%d names, %d bytes on disk, %v", st.Nlink, st.Blocks*512, err)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSpoolRefuses writes more than there is room for, and than is sensible.
func TestSpoolRefuses(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	page := pattern(1, mem.PageSize)
	s, err := newSpool("dump", 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	s.inMemory, s.limit = mem.PageSize, 4*mem.PageSize
	if _, err := s.Write(page); err != nil {
		t.Fatal(err)
	}
	var full *room
	if _, err := s.Write(page); !errors.As(err, &full) || full.dir != os.Getenv("TMPDIR") || full.needs != 1<<60 {
		t.Error(err)
	}
	if _, err := s.Write(make([]byte, 8*mem.PageSize)); !errors.Is(err, errTooLarge) {
		t.Error(err)
	}
}

// TestPackedLarge opens what does not stay in memory when it is unpacked: where there is
// a directory for it.
func TestPackedLarge(t *testing.T) {
	const size = maxInMemory + 64<<20
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	header := le.AppendUint32([]byte(limeMagic), 1)
	header = append(le.AppendUint64(le.AppendUint64(header, 0), size-1), make([]byte, 8)...)
	for n, piece := -1, header; n < size>>20; n, piece = n+1, pattern(1, 1<<20) {
		if _, err := z.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := file(t, out.Bytes())
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	if m, err := Open(path); m != nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "set TMPDIR") {
		t.Errorf("%v, %v", m, err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	told, ended := uint64(0), false
	ctx, cancel := context.WithCancel(t.Context())
	m, err := Open(path, During(ctx, func(done, total uint64) {
		if total == 0 {
			ended = true
		} else if told = max(told, done); ended || total != uint64(out.Len()) || done > total {
			t.Errorf("%d of %d bytes", done, total)
		}
	}))
	if err != nil || told == 0 || !ended {
		t.Fatalf("told of %d bytes, to the end %t: %v", told, ended, err)
	}
	defer m.Close()
	same(t, m, maxInMemory+62<<20, pattern(1, 1<<20))
	cancel()
	if m, err := Open(path, During(ctx, func(uint64, uint64) {})); m != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", m, err)
	}
}
