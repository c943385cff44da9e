package tap

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

// TestLibvirtDomain taps a disk of a guest that libvirt started and whose monitor it holds: first as a raw image, then as the
// qcow2 that a snapshot made of it. libvirt gets the disk when it asked for it, and not before.
func TestLibvirtDomain(t *testing.T) {
	guestlab.NeedLibvirt(t)
	image := filepath.Join(labDir(t), "raw.img")
	guestlab.MakeFS(t, image, 64*mebi, "-t", "ext4", "-b", "4096")
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256, Libvirt: true, Disks: []guestlab.Disk{{Path: image}}})
	if err := g.Mount(t.Context(), "/dev/vda", "/mnt", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	p, err := qemu.Find(g.Name())
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Monitor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.(*qmp.Virsh); !ok {
		t.Fatalf("the monitor is a %T", m)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := m.PassFile(t.Context(), "null", null); err != nil {
		t.Error(err)
	}
	if _, err := m.Run(t.Context(), "closefd", args{"fdname": "null"}); err != nil {
		t.Error(err)
	}
	if all, err := Disks(t.Context(), g.Name()); err != nil || len(all) != 1 || all[0].Name != "vda" || all[0].Format != "raw" || all[0].File != image {
		t.Errorf("%+v, %v", all, err)
	}

	tap := attachTo(t, g, "vda", Options{})
	for _, command := range [][]string{
		{"blockresize", g.Name(), "vda", "80M"},
		{"snapshot-create-as", g.Name(), "--disk-only", "--no-metadata", "--diskspec", "vda,file=" + image + ".snap"},
	} {
		if out, err := guestlab.Virsh(t.Context(), command...); err == nil {
			t.Errorf("%s while the disk is tapped: %s", command[0], out)
		}
	}
	sameAfterWrites(t, g, tap)
	if n, err := Detach(t.Context(), g.Name(), ""); n != 1 || err != nil {
		t.Error(n, err)
	}
	if err := drain(t, tap); !errors.Is(err, ErrDetached) {
		t.Error(err)
	}
	tap.Close()
	clean(t, g)

	virsh := func(args ...string) {
		t.Helper()
		if _, err := guestlab.Virsh(t.Context(), args...); err != nil {
			t.Error(err)
		}
	}
	virsh("blockresize", g.Name(), "vda", "80M")
	virsh("snapshot-create-as", g.Name(), "--disk-only", "--no-metadata", "--diskspec", "vda,file="+image+".snap")
	tap = attachTo(t, g, "vda", Options{}) // whose content QEMU exports
	if d := tap.Disk(); d.Format != "qcow2" || d.Size != 80*mebi {
		t.Errorf("%+v", d)
	}
	sameAfterWrites(t, g, tap)
	tap.Close()
	clean(t, g)
	virsh("blockcommit", g.Name(), "vda", "--active", "--pivot", "--wait")

	tap = attachTo(t, g, "vda", Options{})
	virsh("destroy", g.Name())
	if err := drain(t, tap); !errors.Is(err, ErrGuestEnded) {
		t.Error(err)
	}
}

// sameAfterWrites: what the disk holds and the writes since are what it holds later.
func sameAfterWrites(t *testing.T, g *guestlab.Guest, tap *Tap) {
	t.Helper()
	run(t, g, "sync")
	replay(t, tap, make([]byte, tap.Size()), 500*time.Millisecond)
	image := copyOf(t, tap.Device())
	run(t, g, "dd if=/dev/urandom of=/mnt/f bs=64k count=8 conv=fsync 2>/dev/null; mkdir -p /mnt/d; mv /mnt/f /mnt/d; sync")
	if n := replay(t, tap, image, 500*time.Millisecond); n < 8 {
		t.Errorf("only %d writes", n)
	}
	if !bytes.Equal(copyOf(t, tap.Device()), image) {
		t.Error("the writes do not lead to what the disk holds")
	}
}

// drain reads until the stream ends, and gives the reason.
func drain(t *testing.T, tap *Tap) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := tap.Next(ctx); err != nil {
			return err
		}
	}
}
