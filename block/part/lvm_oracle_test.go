package part_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/internal/guestlab"
)

// loops makes block devices of image files, for programs that take nothing else.
func loops(t *testing.T, paths ...string) []string {
	t.Helper()
	guestlab.Need(t, "losetup")
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	var out []string
	for _, p := range paths {
		dev, err := exec.Command("losetup", "-f", "--show", p).Output()
		if err != nil {
			t.Skip("no loop device to be had: ", err)
		}
		name := strings.TrimSpace(string(dev))
		t.Cleanup(func() { exec.Command("losetup", "-d", name).Run() })
		out = append(out, name)
	}
	return out
}

// lvm runs one of LVM's programs without device-mapper, on these devices only.
func lvm(t *testing.T, devs []string, args ...string) string {
	t.Helper()
	filter := ""
	for _, d := range devs {
		filter += fmt.Sprintf("%q,", "a|^"+d+"$|")
	}
	config := "devices { use_devicesfile=0 scan_lvs=0 filter=[" + filter + `"r|.*|"] global_filter=["a|.*|"] } backup { backup=0 archive=0 } global { use_lvmpolld=0 event_activation=0 locking_dir="` +
		filepath.Join(t.TempDir(), "lock") + `" } activation { udev_sync=0 udev_rules=0 monitoring=0 }`
	t.Setenv("LVM_SUPPRESS_FD_WARNINGS", "1")
	all := append([]string{args[0], "--config", config, "--driverloaded", "n"}, args[1:]...)
	return run(t, "", "lvm", all...)
}

func TestLVM(t *testing.T) {
	guestlab.Need(t, "lvm", "sfdisk", "mkfs.ext4", "lvcreate")
	paths := []string{image(t, 80<<20), image(t, 64<<20), image(t, 72<<20)}
	// The second physical volume is a partition.
	run(t, "label: gpt\nstart=4096, type=lvm\n", "sfdisk", "-q", paths[1])
	devs := loops(t, paths[0], paths[2])
	part1, err := exec.Command("losetup", "-f", "--show", "-o", strconv.Itoa(4096*512), "--sizelimit", strconv.Itoa(60<<20), paths[1]).Output()
	if err != nil {
		t.Skip("no loop device to be had: ", err)
	}
	name := strings.TrimSpace(string(part1))
	t.Cleanup(func() { exec.Command("losetup", "-d", name).Run() })
	devs = append(devs, name)

	lvm(t, devs, append([]string{"pvcreate", "-q", "-y"}, devs...)...)
	lvm(t, devs, append([]string{"vgcreate", "-q", "-s", "1M", "vg-0"}, devs...)...)
	create := func(args ...string) {
		lvm(t, devs, append([]string{"lvcreate", "-q", "-an", "-Zn", "-Wn", "-y"}, args...)...)
	}
	create("-n", "root", "-L", "20M", "vg-0")
	create("-n", "striped", "-i", "3", "-I", "64k", "-L", "30M", "vg-0")
	create("-n", "home", "-l", "40", "vg-0")
	lvm(t, devs, "lvextend", "-q", "-l", "+30", "vg-0/root")
	// Enough changes for the text to go around in its area.
	for i := range 6 {
		lvm(t, devs, "vgchange", "-q", "--addtag", fmt.Sprintf("tag%d", i), "vg-0")
	}

	// A file system on the striped volume, written through the map's reverse: piece by piece as a host would.
	l := scan(t, paths...)
	if len(l.Problems) > 0 {
		t.Errorf("problems: %v", l.Problems)
	}
	compareLVM(t, l, lvm(t, devs, "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "lv_name,lv_uuid,lv_size,vg_name,vg_uuid,seg_count,segtype", "vg-0"))
	vol, ok := l.Lookup("vg-0/striped")
	if !ok {
		t.Fatalf("no striped volume in %+v", l.Volumes)
	}
	fs := image(t, vol.Size)
	run(t, "", "mkfs.ext4", "-q", "-L", "on stripes", fs)
	content, err := os.ReadFile(fs)
	if err != nil {
		t.Fatal(err)
	}
	m, err := vol.Map()
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < vol.Size; {
		at := m.Locate(off)
		f, err := os.OpenFile(paths[at.Disk], os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(content[off:off+at.Len], at.Off); err != nil {
			t.Fatal(err)
		}
		f.Close()
		off += at.Len
	}
	l = scan(t, paths...)
	vol, _ = l.Lookup("vg-0/striped")
	dev, err := l.Open(vol)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, vol.Size)
	if err := block.ReadFull(dev, got, 0); err != nil || !bytes.Equal(got, content) || vol.Label != "on stripes" {
		t.Errorf("%+v, %v", vol.Content, err)
	}

	// With a disk away, what is on the others is still there.
	l = scan(t, paths[0], paths[1])
	vol, ok = l.Lookup("vg-0/striped")
	if !ok || vol.Unmapped == "" || len(l.Groups) != 1 || len(l.Groups[0].Missing) != 1 {
		t.Errorf("without a disk: %+v, %+v", vol, l.Groups)
	}
	if vol, ok := l.Lookup("vg-0/root"); !ok || vol.Segments == nil {
		t.Errorf("without a disk: %+v", vol)
	}

	// Any change of the group touches a watched place.
	before := make([][]byte, len(paths))
	for i, p := range paths {
		before[i], _ = os.ReadFile(p)
	}
	lvm(t, devs, "lvrename", "-q", "vg-0", "home", "haus")
	l, err = part.Scan(context.Background(), part.Disk{Name: "vda", Dev: block.Bytes(before[0])})
	if err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(paths[0])
	stale := false
	for off := 0; off < len(after); off += 512 {
		if !bytes.Equal(after[off:off+512], before[0][off:off+512]) {
			stale = stale || l.Stale(0, &block.Write{Op: block.OpWrite, Off: int64(off), Len: 512})
		}
	}
	if !stale {
		t.Error("a change of the group touches nothing that is watched")
	}
}

func compareLVM(t *testing.T, l *part.Layout, out string) {
	t.Helper()
	var r struct {
		Report []struct{ LV []map[string]string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, lv := range r.Report[0].LV {
		name := lv["vg_name"] + "/" + lv["lv_name"]
		v, ok := l.Lookup(name)
		if !ok {
			t.Errorf("no %s", name)
			continue
		}
		seen[name] = true
		plain := lv["segtype"] == "striped" || lv["segtype"] == "linear"
		if v.LVUUID != lv["lv_uuid"] || strconv.FormatInt(v.Size, 10) != lv["lv_size"] || plain != (v.Unmapped == "") || plain && strconv.Itoa(len(v.Segments)) != lv["seg_count"] {
			t.Errorf("%+v, lvs says %v", v, lv)
		}
		if len(l.Groups) != 1 || l.Groups[0].UUID != lv["vg_uuid"] {
			t.Errorf("%+v, lvs says %v", l.Groups, lv)
		}
	}
	for _, v := range l.Volumes {
		if v.Kind == part.Logical && !seen[v.Name] {
			t.Errorf("lvs does not know %s", v.Name)
		}
	}
}
