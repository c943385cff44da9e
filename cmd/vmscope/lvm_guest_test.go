package main

import (
	"context"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// lvmGuest boots a guest with two disks for LVM. What begins a script there with lvm, it is.
func lvmGuest(t *testing.T) (g *guestlab.Guest, lvm string) {
	t.Helper()
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	dir := t.TempDir()
	var disks []guestlab.Disk
	for i, format := range []string{"raw", "qcow2"} { // which are read in different ways
		id := []string{"one", "two"}[i]
		path := filepath.Join(dir, id)
		guestlab.MakeImage(t, path, format, 96<<20)
		disks = append(disks, guestlab.Disk{ID: id, Path: path, Format: format})
	}
	g = guestlab.Boot(t, guestlab.Config{
		Kernel: "bookworm-cloud", Disks: disks, Modules: []string{"ext4", "dm_mod", "dm_snapshot", "dm_thin_pool", "dm_raid", "raid1", "dm_mirror"},
	})
	start := g.PutPrograms(t.Context(), t, "lvm", "mke2fs")
	return g, `set -e
export LVM_SUPPRESS_FD_WARNINGS=1
lvm() {
	` + start + `lvm "$@" --config 'devices { use_devicesfile=0 } activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } backup { backup=0 archive=0 } global { use_lvmpolld=0 event_activation=0 thin_check_executable="" }' >/dev/null
}
mke2fs() { ` + start + `mke2fs -q "$@"; }
`
}

// lvmVolumes makes a volume that is striped over both disks, at /mnt/s, and one that lies on both in pieces, at /mnt/l, with
// forty directories in each.
const lvmVolumes = `
mkdir -p /run/lock/lvm /mnt/s /mnt/l
lvm pvcreate -y /dev/vda
lvm pvcreate -y /dev/vdb
lvm vgcreate -s 1M vg0 /dev/vda /dev/vdb
lvm lvcreate -y -Wn -Zn -i 2 -I 16k -L 32M -n striped vg0
lvm lvcreate -y -Wn -Zn -l 50 -n linear vg0
lvm lvextend -l +20 vg0/linear /dev/vdb
lvm lvextend -l +4 vg0/linear /dev/vda
mke2fs -t ext4 -L stripes /dev/mapper/vg0-striped
mke2fs -t ext4 -b 1024 -L lines /dev/mapper/vg0-linear
mount -t ext4 /dev/mapper/vg0-striped /mnt/s
mount -t ext4 /dev/mapper/vg0-linear /mnt/l
for d in s l; do
	i=0; while [ $i -lt 40 ]; do mkdir /mnt/$d/d$i; echo $d $i >/mnt/$d/d$i/f; i=$((i+1)); done
done
sync
`

// TestLVMGuest looks into volumes that the guest's own LVM made and its kernel
// wrote to.
func TestLVMGuest(t *testing.T) {
	g, lvm := lvmGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := g.Run(ctx, lvm+lvmVolumes+`
for d in s l; do
	dd if=/dev/urandom of=/mnt/$d/big bs=64k count=150 2>/dev/null
done
lvm lvcreate -y -s -L 4M -n snap vg0/linear
lvm lvcreate -y -Wn -Zn --type raid1 -m 1 --nosync -L 4M -n mirrored vg0 || echo no raid1
lvm lvcreate -y --type thin-pool -L 4M -n pool vg0 && lvm lvcreate -y -Wn -V 16M --thinpool pool -n thin vg0 || echo no thin pool
sync
md5sum /mnt/s/big /mnt/l/big
`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	name := g.Name()
	table, stderr, status := run(t, "disks", name, "--json")
	if status != 0 {
		t.Errorf("disks: %q", stderr)
	}
	got := map[string]diskRow{}
	for line := range strings.Lines(table) {
		var r diskRow
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		got[r.Name] = r
	}
	for volume, want := range map[string]string{"vda": "LVM2_member ", "vdb": "LVM2_member ", "vg0/striped": "ext4 ", "vg0/linear": "ext4 ", "vg0/snap": "unknown snapshot",
		"vg0/mirrored": "unknown raid1", "vg0/pool": "unknown thin-pool", "vg0/thin": "unknown thin"} {
		if kind := strings.TrimPrefix(volume, "vg0/"); kind == "mirrored" && strings.Contains(out, "no raid1") || (kind == "pool" || kind == "thin") && strings.Contains(out, "no thin pool") {
			continue
		}
		if r, ok := got[volume]; !ok || r.Content+" "+string(r.Unmapped) != want {
			t.Errorf("%s: %+v, want %q", volume, r, want)
		}
	}
	for fs, d := range map[string]string{"vg0/striped": "s", "vg0/linear": "l"} {
		find, stderr, status := run(t, "find", name, "--fs", fs, "--name", "f", "--type", "f")
		if n := strings.Count(find, "\n"); n != 40 || status != 0 {
			t.Errorf("%s: %d files, %q", fs, n, stderr)
		}
		if text, _, _ := run(t, "cat", name, "--fs", fs, "/d17/f"); text != d+" 17\n" {
			t.Errorf("%s: /d17/f is %q", fs, text)
		}
		big, stderr, _ := run(t, "cat", name, "--fs", fs, "/big")
		if sum := fmt.Sprintf("%x", md5.Sum([]byte(big))); len(big) != 150<<16 || !strings.Contains(out, sum+"  /mnt/"+d+"/big") {
			t.Errorf("%s: /big has %d bytes and sum %s, %q", fs, len(big), sum, stderr)
		}
	}
}
