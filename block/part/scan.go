package part

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"vmscope/block"
	"vmscope/mem"
)

// maxProblems bounds what a hostile disk can make us say.
const maxProblems = 100

// scanner is one scan at work.
type scanner struct {
	ctx    context.Context
	layout *Layout
	pvs    []physical
}

// Scan finds out what is on the disks, all together: a volume group may lie on
// several. The error is the context's; what else went wrong is among the
// Problems of the Layout.
func Scan(ctx context.Context, disks ...Disk) (*Layout, error) {
	s := &scanner{ctx: ctx, layout: &Layout{watch: make([][]block.Range, len(disks))}}
	for i, d := range disks {
		s.layout.devs = append(s.layout.devs, d.Dev)
		t := Table{Name: d.Name, Size: d.Dev.Size(), SectorSize: d.SectorSize}
		s.layout.Disks = append(s.layout.Disks, t)
		s.disk(i)
		if err := ctx.Err(); err != nil {
			return s.layout, err
		}
	}
	s.groups()
	for i := range s.layout.watch {
		s.layout.watch[i] = joined(s.layout.watch[i])
	}
	return s.layout, ctx.Err()
}

// problem notes what is wrong on a disk.
func (s *scanner) problem(disk int, err error) {
	if len(s.layout.Problems) < maxProblems {
		s.layout.Problems = append(s.layout.Problems, fmt.Errorf("%s: %w", s.layout.Disks[disk].Name, err))
	}
}

// inconsistent is an error of something that a guest's disk says of itself.
func inconsistent(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, mem.ErrInconsistent)...)
}

// stale makes writes to a range of a disk mean that the layout is to be found anew.
func (s *scanner) stale(disk int, off, n int64) {
	off = max(off, 0)
	if n = min(n, s.layout.Disks[disk].Size-off); n > 0 {
		s.layout.watch[disk] = append(s.layout.watch[disk], block.Range{Off: off, Len: n})
	}
}

// joined sorts ranges and joins those that touch.
func joined(list []block.Range) []block.Range {
	slices.SortFunc(list, func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) })
	var out []block.Range
	for _, r := range list {
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].Len, r.End()-out[n-1].Off)
			continue
		}
		out = append(out, r)
	}
	return out
}

// disk scans one disk.
func (s *scanner) disk(i int) {
	d := &s.layout.Disks[i]
	dev := s.layout.devs[i]
	sector := max(d.SectorSize, 512)
	whole, err := Identify(dev)
	if err != nil {
		s.problem(i, err)
	}
	s.stale(i, 0, int64(sector))
	var parts []Volume
	// A boot sector of these begins where a table would: what stands there is code.
	if !slices.Contains([]string{"vfat", "exfat", "ntfs", "BitLocker"}, whole.Type) {
		parts = s.table(i, dev)
	}
	if d.SectorSize == 0 {
		d.SectorSize = 512
	}
	if d.Type == "" || len(parts) == 0 || whole.Type == "iso9660" {
		v := Volume{Name: d.Name, Kind: WholeDisk, Disk: i, Size: d.Size, Content: whole}
		if d.Type != "" && !whole.Known() {
			v.Content = Content{Type: Empty} // of partitions
		}
		s.add(v, 0)
	}
	for _, v := range parts {
		if s.ctx.Err() != nil {
			return
		}
		off := v.Segments[0].Legs[0].Off
		if v.Type != Extended {
			sec, err := block.NewSection(dev, off, v.Size)
			if err == nil {
				v.Content, err = Identify(sec)
			}
			if err != nil {
				s.problem(i, fmt.Errorf("%s: %w", v.Name, err))
			}
		}
		s.add(v, off)
	}
}

// add lists a volume that lies in one piece on a disk from off on.
func (s *scanner) add(v Volume, off int64) {
	if v.Size > 0 {
		v.Segments = []block.Segment{{Len: v.Size, Legs: []block.Leg{{Disk: v.Disk, Off: off}}}}
	} else {
		v.Unmapped = "it is empty"
	}
	if v.Type == PhysicalVolume {
		s.physical(v.Disk, off, v.Size)
	}
	s.stalePlaces(&v)
	s.layout.Volumes = append(s.layout.Volumes, v)
}

// stalePlaces watches where something new would begin in a volume that holds
// nothing known. A file system that is known writes there all the time.
func (s *scanner) stalePlaces(v *Volume) {
	if v.Type != Empty && v.Type != Unknown && v.Type != "swap" {
		return
	}
	for _, r := range []block.Range{{Off: 0, Len: 8192}, {Off: 32768, Len: 4096}, {Off: 65536, Len: 4096}} {
		for _, seg := range v.Segments {
			if len(seg.Legs) == 0 || seg.Legs[0].Disk < 0 {
				continue
			}
			// The first leg of a stripe is near enough: what begins a file system lies in its first chunk or two.
			if at := r.Off - seg.Start; at >= 0 && at < seg.Len/int64(len(seg.Legs)) {
				s.stale(seg.Legs[0].Disk, seg.Legs[0].Off+at, r.Len)
			}
		}
	}
}

// table reads the partition table of a disk, if it has one.
func (s *scanner) table(i int, dev block.Device) []Volume {
	d := &s.layout.Disks[i]
	p := make([]byte, 512)
	if d.Size < int64(len(p)) {
		return nil
	}
	if err := block.ReadFull(dev, p, 0); err != nil {
		return nil // Identify has told
	}
	m, ok := parseMBR(p)
	if !ok {
		return nil
	}
	if m.protective() {
		d.Type = "gpt"
		s.stale(i, 0, 4096)
		return s.gpt(i, dev)
	}
	if m.empty() {
		return nil
	}
	if d.SectorSize == 0 && !known(dev, m, 512) && known(dev, m, 4096) {
		d.SectorSize = 4096 // an MBR does not tell
	}
	d.Type = "dos"
	d.ID = fmt.Sprintf("%08x", m.id)
	return s.dos(i, dev, m)
}

// known reports whether any of a table's partitions holds something known, if it
// counts in sectors of so many bytes.
func known(dev block.Device, m mbr, sector int64) bool {
	for _, e := range m.slots {
		if !e.used() || e.extended() {
			continue
		}
		sec, err := block.NewSection(dev, int64(e.first)*sector, int64(e.count)*sector)
		if err != nil {
			continue
		}
		if c, err := Identify(sec); err == nil && c.Known() {
			return true
		}
	}
	return false
}

// partName is what Linux calls partition n of a disk.
func partName(disk string, n int) string {
	if disk != "" && disk[len(disk)-1] >= '0' && disk[len(disk)-1] <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(n)
}

// partition makes the volume of a table's entry, in sectors; an error if the
// disk does not have them.
func (s *scanner) partition(disk, number int, first, count uint64, sector int64) (Volume, error) {
	d := &s.layout.Disks[disk]
	all := uint64(d.Size / sector)
	if first >= all || count == 0 || count > all-first {
		return Volume{}, inconsistent("partition %d: %d sectors from %d on, of %d", number, count, first, all)
	}
	v := Volume{Name: partName(d.Name, number), Kind: Partition, Disk: disk, Number: number, Size: int64(count) * sector}
	v.Segments = []block.Segment{{Len: v.Size, Legs: []block.Leg{{Disk: disk, Off: int64(first) * sector}}}}
	return v, nil
}

// guid prints a GUID as GPT stores it.
func guid(p []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(p), le.Uint16(p[4:]), le.Uint16(p[6:]), p[8:10], p[10:16])
}

// isEOF reports whether a device has less than it said: not worth a problem of its own.
func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
