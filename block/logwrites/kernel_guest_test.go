package logwrites_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/internal/guestlab"
)

// A log that Linux wrote, of a file system at work, makes of the disk of before
// the disk of after.
func TestLinuxLog(t *testing.T) {
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	dir := t.TempDir()
	var disks []guestlab.Disk
	for _, sector := range []string{"512", "4096"} {
		for _, what := range []string{"disk", "log"} {
			path := filepath.Join(dir, what+sector)
			guestlab.MakeImage(t, path, "raw", map[string]int64{"disk": 32 << 20, "log": 128 << 20}[what])
			disks = append(disks, guestlab.Disk{ID: what + sector, Path: path, DeviceOptions: "physical_block_size=4096,logical_block_size=" + sector})
		}
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256, Modules: []string{"ext4", "dm_mod", "dm_log_writes"}, Disks: disks})
	start := g.PutPrograms(t.Context(), t, "dmsetup", "mke2fs")
	for _, pair := range []string{"/dev/vda /dev/vdb", "/dev/vdc /dev/vdd"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := g.Run(ctx, `set -e
export DM_DISABLE_UDEV=1
dmsetup() { `+start+`dmsetup "$@" >/dev/null; }
dmsetup create lw --table "0 65536 log-writes `+pair+`"
`+start+`mke2fs -q -t ext4 /dev/mapper/lw
mkdir -p /mnt/lw
mount -t ext4 -o discard /dev/mapper/lw /mnt/lw
dmsetup message lw 0 mark mounted
i=0; while [ $i -lt 50 ]; do echo $i >/mnt/lw/f$i; i=$((i+1)); done
dd if=/dev/urandom of=/mnt/lw/big bs=64k count=50 2>/dev/null
sync
rm /mnt/lw/big /mnt/lw/f1*
sync
umount /mnt/lw
dmsetup remove lw
sync
`)
		cancel()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(disks); i += 2 {
		replayLinux(t, disks[i].Path, disks[i+1].Path)
	}
}

func replayLinux(t *testing.T, disk, log string) {
	t.Helper()
	var marks []string
	r, err := logwrites.Open(log, block.Bytes(make([]byte, 32<<20)), logwrites.Options{Mark: func(m string) { marks = append(marks, m) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := map[block.Op]int{}
	fua := 0
	for w, err := range r.Writes(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		n[w.Op]++
		if w.FUA {
			fua++
		}
	}
	t.Log(n, fua, "with FUA; marks", marks)
	if n[block.OpWrite] < 50 || n[block.OpFlush] == 0 || !slices.Equal(marks, []string{"mounted", "dm-log-writes-end"}) {
		t.Errorf("operations %v, marks %q", n, marks)
	}
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := block.ReadFull(r.Device(), got, 0); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(want); off += 4096 {
		if !bytes.Equal(got[off:off+4096], want[off:off+4096]) && len(strings.Trim(string(got[off:off+4096]), "\x00")) > 0 {
			t.Errorf("the disk differs at %#x", off)
		}
	}
}
