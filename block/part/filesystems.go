package part

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// ext: ext2, ext3, ext4, and a journal on a device of its own
// (fs/ext4/ext4.h: struct ext4_super_block). What it is called is a matter of
// its features, as for blkid.
func ext(p *probe) (Content, bool) {
	const (
		compatJournal = 0x4
		incompatExt3  = 0x2 | 0x4 | 0x10 // filetype, recover, meta_bg
		incompatDev   = 0x8
		roExt3        = 0x1 | 0x2 | 0x4 // sparse_super, large_file, btree_dir
	)
	b := p.at(1024, 1024)
	le := binary.LittleEndian
	if b == nil || le.Uint16(b[56:]) != 0xef53 || le.Uint32(b[24:]) > 6 {
		return Content{}, false
	}
	c := Content{Type: "ext4", UUID: uuid(b[104:120]), Label: text(b[120:136])}
	compat, incompat, ro := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	if le.Uint32(b[76:]) == 0 { // revision 0 has no features
		compat, incompat, ro = 0, 0, 0
	}
	switch {
	case incompat&incompatDev != 0:
		c.Type = "jbd"
	case incompat&^incompatExt3 != 0 || ro&^roExt3 != 0:
	case compat&compatJournal != 0:
		c.Type = "ext3"
	case incompat&0x4 == 0:
		c.Type = "ext2"
	}
	return c, true
}

func xfs(p *probe) (Content, bool) {
	b := p.at(0, 512)
	if b == nil || string(b[:4]) != "XFSB" || b[120] < 9 || b[120] > 16 { // log2 of the block size
		return Content{}, false
	}
	return Content{Type: "xfs", UUID: uuid(b[32:48]), Label: text(b[108:120])}, true
}

func btrfs(p *probe) (Content, bool) {
	b := p.at(64<<10, 4096)
	if b == nil || string(b[64:72]) != "_BHRfS_M" {
		return Content{}, false
	}
	return Content{Type: "btrfs", UUID: uuid(b[32:48]), Label: text(b[299:555])}, true
}

func squashfs(p *probe) (Content, bool) {
	b := p.at(0, 96)
	if b == nil || string(b[:4]) != "hsqs" {
		return Content{}, false
	}
	le := binary.LittleEndian
	return Content{Type: "squashfs", Version: fmt.Sprintf("%d.%d", le.Uint16(b[28:]), le.Uint16(b[30:]))}, true
}

func f2fs(p *probe) (Content, bool) {
	b := p.at(1024, 1148)
	if b == nil || binary.LittleEndian.Uint32(b) != 0xf2f52010 {
		return Content{}, false
	}
	return Content{Type: "f2fs", UUID: uuid(b[108:124]), Label: utf16Text(b[124:1148], binary.LittleEndian)}, true
}

func erofs(p *probe) (Content, bool) {
	b := p.at(1024, 128)
	if b == nil || binary.LittleEndian.Uint32(b) != 0xe0f5e1e2 {
		return Content{}, false
	}
	return Content{Type: "erofs", UUID: uuid(b[48:64]), Label: text(b[64:80])}, true
}

func bcachefs(p *probe) (Content, bool) {
	b := p.at(4096, 104)
	switch {
	case b == nil:
		return Content{}, false
	case string(b[24:40]) == "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81":
		return Content{Type: "bcache", UUID: uuid(b[40:56])}, true
	case string(b[24:40]) == "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef":
		return Content{Type: "bcachefs", UUID: uuid(b[56:72]), Label: text(b[72:104])}, true
	}
	return Content{}, false
}

// iso9660: the primary volume descriptor (ECMA-119, 8.4).
func iso9660(p *probe) (Content, bool) {
	b := p.at(32768, 2048)
	if b == nil || string(b[1:6]) != "CD001" {
		return Content{}, false
	}
	c := Content{Type: "iso9660", Label: padded(b[40:72])}
	// blkid makes a UUID of when it was last changed, or made: digits YYYYMMDDHHMMSScc.
	for _, off := range []int{830, 813} {
		d := b[off : off+16]
		digits := true
		for _, x := range d {
			digits = digits && x >= '0' && x <= '9'
		}
		if digits && string(d) != "0000000000000000" {
			c.UUID = fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", d[:4], d[4:6], d[6:8], d[8:10], d[10:12], d[12:14], d[14:16])
			break
		}
	}
	return c, true
}

func ntfs(p *probe) (Content, bool) {
	b := p.at(0, 512)
	if b == nil || string(b[3:11]) != "NTFS    " {
		return Content{}, false
	}
	le := binary.LittleEndian
	c := Content{Type: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b[72:]))}
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	if perCluster > 0x80 { // a power of two, as its negative logarithm
		perCluster = 1 << (256 - perCluster) & 0xffff
	}
	record := int64(int8(b[64]))
	switch {
	case sector < 256 || sector > 4096 || record < -16:
		return c, true
	case record < 0:
		record = 1 << -record
	default:
		record *= sector * perCluster
	}
	mft := int64(le.Uint64(b[48:]))
	if record < 512 || record > 64<<10 || mft <= 0 || perCluster <= 0 || mft > p.size/(sector*perCluster) {
		return c, true
	}
	// Record 3 of the table is $Volume, whose attribute 0x60 is the name.
	if r := p.at(mft*sector*perCluster+3*record, int(record)); r != nil && string(r[:4]) == "FILE" {
		c.Label = ntfsLabel(r)
	}
	return c, true
}

// ntfsLabel finds the name among the attributes of $Volume. Fixups do not
// matter for what lies within the record's first sector.
func ntfsLabel(r []byte) string {
	le := binary.LittleEndian
	for off := int(le.Uint16(r[20:])); off+24 <= len(r); {
		a := r[off:]
		n := int(le.Uint32(a[4:]))
		if n < 24 || n > len(a) || le.Uint32(a) == 0xffffffff {
			return ""
		}
		if le.Uint32(a) == 0x60 && a[8] == 0 {
			size, at := int(le.Uint32(a[16:])), int(le.Uint16(a[20:]))
			if size < 0 || at > n || size > n-at {
				return ""
			}
			return utf16Text(a[at:at+size], le)
		}
		off += n
	}
	return ""
}

func exfat(p *probe) (Content, bool) {
	b := p.at(0, 512)
	le := binary.LittleEndian
	if b == nil || string(b[3:11]) != "EXFAT   " || le.Uint16(b[510:]) != 0xaa55 {
		return Content{}, false
	}
	c := Content{Type: "exfat", UUID: serial(le.Uint32(b[100:]))}
	shift, cluster := b[108], b[109]
	if shift < 9 || shift > 12 || cluster > 25-shift {
		return c, true
	}
	heap, root := int64(le.Uint32(b[88:])), int64(le.Uint32(b[96:]))
	// The label is among the first entries of the root directory.
	dir := p.at(heap<<shift+(root-2)<<(shift+cluster), 512)
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if n := int(dir[1]); dir[0] == 0x83 && n <= 11 {
			u := make([]uint16, n)
			for i := range u {
				u[i] = le.Uint16(dir[2+2*i:])
			}
			c.Label = string(utf16.Decode(u))
			break
		}
	}
	return c, true
}

// serial prints the number of a FAT volume.
func serial(n uint32) string { return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff) }

// vfat: FAT has no magic number worth the name, so its parameters must be
// possible (fs/fat/inode.c: fat_read_bpb).
func vfat(p *probe) (Content, bool) {
	b := p.at(0, 512)
	if b == nil {
		return Content{}, false
	}
	le := binary.LittleEndian
	sector, cluster, reserved := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:]))
	fats, entries, media := int64(b[16]), int64(le.Uint16(b[17:])), b[21]
	total, fatLen := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fat32 := fatLen == 0
	if fat32 {
		fatLen = int64(le.Uint32(b[36:]))
	}
	switch {
	case b[0] != 0xe9 && (b[0] != 0xeb || b[2] != 0x90), le.Uint16(b[510:]) != 0xaa55, // a jump, and a boot sector's end
		sector < 512 || sector > 4096 || sector&(sector-1) != 0,
		cluster == 0 || cluster&(cluster-1) != 0,
		reserved == 0, fats == 0 || fats > 4, media < 0xf8 && media != 0xf0,
		fatLen == 0, total == 0, entries*32%sector != 0:
		return Content{}, false
	}
	root := reserved + fats*fatLen // sectors
	clusters := (total - root - entries*32/sector) / cluster
	if clusters <= 0 {
		return Content{}, false
	}
	c := Content{Type: "vfat"}
	var dir []byte
	if fat32 {
		c.Version, c.UUID, c.Label = "FAT32", serial(le.Uint32(b[67:])), padded(b[71:82])
		first := int64(le.Uint32(b[44:]))
		dir = p.at((root+(first-2)*cluster)*sector, int(sector*cluster))
	} else {
		c.Version, c.UUID, c.Label = "FAT16", serial(le.Uint32(b[39:])), padded(b[43:54])
		if clusters < 4085 {
			c.Version = "FAT12"
		}
		dir = p.at(root*sector, int(entries*32))
	}
	if c.Label == "NO NAME" {
		c.Label = ""
	}
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		const volume, attrs = 0x08, 0x3f
		if dir[0] != 0xe5 && dir[11]&attrs&^0x20 == volume {
			c.Label = padded(dir[:11])
			break
		}
	}
	return c, true
}
