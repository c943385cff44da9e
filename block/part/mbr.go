package part

import (
	"encoding/binary"
	"fmt"

	"vmscope/block"
)

// The types of partitions of an MBR that mean something to us.
const (
	typeExtended      = 0x05
	typeExtendedLBA   = 0x0f
	typeExtendedLinux = 0x85
	typeProtective    = 0xee
)

// maxLogical bounds the chain of logical partitions; Linux ends at 100.
const maxLogical = 100

// slot is one of the four entries of a table's sector.
type slot struct {
	typ          uint8
	first, count uint32 // sectors
}

func (s slot) used() bool { return s.typ != 0 && s.count != 0 }

func (s slot) extended() bool {
	return s.typ == typeExtended || s.typ == typeExtendedLBA || s.typ == typeExtendedLinux
}

// mbr is a sector with a table of four partitions: the first of the disk, or
// one of the chain of logical partitions.
type mbr struct {
	id    uint32
	slots [4]slot
}

// parseMBR decodes a sector, and tells whether it holds a table: the signature
// is there, and no entry's first byte is other than "active" or not. A boot
// sector without a table has the signature, too.
func parseMBR(p []byte) (mbr, bool) {
	le := binary.LittleEndian
	m := mbr{id: le.Uint32(p[440:])}
	if le.Uint16(p[510:]) != 0xaa55 {
		return m, false
	}
	for i := range m.slots {
		e := p[446+16*i:]
		if e[0]&^0x80 != 0 {
			return m, false
		}
		m.slots[i] = slot{e[4], le.Uint32(e[8:]), le.Uint32(e[12:])}
	}
	return m, true
}

// protective reports whether the table only says that there is a GPT, or, with
// other entries beside, is a hybrid that Linux reads as GPT, too.
func (m *mbr) protective() bool {
	for _, s := range m.slots {
		if s.typ == typeProtective {
			return true
		}
	}
	return false
}

func (m *mbr) empty() bool {
	for _, s := range m.slots {
		if s.used() {
			return false
		}
	}
	return true
}

// dos lists the partitions of an MBR, with the logical ones that its extended
// partition holds, numbered as Linux does (block/partitions/msdos.c).
func (s *scanner) dos(disk int, dev block.Device, m mbr) []Volume {
	sector := int64(max(s.layout.Disks[disk].SectorSize, 512))
	var out, logical []Volume
	add := func(list *[]Volume, number int, e slot, first uint64) {
		v, err := s.partition(disk, number, first, uint64(e.count), sector)
		if err != nil {
			s.problem(disk, err)
			return
		}
		v.PartType = fmt.Sprintf("0x%x", e.typ)
		v.PartUUID = fmt.Sprintf("%08x-%02x", m.id, number)
		if e.extended() {
			v.Content = Content{Type: Extended}
		}
		*list = append(*list, v)
	}
	next := 5
	for i, e := range m.slots {
		if !e.used() {
			continue
		}
		add(&out, i+1, e, uint64(e.first))
		if !e.extended() {
			continue
		}
		err := s.chain(disk, dev, e, sector, func(e slot, first uint64) {
			add(&logical, next, e, first)
			next++
		})
		if err != nil {
			s.problem(disk, fmt.Errorf("extended partition %d: %w", i+1, err))
		}
	}
	return append(out, logical...)
}

// chain walks the logical partitions of an extended one. Each link holds a
// partition, relative to itself, and the next link, relative to the whole.
func (s *scanner) chain(disk int, dev block.Device, whole slot, sector int64, add func(e slot, first uint64)) error {
	at := uint64(whole.first)
	end := at + uint64(whole.count)
	seen := map[uint64]bool{}
	p := make([]byte, 512)
	for n := 0; ; n++ {
		switch {
		case n == maxLogical:
			return inconsistent("more than %d links", maxLogical)
		case seen[at]:
			return inconsistent("the chain comes back to sector %d", at)
		}
		seen[at] = true
		if err := block.ReadFull(dev, p, int64(at)*sector); err != nil {
			return fmt.Errorf("link at sector %d: %w", at, err)
		}
		s.stale(disk, int64(at)*sector, sector)
		m, ok := parseMBR(p)
		if !ok {
			if n == 0 {
				return nil // extended, and nothing was ever made in it
			}
			return inconsistent("link at sector %d has no table", at)
		}
		for i, e := range m.slots {
			first := at + uint64(e.first)
			// Linux looks at the last two slots if what they say is possible.
			if !e.used() || e.extended() || i >= 2 && (first < uint64(whole.first) || first+uint64(e.count) > end) {
				continue
			}
			add(e, first)
		}
		link := -1
		for i, e := range m.slots {
			if e.used() && e.extended() {
				link = i
				break
			}
		}
		if link < 0 {
			return nil
		}
		at = uint64(whole.first) + uint64(m.slots[link].first)
		if at >= end {
			return inconsistent("link to sector %d, behind the partition's end", at)
		}
	}
}
