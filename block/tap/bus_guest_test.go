package tap

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// TestBuses taps disks on all buses at once, one of them served by a thread of its own.
func TestBuses(t *testing.T) {
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	dir := labDir(t)
	c := guestlab.Config{
		Kernel: "bookworm-cloud", MemoryMiB: 256, Modules: []string{"ext4"},
		QEMUArgs: []string{"-object", "iothread,id=thread"},
		Disks: []guestlab.Disk{
			{ID: "threaded", DeviceOptions: "iothread=thread"}, {ID: "scsi", Bus: "scsi"}, {ID: "nvme", Bus: "nvme"},
		},
	}
	for i := range c.Disks {
		d := &c.Disks[i]
		d.Path = filepath.Join(dir, d.ID)
		guestlab.MakeFS(t, d.Path, 32*mebi, "-t", "ext4", "-b", "1024")
	}
	cow := filepath.Join(dir, "cow")
	guestlab.MakeImage(t, cow, "qcow2", 32*mebi)
	c.Disks = append(c.Disks, guestlab.Disk{ID: "cow", Path: cow, Format: "qcow2", DeviceOptions: "iothread=thread"})
	g := guestlab.Boot(t, c)
	// Old QEMUs must not be asked to export this one; its content cannot be had otherwise.
	if tap, err := Attach(t.Context(), g.Name(), "cow-dev", Options{}); err == nil {
		tap.Close()
	} else if !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	c.Disks = c.Disks[:3]
	var taps []*Tap
	var images [][]byte
	for _, d := range c.Disks {
		dev, err := g.DiskDevice(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Mount(t.Context(), dev, "/mnt/"+d.ID, "ext4", ""); err != nil {
			t.Fatal(err)
		}
		tap := attachTo(t, g, d.ID+"-dev", Options{})
		if "/dev/"+tap.Disk().Name != dev {
			t.Errorf("%+v is %s", tap.Disk(), dev)
		}
		taps = append(taps, tap)
		images = append(images, copyOf(t, tap.Device()))
	}
	run(t, g, `for d in /mnt/*; do for i in 1 2 3; do mkdir $d/d$i; dd if=/dev/urandom of=$d/d$i/f bs=64k count=4 conv=fsync 2>/dev/null; done; done; sync`)
	for i, tap := range taps {
		if n := replay(t, tap, images[i], 300*time.Millisecond); n < 5 {
			t.Errorf("%s: only %d writes", c.Disks[i].ID, n)
		}
		if !bytes.Equal(images[i], copyOf(t, tap.Device())) {
			t.Errorf("%s: the writes do not lead to what the disk holds", c.Disks[i].ID)
		}
	}
	for _, tap := range taps {
		tap.Close()
	}
	clean(t, g)
	nobody(t)
}
