package nbd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func openTest(t testing.TB, name string, readOnly bool) *File {
	t.Helper()
	d, err := OpenFile(name, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestFileExtents(t *testing.T) {
	const size = 4 << 20
	name, content := imageFile(t, size)
	d := openTest(t, name, false)
	data, hole := Extent{Len: 1 << 20}, Extent{Len: 1 << 20, Hole: true, Zero: true}
	for _, tt := range []struct {
		off, n int64
		max    int
		want   []Extent
	}{
		{0, size, 10, []Extent{data, hole, {Len: 2 << 20}}},
		{0, size, 1, []Extent{data}},
		{1<<20 + 5, 100, 10, []Extent{{Len: 100, Hole: true, Zero: true}}},
		{1<<20 - 5, 10, 10, []Extent{{Len: 5}, {Len: 5, Hole: true, Zero: true}}},
	} {
		if got, err := d.Extents(nil, tt.off, tt.n, tt.max); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("Extents(%d, %d, %d) = %v, %v, want %v", tt.off, tt.n, tt.max, got, err, tt.want)
		}
	}
	// What is freed shows; what was written into a hole, too.
	if err := d.Trim(0, 1<<20, FUA); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(3<<20, 1<<20, NoHole); err != nil {
		t.Fatal(err)
	}
	clear(content[3<<20:])
	clear(content[:1<<20])
	if _, err := d.WriteAt(bytes.Repeat([]byte("x"), 4096), 1<<20); err != nil {
		t.Fatal(err)
	}
	copy(content[1<<20:], bytes.Repeat([]byte("x"), 4096))
	got, err := d.Extents(nil, 0, 2<<20, 10)
	if err != nil || len(got) != 3 || !got[0].Zero || got[1].Zero || got[1].Len != 4096 || !got[2].Zero {
		t.Errorf("Extents: %v, %v", got, err)
	}
	sameFile(t, name, content)
}

// The file system that knows no fallocate.
func TestFileFallBacks(t *testing.T) {
	name, content := imageFile(t, 1<<20)
	d := openTest(t, name, false)
	d.noPunch.Store(true)
	d.noZeroRange.Store(true)
	d.noDsync.Store(true)
	if err := d.Zero(5, 300_000, FastZero); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("fast zeroes: %v", err)
	}
	sameFile(t, name, content)
	if err := d.Zero(5, 300_000, FUA); err != nil {
		t.Error(err)
	}
	clear(content[5:300_005])
	if err := d.Trim(0, 100, 0); err != nil {
		t.Error(err)
	}
	sameFile(t, name, content)
}

// A flush that failed once cannot be believed later.
func TestFileFailedFlush(t *testing.T) {
	name, _ := imageFile(t, 1<<20)
	d := openTest(t, name, false)
	c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: d}}}), ""))
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	var err error = syscall.EIO
	d.failed.Store(&err)
	if err := c.Flush(); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "earlier") {
		t.Errorf("Flush: %v", err)
	}
	if _, err := c.WriteContext(t.Context(), make([]byte, 10), 0, FUA); !errors.Is(err, syscall.EIO) {
		t.Errorf("write with FUA: %v", err)
	}
	if _, err := c.WriteAt(make([]byte, 10), 0); err != nil {
		t.Errorf("write: %v", err)
	}
}

func TestFileRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, fifo, "/dev/null", filepath.Join(dir, "nothing")} {
		if d, err := OpenFile(name, name == dir); err == nil {
			t.Errorf("%s is a disk", name)
			d.Close()
		}
	}
	name, _ := imageFile(t, 1<<20)
	d := openTest(t, name, true)
	if c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: d}}}), "")); !c.ReadOnly() {
		t.Error("a file opened for reading can be written")
	}
}

// A file that loses its end while it is served gives errors there, and the client stays in step.
func TestFileCutOff(t *testing.T) {
	for _, structured := range []bool{true, false} {
		name, content := imageFile(t, 4<<20)
		d := openTest(t, name, false)
		sock := serve(t, &Server{Exports: []Export{{Device: d}}})
		if err := os.Truncate(name, 3<<20); err != nil {
			t.Fatal(err)
		}
		c := dialTest(t, unixURI(sock, ""))
		if !structured {
			h := &hail{conn: rawDial(t, sock)}
			if err := errors.Join(h.greet(t.Context(), nil), h.exportName("")); err != nil {
				t.Fatal(err)
			}
			c = startClient(h, Options{})
			t.Cleanup(func() { c.Close() })
		}
		var e *Error
		if _, err := c.ReadAt(make([]byte, 4096), 3<<20); !errors.As(err, &e) || e.Errno != syscall.EIO {
			t.Errorf("a short read behind the end: %v", err)
		}
		b := make([]byte, 2<<20)
		if _, err := c.ReadAt(b, 2<<20); err == nil || structured && (!errors.As(err, &e) || e.Errno != syscall.EIO) {
			t.Errorf("a long read across the end: %v", err)
		}
		_, err := c.ReadAt(b[:1<<20], 2<<20)
		if !structured {
			// A simple reply that has begun with success cannot take it back: the connection ends.
			if err == nil {
				t.Error("the connection goes on behind half a reply")
			}
			continue
		}
		if err != nil || !bytes.Equal(b[:1<<20], content[2<<20:3<<20]) {
			t.Errorf("a read of what is there: %v", err)
		}
	}
}

func TestURI(t *testing.T) {
	for uri, want := range map[string]Address{
		"nbd://host/":                          {Network: "tcp", Addr: "host:10809", Host: "host"},
		"nbd://[::1]:7/a%20b/c":                {Network: "tcp", Addr: "[::1]:7", Host: "::1", Export: "a b/c"},
		"nbds://host:99/x":                     {Network: "tcp", Addr: "host:99", Host: "host", Export: "x", TLS: true},
		"nbd+unix:///?socket=/run/s":           {Network: "unix", Addr: "/run/s"},
		"nbds+unix:///n%3F?socket=/run/a%26b":  {Network: "unix", Addr: "/run/a&b", Export: "n?", TLS: true},
		"nbd+unix:////slash?socket=rel/socket": {Network: "unix", Addr: "rel/socket", Export: "/slash"},
	} {
		got, err := ParseURI(uri)
		if err != nil || got != want {
			t.Errorf("ParseURI(%q) = %+v, %v", uri, got, err)
		}
		if again, err := ParseURI(got.URI()); err != nil || again != want {
			t.Errorf("%q is written %q, and that is %+v, %v", uri, got.URI(), again, err)
		}
	}
	for _, uri := range []string{"", "http://host", "nbd+unix:///x", "nbd+unix://host/x?socket=s", "nbd:///x", "nbd://host:%", "nbd://h/" + strings.Repeat("x", 5000)} {
		if a, err := ParseURI(uri); err == nil {
			t.Errorf("ParseURI(%.20q) = %+v", uri, a)
		}
	}
}
