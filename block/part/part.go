// Package part tells what is on disks: partitions (MBR, GPT), LVM2 volumes, and
// by its magic numbers what lies in each: a file system, swap, a member of
// something larger, something encrypted, or nothing that is known.
//
// All of it was written by the guest. What claims more than there is, or
// contradicts itself, becomes one of the Layout's Problems. Nothing is ever
// taken for an image format, whatever it looks like: a disk is raw bytes.
package part

import (
	"fmt"
	"strings"

	"vmscope/block"
)

// Disk is a disk to be scanned.
type Disk struct {
	Name string // as its volumes are to be named after: "vda"
	Dev  block.Device
	// SectorSize is the logical sector of the disk in bytes, in which tables count. 0: as a GPT says, else 512.
	SectorSize int
}

// Layout is what was found on a number of disks.
type Layout struct {
	Disks   []Table // in the order of the disks
	Volumes []Volume
	Groups  []Group
	// Problems are what contradicts itself, and what could not be read, each with its place.
	Problems []error

	devs  []block.Device
	watch [][]block.Range // by disk, in order, apart from each other
}

// Table is how one disk is divided.
type Table struct {
	Name       string
	Size       int64  // bytes
	SectorSize int    // bytes
	Type       string // "gpt", "dos", or "" where there is no table
	ID         string // the disk's GUID, or the MBR's number in hex
}

// Kind says by what a volume is cut out of disks.
type Kind string

// The kinds of volumes.
const (
	WholeDisk Kind = "disk"
	Partition Kind = "part"
	Logical   Kind = "lvm"
)

// Volume is a part of the disks that holds something of its own. Strings that
// the guest chose (labels) are bytes: quote or escape them where they are shown.
type Volume struct {
	Name string // "vda1", "nvme0n1p1", "vda" for a whole disk, "vg0/root"
	Kind Kind
	Disk int // index of its disk; -1 for a logical volume
	Size int64

	Number    int    // of a partition, as Linux counts
	PartType  string // GUID, or "0x83"
	PartUUID  string // GUID; of an MBR "12345678-01"
	PartLabel string // GPT only
	LVUUID    string // of a logical volume

	Content
	// Unmapped says why Segments are not known, or not complete: "thin", "raid1", "a physical volume is missing". Empty
	// for a volume that can be read.
	Unmapped string
	Segments []block.Segment // Legs count the disks
}

// Map tells where the volume's bytes are; an error if that is not known.
func (v *Volume) Map() (*block.Map, error) {
	if v.Segments == nil {
		return nil, fmt.Errorf("%s cannot be read: %s", v.Name, v.Unmapped)
	}
	return block.NewMap(v.Segments)
}

// Called reports whether a user may mean the volume by name: "vda1", "/dev/vda1", "vg0/root", the UUID or label of what is on
// it or of its partition, also with the key that fstab has before these ("LABEL=root").
func (v *Volume) Called(name string) bool {
	key, value, ok := strings.Cut(name, "=")
	switch {
	case name == v.Name || name == "/dev/"+v.Name:
		return true
	case ok && strings.EqualFold(key, "UUID"):
		return strings.EqualFold(value, v.UUID)
	case ok && strings.EqualFold(key, "LABEL"):
		return value == v.Label
	case ok && strings.EqualFold(key, "PARTUUID"):
		return strings.EqualFold(value, v.PartUUID)
	case ok && strings.EqualFold(key, "PARTLABEL"):
		return value == v.PartLabel
	}
	return v.UUID != "" && strings.EqualFold(name, v.UUID) || v.Label != "" && name == v.Label ||
		v.PartUUID != "" && strings.EqualFold(name, v.PartUUID) || v.PartLabel != "" && name == v.PartLabel
}

// Group is an LVM2 volume group.
type Group struct {
	Name, UUID string
	Sequence   uint64   // rises with each change
	Extent     int64    // bytes
	Volumes    []string // all visible ones
	Missing    []string // UUIDs of physical volumes that are on none of the disks
}

// Open reads a volume of the layout.
func (l *Layout) Open(v *Volume) (block.Device, error) {
	m, err := v.Map()
	if err != nil {
		return nil, err
	}
	return block.NewVolume(m, l.devs), nil
}

// Stale reports whether a write changes what the layout was found by: a
// partition table, a volume group's metadata, or the place where a volume that
// holds nothing known would begin. It costs nothing: it may be asked for each write.
func (l *Layout) Stale(disk int, w *block.Write) bool {
	if disk < 0 || disk >= len(l.watch) || w.Len <= 0 {
		return false
	}
	list := l.watch[disk]
	lo, hi := 0, len(list)
	for lo < hi { // the first range that ends behind the write's start
		mid := int(uint(lo+hi) >> 1)
		if list[mid].End() > w.Off {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo < len(list) && list[lo].Off < w.End()
}

// Watched lists the ranges of a disk that Stale looks at.
func (l *Layout) Watched(disk int) []block.Range { return l.watch[disk] }

// Lookup finds a volume by its name.
func (l *Layout) Lookup(name string) (*Volume, bool) {
	for i := range l.Volumes {
		if l.Volumes[i].Name == name {
			return &l.Volumes[i], true
		}
	}
	return nil, false
}
