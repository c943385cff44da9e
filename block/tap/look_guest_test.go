package tap

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/vm/qemu"
)

// A look goes beside a tap of the same disk, and neither takes anything from the other.
func TestLookBesideTap(t *testing.T) {
	g := lab(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	look := func() (first []byte) {
		t.Helper()
		list, err := LookAt(ctx, fmt.Sprint(g.PID()))
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 2 || list[0].Disk.Format != "raw" || list[1].Disk.Format != "qcow2" {
			t.Fatalf("disks: %+v", list)
		}
		for _, l := range list {
			if l.Size() != 64*mebi {
				t.Errorf("%v: %d bytes", l.Disk, l.Size())
			}
			first = make([]byte, 4096)
			if err := block.ReadFull(l, first, mebi); err != nil {
				t.Error(err)
			}
		}
		for _, l := range list {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("closed twice: %v", err)
			}
		}
		return first
	}
	write := func(word string) []byte {
		run(t, g, "yes "+word+" | head -c 4096 | dd of=/dev/vdb bs=4096 seek=256 conv=notrunc,fsync 2>/dev/null")
		return bytes.Repeat([]byte(word+"\n"), 4096/(len(word)+1)+1)[:4096]
	}
	want := write("one")
	if got := look(); !bytes.Equal(got, want) {
		t.Errorf("look: %q…", got[:16])
	}
	clean(t, g)
	tap := attachTo(t, g, "cow-dev", Options{})
	want = write("two")
	if got := look(); !bytes.Equal(got, want) {
		t.Errorf("look beside a tap: %q…", got[:16])
	}
	got := make([]byte, 4096)
	if err := block.ReadFull(tap.Device(), got, mebi); err != nil {
		t.Errorf("the tap's disk after a look: %v", err)
	}
	for {
		w, err := tap.Next(ctx)
		if err == nil && w.Op == block.OpFlush {
			continue
		}
		if err != nil || w.Off != mebi || w.Len != 4096 {
			t.Errorf("the tap's write after a look: %+v, %v", w, err)
		}
		break
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	want = write("three")
	if got := look(); !bytes.Equal(got, want) {
		t.Errorf("look after a tap: %q…", got[:16])
	}
	clean(t, g)

	// With somebody else's NBD server in QEMU the raw image can be read nevertheless.
	p, err := qemu.Find(fmt.Sprint(g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	monitor := func(command string, a any) {
		t.Helper()
		m, err := p.Monitor(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if _, err := m.Run(ctx, command, a); err != nil {
			t.Fatal(err)
		}
	}
	monitor("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": filepath.Join(t.TempDir(), "theirs")}}})
	list, err := LookAt(ctx, fmt.Sprint(g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	if _, err := list[0].ReadAt(b, 0); err != nil {
		t.Errorf("raw: %v", err)
	}
	if _, err := list[1].ReadAt(b, 0); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("qcow2 beside another's server: %v", err)
	}
	for _, l := range list {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	monitor("nbd-server-stop", nil) // it still runs
	clean(t, g)
}
