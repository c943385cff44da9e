package part_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"vmscope/block"
	"vmscope/block/part"
)

// checkLayout checks what holds whatever the disks say.
func checkLayout(t *testing.T, l *part.Layout, disks ...[]byte) {
	t.Helper()
	if len(l.Problems) > 100 || len(l.Disks) != len(disks) {
		t.Fatalf("%d problems, %d disks", len(l.Problems), len(l.Disks))
	}
	seen := map[string]bool{}
	for i := range l.Volumes {
		v := &l.Volumes[i]
		if v.Name == "" || v.Type == "" || v.Size < 0 {
			t.Fatalf("%+v", v)
		}
		if v.Kind != part.Logical && seen[v.Name] {
			t.Fatalf("two volumes %s", v.Name)
		}
		seen[v.Name] = true
		if v.Segments == nil {
			if v.Unmapped == "" {
				t.Fatalf("%s is not mapped, without a reason", v.Name)
			}
			continue
		}
		dev, err := l.Open(v)
		if err != nil || dev.Size() != v.Size {
			t.Fatalf("%+v: %v", v, err)
		}
		for _, s := range v.Segments {
			for _, leg := range s.Legs {
				if leg.Disk >= 0 && leg.Off+s.Len/int64(len(s.Legs)) > int64(len(disks[leg.Disk])) {
					t.Fatalf("%s lies outside of the disk: %+v", v.Name, s)
				}
			}
		}
		p := make([]byte, min(v.Size, 4096))
		if err := block.ReadFull(dev, p, v.Size-int64(len(p))); err != nil && v.Unmapped == "" && !missing(v) {
			t.Fatalf("%s: %v", v.Name, err)
		}
	}
	for i := range disks {
		last := int64(-1)
		for _, r := range l.Watched(i) {
			if r.Off <= last || r.Len <= 0 || r.End() > int64(len(disks[i])) {
				t.Fatalf("watched: %v", l.Watched(i))
			}
			last = r.End()
		}
	}
}

func missing(v *part.Volume) bool {
	for _, s := range v.Segments {
		for _, leg := range s.Legs {
			if leg.Disk < 0 {
				return true
			}
		}
	}
	return false
}

// FuzzScan gives the first sectors of a disk; a GPT among them gets the
// checksums that it should have.
func FuzzScan(f *testing.F) {
	seed := make([]byte, 1<<18)
	gpt(seed, func(_, _ []byte) {})
	f.Add(seed[:2048], []byte{})
	clear(seed)
	dos(seed, [3]uint32{5, 1, 500}, [3]uint32{0x83, 10, 10})
	dos(seed[512:], [3]uint32{0x83, 1, 1}, [3]uint32{5, 2, 10})
	f.Add(seed[:1536], []byte{})
	f.Add([]byte("XFSB"), []byte("\xfc\x4e\x2b\xa9"))
	f.Add(lvmDisk(uuidA, group(1, plain("a", "pv0", 0, 1)), 512)[:8192], []byte{})
	for magic, at := range map[string]int{"NTFS    ": 3, "EXFAT   ": 3, "LUKS\xba\xbe\x00\x02": 0, "SWAPSPACE2": 4086, "CD001": 32769, "_BHRfS_M": 65600} {
		b := make([]byte, at+512)
		copy(b[510:], "\x55\xaa")
		copy(b[11:], "\x00\x02\x01\x01\x00\x02") // sectors of 512 bytes, one a cluster
		copy(b[at:], magic)
		f.Add(b, []byte{})
	}
	fat := make([]byte, 2048)
	copy(fat, "\xeb\x3c\x90mkfs.fat\x00\x02\x01\x01\x00\x02\x10\x00\xff\x01\xf8\x01\x00")
	copy(fat[510:], "\x55\xaa")
	copy(fat[1536:], "LABEL      \x08")
	f.Add(fat, []byte{})
	f.Fuzz(func(t *testing.T, start, end []byte) {
		d := make([]byte, 1<<18)
		copy(d, start)
		copy(d[len(d)-min(len(end), 1<<16):], end)
		le := binary.LittleEndian
		if h := d[512:1024]; string(h[:8]) == "EFI PART" {
			if n := uint64(le.Uint32(h[80:])) * uint64(le.Uint32(h[84:])); n < 1<<15 {
				if at := le.Uint64(h[72:]); at < 100 {
					le.PutUint32(h[88:], crc32.ChecksumIEEE(d[at*512:][:n]))
				}
			}
			le.PutUint32(h[16:], 0)
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(le.Uint32(h[12:]), 512)]))
		}
		if l := d[512:1024]; string(l[:8]) == "LABELONE" {
			le.PutUint32(l[16:], lvmSum(l[20:]))
		}
		if a := d[4096 : 4096+512]; string(a[4:9]) == " LVM2" {
			if off, n := le.Uint64(a[40:]), le.Uint64(a[48:]); off < 1<<16 && n < 1<<16 {
				le.PutUint32(a[56:], lvmSum(d[4096+off:][:n])) // of a text that does not go around
			}
			le.PutUint32(a, lvmSum(a[4:]))
		}
		checkLayout(t, scanBytes(t, d), d)
	})
}

// FuzzGroup gives the text of a volume group's metadata, with sound checksums.
func FuzzGroup(f *testing.F) {
	f.Add(group(1, plain("a", "pv0", 0, 48)+plain("b-c", "pv1", 5, 1)), uint16(512))
	f.Add(group(1, `v { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv1", 0] } }`), uint16(8000))
	f.Add(group(1, `v { status = ["VISIBLE"] segment_count = 2 segment1 { start_extent = 0 extent_count = 4 type = "zero" } segment2 { start_extent = 4 extent_count = 1 type = "raid1" } }`), uint16(700))
	f.Fuzz(func(t *testing.T, text string, off uint16) {
		if len(text) > 8192-512 || off < 512 || off >= 8192 {
			return
		}
		d := lvmDisk(uuidA, text, int(off))
		checkLayout(t, scanBytes(t, d), d)
	})
}
