package part_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/mem"
)

// dos writes a table's sector: entries of type, first sector, count.
func dos(p []byte, entries ...[3]uint32) {
	le := binary.LittleEndian
	le.PutUint32(p[440:], 0xcafe)
	for i, e := range entries {
		b := p[446+16*i:]
		b[4] = byte(e[0])
		le.PutUint32(b[8:], e[1])
		le.PutUint32(b[12:], e[2])
	}
	p[510], p[511] = 0x55, 0xaa
}

// scanBytes scans a disk in memory; it must end soon whatever it holds.
func scanBytes(t *testing.T, disks ...[]byte) *part.Layout {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var list []part.Disk
	for i, d := range disks {
		list = append(list, part.Disk{Name: fmt.Sprintf("nvme%dn1", i), Dev: block.Bytes(d)})
	}
	l, err := part.Scan(ctx, list...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func names(l *part.Layout) string {
	var out []string
	for _, v := range l.Volumes {
		out = append(out, fmt.Sprintf("%s:%s", v.Name, v.Type))
	}
	return strings.Join(out, " ")
}

func TestHostileMBR(t *testing.T) {
	disk := func(f func(d []byte)) []byte {
		d := make([]byte, 1<<20)
		f(d)
		return d
	}
	for _, c := range []struct {
		name, want string
		problems   int
		disk       []byte
	}{
		{"behind the end", "nvme0n1:empty", 1, disk(func(d []byte) { dos(d, [3]uint32{0x83, 5000, 1}) })},
		{"over the end", "nvme0n1p2:empty", 1, disk(func(d []byte) { dos(d, [3]uint32{0x83, 1000, 1 << 31}, [3]uint32{0x83, 10, 10}) })},
		{"a loop", "nvme0n1p1:extended nvme0n1p5:empty", 1, disk(func(d []byte) {
			dos(d, [3]uint32{5, 100, 1000})
			dos(d[100*512:], [3]uint32{0x83, 1, 10}, [3]uint32{5, 0, 100})
		})},
		{"a longer loop", "nvme0n1p1:extended nvme0n1p5:empty nvme0n1p6:empty", 1, disk(func(d []byte) {
			dos(d, [3]uint32{5, 100, 1000})
			dos(d[100*512:], [3]uint32{0x83, 1, 10}, [3]uint32{5, 50, 100})
			dos(d[150*512:], [3]uint32{0x83, 1, 10}, [3]uint32{5, 0, 100})
		})},
		{"a link out", "nvme0n1p1:extended nvme0n1p5:empty", 1, disk(func(d []byte) {
			dos(d, [3]uint32{5, 100, 100})
			dos(d[100*512:], [3]uint32{0x83, 1, 10}, [3]uint32{5, 500, 100})
		})},
		{"a link to nothing", "nvme0n1p1:extended nvme0n1p5:empty", 1, disk(func(d []byte) {
			dos(d, [3]uint32{5, 100, 1000})
			dos(d[100*512:], [3]uint32{0x83, 1, 10}, [3]uint32{5, 500, 100})
		})},
		{"nothing in it", "nvme0n1p1:extended", 0, disk(func(d []byte) { dos(d, [3]uint32{5, 100, 1000}) })},
		{"protective only", "nvme0n1:empty", 1, disk(func(d []byte) { dos(d, [3]uint32{0xee, 1, 2000}) })},
		{"code, not a table", "nvme0n1:unknown", 0, disk(func(d []byte) { dos(d, [3]uint32{0x83, 10, 10}); d[446] = 0x12 })},
		{"no entries", "nvme0n1:unknown", 0, disk(func(d []byte) { dos(d) })},
		{"an image format", "nvme0n1:unknown", 0, disk(func(d []byte) { copy(d, "QFI\xfb\x00\x00\x00\x03") })},
	} {
		l := scanBytes(t, c.disk)
		if got := names(l); got != c.want || len(l.Problems) != c.problems {
			t.Errorf("%s: %s, want %s; %d problems: %v", c.name, got, c.want, len(l.Problems), l.Problems)
		}
		for _, err := range l.Problems {
			if !errors.Is(err, mem.ErrInconsistent) {
				t.Errorf("%s: %v is not inconsistent", c.name, err)
			}
		}
	}
}

// An MBR on a disk of large sectors counts in these; nothing but what is found there tells.
func TestMBRLargeSectors(t *testing.T) {
	d := make([]byte, 8<<20)
	dos(d, [3]uint32{5, 256, 1000}, [3]uint32{0x83, 10, 100})
	dos(d[256*4096:], [3]uint32{0x82, 1, 100})
	copy(d[10*4096:], "LUKS\xba\xbe\x00\x01")
	l := scanBytes(t, d)
	if got := names(l); got != "nvme0n1p1:extended nvme0n1p2:crypto_LUKS nvme0n1p5:empty" || l.Disks[0].SectorSize != 4096 || l.Volumes[1].Size != 100*4096 {
		t.Errorf("%s, %+v", got, l.Disks)
	}
	copy(d[10*512:], "LUKS\xba\xbe\x00\x01") // what is where smaller sectors would have it counts more
	if l := scanBytes(t, d); l.Disks[0].SectorSize != 512 {
		t.Errorf("%s, %+v", names(l), l.Disks)
	}
}

// A chain of as many links as there is room for ends.
func TestLongChain(t *testing.T) {
	d := make([]byte, 1<<20)
	dos(d, [3]uint32{5, 1, 2047})
	for i := uint32(1); i < 2000; i++ {
		dos(d[i*512:], [3]uint32{}, [3]uint32{5, i, 1})
	}
	if l := scanBytes(t, d); len(l.Problems) != 1 {
		t.Errorf("%s, %v", names(l), l.Problems)
	}
}

// gpt writes a GPT with one entry, as change makes it, and sound checksums.
func gpt(d []byte, change func(header, entry []byte)) {
	le := binary.LittleEndian
	dos(d, [3]uint32{0xee, 1, uint32(len(d)/512 - 1)})
	h, e := d[512:1024], d[1024:1024+128*4]
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], uint64(len(d)/512-1))
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 4)
	le.PutUint32(h[84:], 128)
	e[0] = 1
	le.PutUint64(e[32:], 100)
	le.PutUint64(e[40:], 199)
	change(h, e)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(e))
	le.PutUint32(h[16:], 0)
	n := le.Uint32(h[12:])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(n, 512)]))
}

func TestHostileGPT(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(h, e []byte){
		"short header":   func(h, _ []byte) { le.PutUint32(h[12:], 16) },
		"long header":    func(h, _ []byte) { le.PutUint32(h[12:], 1<<31) },
		"elsewhere":      func(h, _ []byte) { le.PutUint64(h[24:], 2) },
		"many entries":   func(h, _ []byte) { le.PutUint32(h[80:], 1<<31) },
		"large entries":  func(h, _ []byte) { le.PutUint32(h[84:], 1<<31) },
		"odd entries":    func(h, _ []byte) { le.PutUint32(h[84:], 130) },
		"small entries":  func(h, _ []byte) { le.PutUint32(h[84:], 64) },
		"entries behind": func(h, _ []byte) { le.PutUint64(h[72:], 1<<63) },
		"entries at end": func(h, _ []byte) { le.PutUint64(h[72:], 2047) },
		"part behind":    func(_, e []byte) { le.PutUint64(e[32:], 1<<40); le.PutUint64(e[40:], 1<<40+5) },
		"part over end":  func(_, e []byte) { le.PutUint64(e[40:], 1<<63) },
		"part backwards": func(_, e []byte) { le.PutUint64(e[40:], 50) },
		"part empty":     func(_, e []byte) { le.PutUint64(e[40:], 99) },
		"part of all":    func(_, e []byte) { le.PutUint64(e[32:], 0); le.PutUint64(e[40:], 1<<64-1) },
	} {
		d := make([]byte, 1<<20)
		gpt(d, change)
		l := scanBytes(t, d)
		if got := names(l); got != "nvme0n1:empty" || len(l.Problems) != 1 || !errors.Is(l.Problems[0], mem.ErrInconsistent) {
			t.Errorf("%s: %s, %v", name, got, l.Problems)
		}
	}
	d := make([]byte, 1<<20)
	gpt(d, func(_, _ []byte) {})
	l := scanBytes(t, d)
	if got := names(l); got != "nvme0n1p1:empty" || len(l.Problems) != 0 {
		t.Errorf("sound: %s, %v", got, l.Problems)
	}
	for off, want := range map[int64]bool{0: true, 512: true, 1100: true, 1535: true, 100 * 512: true, 100*512 + 9000: false, 300 * 512: false, 1<<20 - 1: true, 1 << 20: false} {
		if l.Stale(0, &block.Write{Op: block.OpWrite, Off: off, Len: 1}) != want {
			t.Errorf("write at %d: stale is not %v", off, want)
		}
	}
	if l.Stale(0, &block.Write{Op: block.OpFlush}) || l.Stale(1, &block.Write{Op: block.OpWrite, Len: 1}) {
		t.Error("stale by a flush, or by a disk that is not there")
	}
}

// lvmSum is LVM's checksum.
func lvmSum(p []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, p) }

// lvmDisk is a physical volume with the text given, in an area of 8 KiB at 4096.
func lvmDisk(uuid, text string, off int) []byte {
	const areaOff, areaLen = 4096, 8192
	le := binary.LittleEndian
	sum := lvmSum
	d := make([]byte, 4<<20)
	l := d[512:1024]
	copy(l, "LABELONE")
	le.PutUint64(l[8:], 1)
	le.PutUint32(l[20:], 32)
	copy(l[24:], "LVM2 001")
	copy(l[32:], strings.ReplaceAll(uuid, "-", ""))
	le.PutUint64(l[64:], uint64(len(d)))
	le.PutUint64(l[72:], 1<<20)
	le.PutUint64(l[104:], areaOff)
	le.PutUint64(l[112:], areaLen)
	le.PutUint32(l[16:], sum(l[20:]))
	a := d[areaOff : areaOff+areaLen]
	copy(a[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(a[20:], 1)
	le.PutUint64(a[24:], areaOff)
	le.PutUint64(a[32:], areaLen)
	le.PutUint64(a[40:], uint64(off))
	le.PutUint64(a[48:], uint64(len(text)))
	le.PutUint32(a[56:], sum([]byte(text)))
	for i := range len(text) {
		at := off + i
		if at >= areaLen {
			at -= areaLen - 512
		}
		a[at] = text[i]
	}
	le.PutUint32(a, sum(a[4:512]))
	return d
}

const uuidA, uuidB = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA", "BBBBBB-BBBB-BBBB-BBBB-BBBB-BBBB-BBBBBB"

// group is a text of a group with two physical volumes, and the volumes given.
func group(seq int, volumes string) string {
	return fmt.Sprintf(`# comment }{
vg0 { id = "GGGGGG" seqno = %d extent_size = 128 status = ["READ", "WRITE"] tags = ["a\"b"]
physical_volumes {
 pv0 { id = "%s" pe_start = 2048 pe_count = 48 }
 pv1 { id = "%s" pe_start = 2048 pe_count = 48 } }
logical_volumes { %s } }
contents = "Text Format Volume Group"
version = 1
`, seq, uuidA, uuidB, volumes)
}

// plain is a linear volume.
func plain(name, pv string, first, count int) string {
	return fmt.Sprintf(`%s { id = "x" status = ["READ", "VISIBLE"] segment_count = 1
 segment1 { start_extent = 0 extent_count = %d type = "striped" stripe_count = 1 stripes = ["%s", %d] } }
`, name, count, pv, first)
}

func TestLVMText(t *testing.T) {
	seg := func(s string) string {
		return `v { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 ` + s + ` } }`
	}
	for _, c := range []struct {
		name, volumes, want string
		problems            int
	}{
		{"linear", plain("a", "pv0", 0, 48) + plain("b-c", "pv1", 5, 1), "vg0/a:3145728 vg0/b-c:65536", 0},
		{"hidden", strings.ReplaceAll(plain("a_rimage_0", "pv0", 0, 4), `, "VISIBLE"`, ""), "", 0},
		{"raid", seg(`type = "raid1" device_count = 2 raids = ["a", "b"]`), "vg0/v:raid1", 0},
		{"thin", seg(`type = "thin" thin_pool = "p" device_id = 1`), "vg0/v:thin", 0},
		{"snapshot", plain("o", "pv0", 0, 4) + strings.ReplaceAll(plain("s", "pv0", 8, 4), `, "VISIBLE"`, "") + `snapshot0 { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "snapshot" chunk_size = 8 origin = "o" cow_store = "s" } }`,
			"vg0/o:262144 vg0/s:snapshot", 0},
		{"stripes", seg(`type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv1", 0]`), "vg0/v:262144", 0},
		{"zero", seg(`type = "zero"`), "vg0/v:262144", 0},
		{"behind the end", plain("a", "pv0", 47, 2), "vg0/a:its metadata contradict themselves", 1},
		{"huge", plain("a", "pv0", 0, 1<<62), "vg0/a:its metadata contradict themselves", 1},
		{"unknown pv", plain("a", "pv7", 0, 1), "vg0/a:its metadata contradict themselves", 1},
		{"negative", plain("a", "pv0", -4, 1), "vg0/a:its metadata contradict themselves", 1},
		{"odd stripes", seg(`type = "striped" stripe_count = 2 stripe_size = 7 stripes = ["pv0", 0, "pv1", 0]`), "vg0/v:its metadata contradict themselves", 1},
		{"stripes overlap", seg(`type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv0", 1]`), "vg0/v:its metadata contradict themselves", 1},
		{"no stripes", seg(`type = "striped" stripe_count = 2`), "vg0/v:its metadata contradict themselves", 1},
		{"segments missing", `v { status = ["VISIBLE"] segment_count = 9 }`, "vg0/v:its metadata contradict themselves", 1},
		{"a bad name", plain("../a", "pv0", 0, 1), "", 1},
		{"deep", strings.Repeat("a {", 100), "", 2},
		{"not closed", `a = "`, "", 2},
		{"no list", `a = [ 1 2 ]`, "", 2},
	} {
		text := group(1, c.volumes)
		// The text goes around in one of the areas.
		l := scanBytes(t, lvmDisk(uuidA, text, 512), lvmDisk(uuidB, text, 8192-300))
		var got []string
		for _, v := range l.Volumes {
			if v.Kind != part.Logical {
				continue
			}
			how := v.Unmapped
			if how == "" {
				how = fmt.Sprint(v.Size)
			}
			got = append(got, v.Name+":"+how)
		}
		if g := strings.Join(got, " "); g != c.want || len(l.Problems) != c.problems {
			t.Errorf("%s: %q, want %q; %d problems: %v", c.name, g, c.want, len(l.Problems), l.Problems)
		}
	}
}

// The copy with the highest number counts; what is damaged does not.
func TestLVMCopies(t *testing.T) {
	a, b := lvmDisk(uuidA, group(7, plain("old", "pv0", 0, 1)), 512), lvmDisk(uuidB, group(8, plain("new", "pv0", 0, 1)), 1024)
	l := scanBytes(t, a, b)
	if _, ok := l.Lookup("vg0/new"); !ok || len(l.Groups) != 1 || l.Groups[0].Sequence != 8 || !slices.Equal(l.Groups[0].Volumes, []string{"vg0/new"}) {
		t.Errorf("%s, %+v", names(l), l.Groups)
	}
	b[4096+1024+50] ^= 1
	l = scanBytes(t, a, b)
	if _, ok := l.Lookup("vg0/old"); !ok || len(l.Problems) != 1 {
		t.Errorf("%s, %v", names(l), l.Problems)
	}
	l = scanBytes(t, a) // alone
	if v, ok := l.Lookup("vg0/old"); !ok || v.Unmapped != "" || !slices.Equal(l.Groups[0].Missing, []string{uuidB}) {
		t.Errorf("%s, %+v", names(l), l.Groups)
	}
}

// BenchmarkStale asks for each write what a watcher asks.
func BenchmarkStale(b *testing.B) {
	d := make([]byte, 4<<20)
	gpt(d, func(_, _ []byte) {})
	l, err := part.Scan(b.Context(), part.Disk{Name: "vda", Dev: block.Bytes(d)})
	if err != nil {
		b.Fatal(err)
	}
	w := block.Write{Op: block.OpWrite, Len: 4096}
	b.ReportAllocs()
	for b.Loop() {
		w.Off = (w.Off + 5*4096) % (4 << 20)
		l.Stale(0, &w)
	}
}
