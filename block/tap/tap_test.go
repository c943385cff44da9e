package tap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmscope/internal/ring"
)

func TestList(t *testing.T) {
	in := func(drv, file string) *struct {
		Node  string `json:"node-name"`
		Drv   string `json:"drv"`
		File  string `json:"file"`
		RO    bool   `json:"ro"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	} {
		b := blockInfo{}.Inserted
		if err := jsonInto(fmt.Sprintf(`{"node-name": "n-%s", "drv": "%s", "file": %q, "ro": %v, "image": {"virtual-size": 1024}}`, drv, drv, file, drv == "iso"), &b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	got := list([]blockInfo{
		{Device: "virtio0", QDev: "/machine/peripheral-anon/device[1]/virtio-backend", Inserted: in("raw", "/a")},
		{Device: "", QDev: "/machine/peripheral/boot/virtio-backend", Inserted: in("qcow2", `json:{"driver": "qcow2", "file": {"filename": "/b"}}`)},
		{Device: "cd", QDev: "/machine/unattached/device[9]", Inserted: in("iso", "/c")},
		{Device: "empty", QDev: "/machine/unattached/device[10]"},
		{Device: "s", QDev: "/machine/peripheral/s", Inserted: in("luks", `json:{`)},
		{Device: "", QDev: "nv", Inserted: in("raw", "x")},
		{Device: "", QDev: "/machine/peripheral/virtio-disk2/virtio-backend", Inserted: in("file", "/d")},
	}, map[string]string{"/machine/unattached/device[9]": "ide-cd", "/machine/peripheral/s": "scsi-hd", "nv": "nvme"})
	want := []Disk{
		{Name: "vda", ID: "virtio0", Format: "raw", File: "/a"}, {Name: "vdb", ID: "boot", Format: "qcow2", File: "/b"},
		{Name: "sr0", ID: "cd", Format: "iso", File: "/c", ReadOnly: true}, {Name: "sda", ID: "s", Format: "luks", File: "json:{"},
		{Name: "nvme0n1", ID: "nv", Format: "raw", File: "x"}, {Name: "vdc", ID: "virtio-disk2", Format: "raw", File: "/d"},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		w.Node, w.QDev, w.kind, w.Size = got[i].Node, got[i].QDev, got[i].kind, 1024
		w.plain = w.File == "/a" || w.File == "/d"
		if got[i] != w {
			t.Errorf("%+v, want %+v", got[i], w)
		}
	}
	for name, i := range map[string]int{"vdb": 1, "boot": 1, "/dev/sda": 3, "n-iso": 2, "nv": 4} {
		if d, err := choose(got, name); err != nil || d != got[i] {
			t.Errorf("%q: %+v, %v", name, d, err)
		}
	}
	for _, name := range []string{"", "vdz"} {
		if _, err := choose(got, name); !errors.Is(err, ErrNoDisk) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if d, err := choose(got[1:3], ""); err != nil || d.Name != "vdb" {
		t.Error("the only one that can be written:", d, err)
	}
	for n, want := range map[int]string{0: "a", 25: "z", 26: "aa", 701: "zz", 702: "aaa"} {
		if got := letters(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// Images lie in the ring's order; of each byte the oldest counts, until its place is written.
func TestImages(t *testing.T) {
	var x images
	add := func(pos uint64, off, n int64) { x.add(pos, ring.Record{Off: off, Len: n, Data: make([]byte, n)}) }
	find := func(off, n int64) (pos []uint64) {
		x.overlapping(off, n, func(m image) { pos = append(pos, m.pos) })
		return pos
	}
	add(100, 0, 4096)
	add(200, 6144, 4096) // lies on two pages
	add(300, 6144, 4096)
	add(400, 1<<30, 65536)
	for _, c := range []struct {
		off, n int64
		want   []uint64
	}{
		{0, 1, []uint64{100}}, {4095, 1, []uint64{100}}, {4096, 2048, nil}, {4096, 2049, []uint64{200, 300}}, {10239, 1, []uint64{200, 300}},
		{10240, 5000, nil}, {0, 1 << 40, []uint64{100, 200, 300, 400}}, {1<<30 + 60000, 1, []uint64{400}},
	} {
		if got := find(c.off, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%d+%d: %v, want %v", c.off, c.n, got, c.want)
		}
	}
	x.written(7000, 1, 250) // what lies before is void, what lies behind is not
	if got := find(6144, 10); !slices.Equal(got, []uint64{300}) {
		t.Error(got)
	}
	x.release(400)
	if got := find(0, 1<<40); !slices.Equal(got, []uint64{400}) {
		t.Error(got)
	}
	x.release(500)
	if len(x.pages) != 0 || len(x.order) != 0 {
		t.Error(x)
	}
}

func TestControl(t *testing.T) {
	a, b, err := newControl()
	if err != nil {
		t.Fatal(err)
	}
	x, y := control{a}, control{b}
	want := fmt.Errorf("more: %w", ErrDetached)
	if err := x.send(pack(msgEnded, want)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxMessage)
	m, err := y.receive(buf)
	if got := unpack(m); err != nil || !errors.Is(got, ErrDetached) || got.Error() != want.Error() {
		t.Error(m, err)
	}
	if unpack(pack(msgEnded, nil)) != nil {
		t.Error("no error became one")
	}
	if err := x.send(message{Kind: string(make([]byte, maxMessage))}); err == nil {
		t.Error("a message that is too long")
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := x.send(message{Kind: msgRegions, Gen: 3, files: []*os.File{file, a}}); err != nil {
		t.Fatal(err)
	}
	if m, err = y.receive(buf); err != nil || m.Gen != 3 || len(m.files) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	mine, err1 := file.Stat()
	theirs, err2 := m.files[0].Stat()
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(mine, theirs) {
		t.Errorf("another file came, %v", err)
	}
	m.Regions = []region{{PA: 4096, Size: 8192, File: 2}}
	if list, err := unpackRegions(m); err == nil {
		t.Errorf("a region of no file: %+v", list)
	}
	began := time.Now() // nobody reads: it is dropped
	for err = nil; err == nil; {
		err = x.send(message{Kind: "x"})
	}
	if time.Since(began) > 10*time.Second {
		t.Error("a message waits for who does not read")
	}
	a.Close()
	for err = nil; err == nil; {
		_, err = y.receive(buf)
	}
	if !errors.Is(err, errGone) {
		t.Error(err)
	}
	b.Close()
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	a, err := lock(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path, false); !errors.Is(err, errLocked) {
		t.Error(err)
	}
	done := make(chan *os.File)
	go func() {
		f, _ := lock(path, true)
		done <- f
	}()
	unlock(a)
	b := <-done
	if _, err := lock(path, false); !errors.Is(err, errLocked) {
		t.Error("whoever waited has not the lock that is at the path:", err)
	}
	unlock(b)
}

func TestPrivateDir(t *testing.T) {
	base := t.TempDir()
	open, link := filepath.Join(base, "open"), filepath.Join(base, "link")
	os.Mkdir(open, 0o700)
	os.Chmod(open, 0o777)
	os.Symlink(base, link)
	for dir, ok := range map[string]bool{filepath.Join(base, "new"): true, open: false, link: false, filepath.Join(base, "no", "such"): false} {
		if err := privateDir(dir, 0o700); (err == nil) != ok {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
