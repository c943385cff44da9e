package vmscope_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/event"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
	"vmscope/vm/qemu"
)

// TestWatchPlug plugs a disk into a guest that is watched, out, and in again.
func TestWatchPlug(t *testing.T) {
	image := filepath.Join(t.TempDir(), "plugged")
	const uuid = "22222222-3333-4444-8555-666666666666"
	g := fslab.Boot(t, "bookworm-cloud", sets(t, "ext4"), freshSeed(t), func(c *guestlab.Config) {
		c.QEMUArgs = append(c.QEMUArgs, "-device", "pcie-root-port,id=socket1,chassis=1")
		if !testing.Short() {
			guestlab.MakeFS(t, image, 32<<20, "-t", "ext4", "-U", uuid)
		}
	})
	w := watchLive(t, g, vmscope.WatchOptions{}, 1)
	ask := func(command string, args any) error {
		t.Helper()
		p, err := qemu.Find(g.Name())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		m, err := p.Monitor(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		_, err = m.Run(ctx, command, args)
		return err
	}
	must := func(command string, args any) {
		t.Helper()
		if err := ask(command, args); err != nil {
			t.Fatal(err)
		}
	}
	type args map[string]any
	for range 2 {
		n := len(w.events())
		must("blockdev-add", args{"driver": "raw", "node-name": "plugged", "file": args{"driver": "file", "filename": image}})
		must("device_add", args{"driver": "virtio-blk-pci", "id": "plugged-dev", "drive": "plugged", "bus": "socket1", "serial": "plugged"})
		attached := w.wait("ATTACHED of the new disk", n, func(e *told) bool { return e.Op == event.Attached && strings.Contains(e.FS, uuid) })
		if attached.Disk != "vdb" {
			t.Errorf("the disk is called %q", attached.Disk)
		}
		device, err := g.DiskDevice(t.Context(), "plugged")
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Mount(t.Context(), device, "/mnt/plugged", "ext4", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Run(t.Context(), "rm -f /mnt/plugged/file; sync; echo text >/mnt/plugged/file; sync"); err != nil {
			t.Fatal(err)
		}
		w.wait("MKFILE on the new disk", n, func(e *told) bool { return e.Op == event.MkFile && e.Disk == "vdb" && e.Path == "/file" })
		if err := g.Unmount(t.Context(), "/mnt/plugged"); err != nil {
			t.Fatal(err)
		}
		must("device_del", args{"id": "plugged-dev"})
		w.wait("LOST of the disk", n, func(e *told) bool { return e.Op == event.Lost && strings.Contains(e.FS, uuid) })
		must("blockdev-del", args{"node-name": "plugged"}) // nothing of ours holds it
	}
	n := len(w.events())
	mount(t, g, sets(t, "ext4")[0])
	if _, err := g.Run(t.Context(), "mkdir /mnt/ext4/still; sync"); err != nil {
		t.Fatal(err)
	}
	w.wait("MKDIR on the disk that stayed", n, func(e *told) bool { return e.Op == event.MkDir && e.Path == "/still" })
}
