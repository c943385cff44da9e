package part_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"vmscope/block/part"
	"vmscope/internal/guestlab"
)

// sfdiskTable is what sfdisk --json prints.
type sfdiskTable struct {
	PartitionTable struct {
		Label, ID  string
		Sectorsize int
		Partitions []struct {
			Node             string
			Start, Size      int64
			Type, UUID, Name string
		}
	}
}

// What sfdisk says of a table, we say.
func TestTablesAsSfdisk(t *testing.T) {
	guestlab.Need(t, "sfdisk")
	for _, c := range []struct {
		name, script string
		args         []string
		want         int // partitions
	}{
		{"dos", "label: dos\n,10M,L,*\n,20M,S\n,,7\n", nil, 3},
		{"dos logical", "label: dos\n,10M,L\n,40M,E\n,5M,L\n,5M,S\n,5M,L\n,,L\n", nil, 6},
		{"dos many logical", "label: dos\n,,E\n" + strings.Repeat(",2M,L\n", 20), nil, 21},
		{"dos gap", "label: dos\nstart=2048, size=2048, type=83\n\nimage4 : start=8192, size=4096, type=8e\n", nil, 2},
		{"gpt", "label: gpt\n,10M,U,\n,20M,L\nname=\"Grüße\", size=5M, type=L\n", nil, 3},
		{"gpt many", "label: gpt\n" + strings.Repeat("size=256K\n", 128), nil, 128},
		{"gpt small table", "label: gpt\ntable-length: 8\n,10M\n", nil, 1},
		{"gpt 4096", "label: gpt\n,10M\n,20M,S\n", []string{"--sector-size", "4096"}, 2},
		{"gpt empty", "label: gpt\n", nil, 0},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			path := image(t, 160<<20)
			if c.args != nil && !strings.Contains(run(t, "", "sfdisk", "--help"), c.args[0]) {
				t.Skip("this sfdisk has no " + c.args[0])
			}
			run(t, c.script, "sfdisk", append(c.args, "-q", "--no-reread", path)...)
			compareTable(t, path, c.want, c.args...)
		})
	}
}

func compareTable(t *testing.T, path string, want int, args ...string) *part.Layout {
	t.Helper()
	var w sfdiskTable
	if err := json.Unmarshal([]byte(run(t, "", "sfdisk", append(args, "--json", path)...)), &w); err != nil {
		t.Fatal(err)
	}
	table := w.PartitionTable
	l := scan(t, path)
	if len(l.Problems) > 0 {
		t.Errorf("problems: %v", l.Problems)
	}
	if len(table.Partitions) != want {
		t.Fatalf("sfdisk says %+v", table)
	}
	id := strings.ToLower(strings.TrimPrefix(table.ID, "0x"))
	if d := l.Disks[0]; d.Type != table.Label || d.ID != id || table.Sectorsize != 0 && d.SectorSize != table.Sectorsize {
		t.Errorf("%+v, sfdisk says %+v", d, table)
	}
	sector := int64(l.Disks[0].SectorSize)
	got := map[int]string{}
	for _, v := range l.Volumes {
		if v.Kind == part.Partition {
			got[v.Number] = fmt.Sprintf("vda%d %d+%d %s %s %s", v.Number, v.Segments[0].Legs[0].Off/sector, v.Size/sector, strings.TrimPrefix(v.PartType, "0x"), v.PartUUID, v.PartLabel)
			if v.Name != fmt.Sprintf("vda%d", v.Number) {
				t.Errorf("name %q", v.Name)
			}
		}
	}
	for _, p := range table.Partitions {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(p.Node, path), "%d", &n); err != nil {
			t.Fatalf("%q: %v", p.Node, err)
		}
		uuid := strings.ToLower(p.UUID)
		if table.Label == "dos" {
			uuid = fmt.Sprintf("%s-%02x", id, n)
		}
		if w := fmt.Sprintf("vda%d %d+%d %s %s %s", n, p.Start, p.Size, strings.ToLower(p.Type), uuid, p.Name); got[n] != w {
			t.Errorf("%q, sfdisk says %q", got[n], w)
		}
		delete(got, n)
	}
	if len(got) > 0 {
		t.Errorf("partitions too many: %v", got)
	}
	return l
}

// A GPT whose first copy is damaged is read from its backup, and that is told.
func TestBackupGPT(t *testing.T) {
	guestlab.Need(t, "sfdisk")
	for _, off := range []int64{512 + 40, 1024 + 60} { // the header, an entry
		path := image(t, 32<<20)
		run(t, "label: gpt\n,10M\n", "sfdisk", "-q", path)
		before := scan(t, path)
		damage(t, path, off)
		l := scan(t, path)
		if len(l.Volumes) != 1 || l.Volumes[0].PartUUID != before.Volumes[0].PartUUID || len(l.Problems) != 1 {
			t.Errorf("damaged at %d: %+v, %v", off, l.Volumes, l.Problems)
		}
		damage(t, path, 32<<20-512+40)
		if l := scan(t, path); l.Disks[0].Type != "gpt" || len(l.Problems) != 1 || len(l.Volumes) != 1 || l.Volumes[0].Kind != part.WholeDisk {
			t.Errorf("both damaged: %+v, %+v, %v", l.Disks, l.Volumes, l.Problems)
		}
	}
}

// damage changes a byte.
func damage(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// A hybrid MBR is read as Linux does: by its GPT.
func TestHybridMBR(t *testing.T) {
	guestlab.Need(t, "sgdisk", "sfdisk")
	path := image(t, 64<<20)
	run(t, "", "sgdisk", "-n", "1:0:+8M", "-n", "2:0:+8M", "-n", "5:0:+8M", "-c", "2:two", "-h", "1:2", path)
	compareTable(t, path, 3)
}

// Disks without a table, and what would look like one.
func TestWholeDisk(t *testing.T) {
	for _, c := range []struct {
		size int64
		make []string
		want string
	}{
		{8 << 20, []string{"mkfs.ext4", "-q", "IMG"}, "ext4"},
		{8 << 20, []string{"mkfs.vfat", "IMG"}, "vfat"},
		{8 << 20, []string{"mkntfs", "-q", "-Q", "-F", "IMG"}, "ntfs"},
		{8 << 20, []string{"mkswap", "IMG"}, "swap"},
		{8 << 20, []string{"true"}, "empty"},
		{100, []string{"true"}, "empty"},
		{0, []string{"true"}, "empty"},
		{1 << 20, []string{"qemu-img", "create", "-q", "-f", "qcow2", "IMG", "1G"}, "unknown"},
	} {
		guestlab.Need(t, c.make[0])
		path := image(t, c.size)
		var args []string
		for _, a := range c.make[1:] {
			args = append(args, strings.ReplaceAll(a, "IMG", path))
		}
		run(t, "", c.make[0], args...)
		l := scan(t, path)
		if len(l.Volumes) != 1 || l.Volumes[0].Type != c.want || l.Volumes[0].Kind != part.WholeDisk || l.Volumes[0].Name != "vda" || len(l.Problems) > 0 {
			t.Errorf("%v: %+v %v", c.make, l.Volumes, l.Problems)
		}
	}
}
