package part

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmscope/block"
)

// Content is what lies in a volume, by its magic numbers, named as blkid does.
type Content struct {
	Type    string // "ext4", "swap", "crypto_LUKS", …
	Version string // where the type has several: "1", "2", "FAT32"
	UUID    string
	Label   string // bytes that the guest chose
}

// Types that need not be a file system's name.
const (
	Empty          = "empty"    // zeros wherever anything would be
	Unknown        = "unknown"  // data, but nothing that is known
	Extended       = "extended" // holds the logical partitions
	PhysicalVolume = "LVM2_member"
)

// Known reports whether the content was recognized.
func (c *Content) Known() bool { return c.Type != "" && c.Type != Empty && c.Type != Unknown }

// probe reads the places where magic numbers are. What lies outside of the
// device reads as nothing.
type probe struct {
	dev   block.Device
	size  int64
	start []byte // the first bytes, read at once
	err   error  // the first failure of the device
}

// startLen covers all superblocks but those of btrfs and zfs, and those at the end.
const startLen = 68 << 10

// at gives n bytes from off on, or nil. They are valid until the next call.
func (p *probe) at(off int64, n int) []byte {
	if off < 0 || off > p.size || int64(n) > p.size-off {
		return nil
	}
	if end := off + int64(n); end <= int64(len(p.start)) {
		return p.start[off:end:end]
	}
	b := make([]byte, n)
	if err := block.ReadFull(p.dev, b, off); err != nil {
		if p.err == nil && !isEOF(err) {
			p.err = err
		}
		return nil
	}
	return b
}

// has reports whether magic stands at off.
func (p *probe) has(off int64, magic string) bool {
	b := p.at(off, len(magic))
	return b != nil && string(b) == magic
}

// identifiers try one kind of content each. Members of something larger come
// first: the file system that a mirror's half seems to hold is not to be taken for one.
var identifiers = []func(*probe) (Content, bool){
	luks, bitlocker, lvm2, md, xfs, ext, btrfs, swap, squashfs, f2fs, erofs, bcachefs, iso9660, exfat, ntfs, vfat, zfs,
}

// Identify tells what lies on a device, or in a part of one. An error is one of
// the device: what the content says of itself never is.
func Identify(dev block.Device) (Content, error) {
	p := &probe{dev: dev, size: dev.Size()}
	n := min(p.size, startLen)
	p.start = p.at(0, int(n))
	for _, f := range identifiers {
		if c, ok := f(p); ok {
			return c, p.err
		}
	}
	if p.err != nil {
		return Content{Type: Unknown}, fmt.Errorf("identify: %w", p.err)
	}
	if p.empty() {
		return Content{Type: Empty}, nil
	}
	return Content{Type: Unknown}, nil
}

// empty looks at the start, at the end, and at some places between.
func (p *probe) empty() bool {
	const n = 4096
	for i := range int64(16) {
		b := p.at((p.size-n)/15*i, n)
		if b == nil {
			b = p.at(0, int(p.size)) // smaller than one place
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			return false
		}
		if p.size < n {
			break
		}
	}
	return len(bytes.Trim(p.start, "\x00")) == 0
}

// uuid prints 16 bytes; all zeros are none.
func uuid(p []byte) string {
	if [16]byte(p) == [16]byte{} {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", p[:4], p[4:6], p[6:8], p[8:10], p[10:16])
}

// text gives the bytes up to the first NUL.
func text(p []byte) string {
	s, _, _ := bytes.Cut(p, []byte{0})
	return string(s)
}

// padded is text that ends in spaces.
func padded(p []byte) string { return string(bytes.TrimRight([]byte(text(p)), " ")) }

func luks(p *probe) (Content, bool) {
	b := p.at(0, 512)
	if b == nil || string(b[:6]) != "LUKS\xba\xbe" {
		return Content{}, false
	}
	c := Content{Type: "crypto_LUKS", Version: fmt.Sprint(binary.BigEndian.Uint16(b[6:])), UUID: text(b[168:208])}
	if c.Version == "2" {
		c.Label = text(b[24:72])
	}
	return c, true
}

func bitlocker(p *probe) (Content, bool) {
	return Content{Type: "BitLocker"}, p.has(3, "-FVE-FS-")
}

func lvm2(p *probe) (Content, bool) {
	l, ok := findLabel(p)
	if !ok {
		return Content{}, false
	}
	return Content{Type: PhysicalVolume, UUID: lvmUUID(l.uuid)}, true
}

// swap: Linux writes the magic at the end of a page, of whatever size its pages are.
func swap(p *probe) (Content, bool) {
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		if !p.has(page-10, "SWAPSPACE2") {
			continue
		}
		b := p.at(1024, 44)
		return Content{Type: "swap", Version: "1", UUID: uuid(b[12:28]), Label: text(b[28:44])}, true
	}
	return Content{}, false
}

// md: the superblock of a Linux RAID member (drivers/md/md.c: super_1_load,
// super_90_load), which lies at its end in versions 0.90 and 1.0.
func md(p *probe) (Content, bool) {
	const magic = 0xa92b4efc
	le := binary.LittleEndian
	end := (p.size/512 - 16) &^ 7 * 512
	for _, place := range []struct {
		off     int64
		version string
	}{{end, "1.0"}, {0, "1.1"}, {4096, "1.2"}} {
		b := p.at(place.off, 256)
		if b == nil || le.Uint32(b) != magic || le.Uint32(b[4:]) != 1 || int64(le.Uint64(b[144:])) != place.off/512 {
			continue
		}
		return Content{Type: "linux_raid_member", Version: place.version, UUID: uuid(b[16:32]), Label: text(b[32:64])}, true
	}
	b := p.at(p.size&^0xffff-0x10000, 4096)
	for _, order := range []binary.ByteOrder{le, binary.BigEndian} {
		if b == nil || order.Uint32(b) != magic || order.Uint32(b[4:]) != 0 || order.Uint32(b[8:]) > 100 {
			continue
		}
		id := make([]byte, 16)
		for i, off := range []int{20, 52, 56, 60} {
			binary.BigEndian.PutUint32(id[4*i:], order.Uint32(b[off:]))
		}
		return Content{Type: "linux_raid_member", Version: fmt.Sprintf("0.%d.%d", order.Uint32(b[8:]), order.Uint32(b[12:])), UUID: uuid(id)}, true
	}
	return Content{}, false
}

// zfs: the array of uberblocks of the first label; several, since a single
// magic number is soon there by chance or left over.
func zfs(p *probe) (Content, bool) {
	const magic = 0x00bab10c
	b := p.at(128<<10, 128<<10)
	n := 0
	for ; len(b) >= 1024; b = b[1024:] {
		if binary.LittleEndian.Uint64(b) == magic || binary.BigEndian.Uint64(b) == magic {
			n++
		}
	}
	return Content{Type: "zfs_member"}, n >= 4
}
