package part

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"vmscope/block"
)

// Bounds and sizes of LVM2's format (lib/format_text/layout.h, lib/label/label.h).
const (
	lvmSector    = 512
	labelSectors = 4
	areaHeader   = 512
	maxAreas     = 8       // of a physical volume; LVM makes at most two
	maxMetadata  = 4 << 20 // bytes of a volume group's text; LVM's areas have 1 MiB
	maxPhysical  = 1024    // on all disks
)

// label is what the label of a physical volume and the header behind it say.
// Offsets are bytes from the volume's start.
type label struct {
	at    int64 // of the label's sector
	uuid  [32]byte
	areas []block.Range
}

// lvmCRC is LVM's checksum: CRC-32 with a beginning of its own, not inverted.
func lvmCRC(p []byte) uint32 {
	const initial = 0xf597a6cf
	return ^crc32.Update(^uint32(initial), crc32.IEEETable, p)
}

// findLabel looks into the sectors where a label may be.
func findLabel(p *probe) (label, bool) {
	for i := range int64(labelSectors) {
		if b := p.at(i*lvmSector, lvmSector); b != nil {
			if l, ok := parseLabel(b, i); ok {
				return l, true
			}
		}
	}
	return label{}, false
}

// parseLabel decodes a sector, sector of the volume.
func parseLabel(b []byte, sector int64) (label, bool) {
	le := binary.LittleEndian
	at := le.Uint32(b[20:])
	if string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" || le.Uint64(b[8:]) != uint64(sector) ||
		le.Uint32(b[16:]) != lvmCRC(b[20:]) || at < 32 || at > lvmSector-40 {
		return label{}, false
	}
	b = b[at:]
	l := label{at: sector * lvmSector, uuid: [32]byte(b)}
	b = b[40:] // past the identity and the size
	// Two lists, each ended by zeros: where data lies (which the text says better), and where metadata does.
	for metadata := false; len(b) >= 16; b = b[16:] {
		off, n := le.Uint64(b), le.Uint64(b[8:])
		switch {
		case off == 0 && n == 0 && metadata:
			return l, true
		case off == 0 && n == 0:
			metadata = true
		case off > 1<<62 || n > 1<<62:
			return label{}, false
		case metadata && len(l.areas) < maxAreas:
			l.areas = append(l.areas, block.Range{Off: int64(off), Len: int64(n)})
		}
	}
	return label{}, false
}

// lvmUUID prints an identity as LVM does.
func lvmUUID(id [32]byte) string {
	s := ""
	for i, n := range []int{6, 4, 4, 4, 4, 4, 6} {
		if i > 0 {
			s += "-"
		}
		k := len(s) - i
		s += string(id[k : k+n])
	}
	return s
}

// physical is a physical volume that was found.
type physical struct {
	disk      int
	off, size int64 // on the disk
	uuid      string
	text      []byte // the newest metadata that it holds; nil if none
}

// physical reads a physical volume that begins at off of a disk.
func (s *scanner) physical(disk int, off, size int64) {
	if len(s.pvs) == maxPhysical {
		s.problem(disk, inconsistent("more than %d physical volumes", maxPhysical))
		return
	}
	dev, err := block.NewSection(s.layout.devs[disk], off, size)
	if err != nil {
		s.problem(disk, err)
		return
	}
	l, ok := findLabel(&probe{dev: dev, size: size})
	if !ok {
		return // it was there a moment ago: a write will make us look again
	}
	pv := physical{disk: disk, off: off, size: size, uuid: lvmUUID(l.uuid)}
	s.stale(disk, off, labelSectors*lvmSector)
	for _, a := range l.areas {
		s.stale(disk, off+a.Off, areaHeader) // every change of the text moves it, which the header tells
		text, err := readMetadata(dev, a)
		if err != nil {
			s.problem(disk, fmt.Errorf("physical volume %s: %w", pv.uuid, err))
			continue
		}
		if pv.text == nil {
			pv.text = text
		}
	}
	s.pvs = append(s.pvs, pv)
}

// readMetadata reads the text that a metadata area holds now; nil if it holds none.
func readMetadata(dev block.Device, a block.Range) ([]byte, error) {
	if a.Off < lvmSector || a.Len < 2*areaHeader || a.Off > dev.Size() || a.Len > dev.Size()-a.Off {
		return nil, inconsistent("metadata area of %d bytes at %d", a.Len, a.Off)
	}
	h := make([]byte, areaHeader)
	if err := block.ReadFull(dev, h, a.Off); err != nil {
		return nil, fmt.Errorf("metadata area at %d: %w", a.Off, err)
	}
	le := binary.LittleEndian
	switch {
	case !bytes.Equal(h[4:20], []byte(" LVM2 x[5A%r0N*>")):
		return nil, inconsistent("no metadata area at %d", a.Off)
	case le.Uint32(h) != lvmCRC(h[4:]):
		return nil, inconsistent("metadata area at %d: its checksum is wrong", a.Off)
	case le.Uint32(h[20:]) != 1 || le.Uint64(h[24:]) != uint64(a.Off) || le.Uint64(h[32:]) > uint64(a.Len):
		return nil, inconsistent("metadata area at %d: version %d, %d bytes at %d", a.Off, le.Uint32(h[20:]), le.Uint64(h[32:]), le.Uint64(h[24:]))
	}
	size := int64(le.Uint64(h[32:]))
	loc := h[40:] // of the committed text; the next one is being prepared
	off, n, sum, flags := le.Uint64(loc), le.Uint64(loc[8:]), le.Uint32(loc[16:]), le.Uint32(loc[20:])
	const ignored = 1
	if off == 0 || flags&ignored != 0 {
		return nil, nil
	}
	if off < areaHeader || off >= uint64(size) || n == 0 || n > maxMetadata || int64(n) > size-areaHeader {
		return nil, inconsistent("metadata area at %d: %d bytes of text at %d, of %d", a.Off, n, off, size)
	}
	// The text goes around from the area's end to behind the header.
	text := make([]byte, n)
	head := min(int64(n), size-int64(off))
	if err := block.ReadFull(dev, text[:head], a.Off+int64(off)); err != nil {
		return nil, fmt.Errorf("metadata at %d: %w", a.Off+int64(off), err)
	}
	if err := block.ReadFull(dev, text[head:], a.Off+areaHeader); err != nil {
		return nil, fmt.Errorf("metadata at %d: %w", a.Off+areaHeader, err)
	}
	if got := lvmCRC(text); got != sum {
		return nil, inconsistent("metadata area at %d: the text's checksum is %#x, not %#x", a.Off, got, sum)
	}
	return text, nil
}
