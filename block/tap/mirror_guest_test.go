package tap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

const mebi = 1 << 20

// labDir is a directory for images.
func labDir(t *testing.T) string {
	t.Helper()
	// In memory, so that the host's disk does not add to what is measured.
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "taptest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// lab boots a guest with a raw ext4 disk (QEMU's old -drive) and an empty qcow2 one, and mounts the first.
func lab(t *testing.T) *guestlab.Guest {
	t.Helper()
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	dir := labDir(t)
	raw, cow := filepath.Join(dir, "raw.img"), filepath.Join(dir, "cow.img")
	guestlab.MakeFS(t, raw, 64*mebi, "-t", "ext4", "-b", "4096")
	guestlab.MakeImage(t, cow, "qcow2", 64*mebi)
	g := guestlab.Boot(t, guestlab.Config{
		Kernel: "bookworm-cloud", MemoryMiB: 256, Disk: raw, Disks: []guestlab.Disk{{ID: "cow", Path: cow, Format: "qcow2"}},
		Modules: []string{"ext4"},
	})
	if err := g.Mount(t.Context(), "/dev/vda", "/mnt", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	return g
}

func run(t *testing.T, g *guestlab.Guest, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := g.Run(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// traces lists what of ours is in QEMU.
func traces(t *testing.T, g *guestlab.Guest) []string {
	t.Helper()
	p, err := qemu.Find(fmt.Sprint(g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := p.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var out []string
	for _, command := range []string{"query-block-jobs", "query-named-block-nodes", "query-block-exports"} {
		raw, err := m.Run(ctx, command, nil)
		if err != nil {
			t.Fatal(err)
		}
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if strings.Contains(string(e), idPrefix) {
				out = append(out, command+": "+string(e[:min(len(e), 200)]))
			}
		}
	}
	var refused *qmp.Error
	if _, err := m.Run(ctx, "nbd-server-stop", nil); !errors.As(err, &refused) {
		out = append(out, fmt.Sprintf("the NBD server ran (%v)", err))
	}
	return out
}

// clean checks that nothing of ours is in QEMU, within a moment.
func clean(t *testing.T, g *guestlab.Guest) {
	t.Helper()
	var left []string
	for range 50 {
		if left = traces(t, g); len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left in QEMU: %s", left)
}

func attachTo(t *testing.T, g *guestlab.Guest, disk string, o Options) *Tap {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tap, err := Attach(ctx, fmt.Sprint(g.PID()), disk, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	return tap
}

// copyOf reads a whole disk.
func copyOf(t *testing.T, d block.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	for off := 0; off < len(b); off += mebi {
		if err := block.ReadFull(d, b[off:min(off+mebi, len(b))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// replay makes writes in an image until none has come for a while. It gives the number of writes.
func replay(t *testing.T, tap *Tap, image []byte, quiet time.Duration) int {
	t.Helper()
	n := 0
	for {
		ctx, cancel := context.WithTimeout(t.Context(), quiet)
		w, err := tap.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
		switch w.Op {
		case block.OpWrite:
			if int64(len(w.Data)) != w.Len {
				t.Fatalf("%d bytes of data for %d", len(w.Data), w.Len)
			}
			copy(image[w.Off:w.End()], w.Data)
		case block.OpZeroes:
			clear(image[w.Off:w.End()])
		}
	}
}

func TestDisks(t *testing.T) {
	g := lab(t)
	all, err := Disks(t.Context(), g.Name())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, want := range []struct{ name, format string }{{"vda", "raw"}, {"vdb", "qcow2"}} {
		if d := all[i]; d.Name != want.name || d.Format != want.format || d.Size != 64*mebi || d.ReadOnly {
			t.Errorf("%+v, want %+v", d, want)
		}
	}
	t.Run("mirror", func(t *testing.T) { mirrorIsExact(t, g) })
	t.Run("qcow2", func(t *testing.T) { qcow2IsExact(t, g) })
	t.Run("lock", func(t *testing.T) { oneTapADisk(t, g) })
	t.Run("detach", func(t *testing.T) { detachOnRequest(t, g) })
}

// mirrorIsExact: what the disk held at attach and the writes since are what it holds later.
func mirrorIsExact(t *testing.T, g *guestlab.Guest) {
	for _, inside := range []bool{true, false} {
		t.Run(fmt.Sprintf("inside=%v", inside), func(t *testing.T) {
			run(t, g, "echo before >/mnt/before; sync")
			tap := attachTo(t, g, "vda", Options{InProcess: inside})
			image := copyOf(t, tap.Device())
			run(t, g, `cd /mnt; for i in 1 2 3 4 5 6 7 8; do mkdir -p d$i; dd if=/dev/urandom of=d$i/f bs=64k count=8 conv=fsync 2>/dev/null; ln d$i/f d$i/g; done; rm -r d1; sync`)
			n := replay(t, tap, image, 500*time.Millisecond)
			if n < 8 {
				t.Errorf("only %d writes", n)
			}
			if now := copyOf(t, tap.Device()); !bytes.Equal(now, image) {
				t.Error("the writes do not lead to what the disk holds")
			}
			if !bytes.Contains(image, []byte("before\n")) {
				t.Error("what was there before is not")
			}
			if err := tap.Close(); err != nil {
				t.Error(err)
			}
			if _, err := tap.Next(t.Context()); err == nil {
				t.Error("a closed tap gives writes")
			}
			clean(t, g)
			run(t, g, "rm -rf /mnt/d*; sync")
		})
	}
}

// qcow2IsExact: offsets are the guest's, whatever the image's format.
func qcow2IsExact(t *testing.T, g *guestlab.Guest) {
	tap := attachTo(t, g, "cow", Options{})
	image := copyOf(t, tap.Device())
	run(t, g, `for i in 0 5 17 40; do dd if=/dev/urandom of=/dev/vdb bs=1M seek=$i count=1 conv=fsync 2>/dev/null; done`)
	replay(t, tap, image, 500*time.Millisecond)
	if now := copyOf(t, tap.Device()); !bytes.Equal(now, image) {
		t.Error("the writes do not lead to what the disk holds")
	}
	tap.Close()
	clean(t, g)
}

func oneTapADisk(t *testing.T, g *guestlab.Guest) {
	a := attachTo(t, g, "vda", Options{})
	if _, err := Attach(t.Context(), g.Name(), "vda", Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second tap of the disk: %v", err)
	}
	b := attachTo(t, g, "vdb", Options{}) // shares the NBD server
	if _, err := b.Device().ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	a.Close()
	if _, err := b.Device().ReadAt(make([]byte, 512), 64*mebi-256); err != io.EOF {
		t.Error(err)
	}
	b.Close()
	clean(t, g)
	if _, err := Attach(t.Context(), g.Name(), "sdx", Options{}); !errors.Is(err, ErrNoDisk) {
		t.Error(err)
	}
}

func detachOnRequest(t *testing.T, g *guestlab.Guest) {
	tap := attachTo(t, g, "vda", Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if n, err := Detach(ctx, g.Name(), "vda"); n != 1 || err != nil {
		t.Error(n, err)
	}
	clean(t, g) // it has left by now
	for {
		if _, err := tap.Next(ctx); err != nil {
			if !errors.Is(err, ErrDetached) {
				t.Error(err)
			}
			break
		}
	}
	tap.Close()
	tap = attachTo(t, g, "vda", Options{}) // and can come back
	p, err := qemu.Find(g.Name())
	if err != nil {
		t.Fatal(err)
	}
	// A management tool that knows nothing of us cancels the job.
	m, err := p.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var jobs []struct {
		Device string `json:"device"`
	}
	if err := qmp.Query(ctx, m, "query-block-jobs", nil, &jobs); err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	if _, err := m.Run(ctx, "block-job-cancel", args{"device": jobs[0].Device, "force": true}); err != nil {
		t.Error(err)
	}
	m.Close()
	for {
		if _, err := tap.Next(ctx); err != nil {
			if !errors.Is(err, ErrDetached) {
				t.Error(err)
			}
			break
		}
	}
	tap.Close()
	clean(t, g)
	if dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "vmscope-0", "*", "*")); len(dirs) > 0 {
		t.Log(dirs)
	}
}
