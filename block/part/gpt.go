package part

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"vmscope/block"
)

// Bounds of a GPT (UEFI specification, section 5.3).
const (
	gptHeaderLen  = 92
	gptEntryLen   = 128     // at least, and a power of two times it
	maxGPTEntries = 1 << 20 // bytes of the array; by the specification 16 KiB at least
	maxPartitions = 256     // as many as Linux takes
)

// gptHeader is what a header says, in sectors.
type gptHeader struct {
	self, other uint64
	guid        string
	entries     uint64
	count, size uint32
	crc         uint32
}

// gpt lists the partitions of a GPT: by its first header, or by the backup at
// the disk's end where the first one is damaged.
func (s *scanner) gpt(disk int, dev block.Device) []Volume {
	d := &s.layout.Disks[disk]
	sizes := []int64{512, 4096}
	if d.SectorSize != 0 {
		sizes = []int64{int64(d.SectorSize)}
	}
	var first error
	for _, backup := range []bool{false, true} {
		for _, sector := range sizes {
			at := uint64(1)
			if backup {
				at = uint64(d.Size/sector) - 1
			}
			h, array, err := readGPT(dev, at, sector)
			if err != nil {
				if first == nil {
					first = err
				}
				continue
			}
			if backup {
				s.problem(disk, fmt.Errorf("the first GPT is damaged, the backup is sound: %w", first))
			}
			d.SectorSize, d.ID = int(sector), h.guid
			s.gptStale(disk, h, sector)
			return s.gptParts(disk, h, array, sector)
		}
	}
	s.problem(disk, fmt.Errorf("no sound GPT: %w", first))
	return nil
}

// gptStale watches both headers and both arrays.
func (s *scanner) gptStale(disk int, h gptHeader, sector int64) {
	d := &s.layout.Disks[disk]
	array := int64(h.count) * int64(h.size)
	all := uint64(d.Size / sector)
	for _, at := range []uint64{1, h.self, h.other} {
		if at < all {
			s.stale(disk, int64(at)*sector, sector)
		}
	}
	s.stale(disk, int64(h.entries)*sector, array)
	// The backup's array lies right before it; the first one's right behind.
	s.stale(disk, d.Size-sector-array, array+sector)
	s.stale(disk, 2*sector, array)
}

// readGPT reads the header in a sector, and its array of entries.
func readGPT(dev block.Device, at uint64, sector int64) (gptHeader, []byte, error) {
	var h gptHeader
	all := uint64(dev.Size() / sector)
	if at >= all || all < 6 {
		return h, nil, inconsistent("a GPT on %d sectors", all)
	}
	p := make([]byte, sector)
	if err := block.ReadFull(dev, p, int64(at)*sector); err != nil {
		return h, nil, fmt.Errorf("GPT header: %w", err)
	}
	le := binary.LittleEndian
	if !bytes.Equal(p[:8], []byte("EFI PART")) {
		return h, nil, inconsistent("no GPT header in sector %d", at)
	}
	n := le.Uint32(p[12:])
	if n < gptHeaderLen || int64(n) > sector {
		return h, nil, inconsistent("GPT header of %d bytes in sector %d", n, at)
	}
	want := le.Uint32(p[16:])
	clear(p[16:20])
	if got := crc32.ChecksumIEEE(p[:n]); got != want {
		return h, nil, inconsistent("GPT header in sector %d has checksum %#x, not %#x", at, got, want)
	}
	h = gptHeader{self: le.Uint64(p[24:]), other: le.Uint64(p[32:]), guid: guid(p[56:]), entries: le.Uint64(p[72:]),
		count: le.Uint32(p[80:]), size: le.Uint32(p[84:]), crc: le.Uint32(p[88:])}
	array := uint64(h.count) * uint64(h.size) // of two 32-bit numbers: does not run over
	switch {
	case h.self != at:
		return h, nil, inconsistent("GPT header in sector %d says that it is in sector %d", at, h.self)
	case h.size < gptEntryLen || h.size&(h.size-1) != 0 || array > maxGPTEntries:
		return h, nil, inconsistent("GPT of %d entries of %d bytes", h.count, h.size)
	case h.entries >= all || array > (all-h.entries)*uint64(sector):
		return h, nil, inconsistent("GPT entries from sector %d on, of %d", h.entries, all)
	}
	b := make([]byte, array)
	if err := block.ReadFull(dev, b, int64(h.entries)*sector); err != nil {
		return h, nil, fmt.Errorf("GPT entries: %w", err)
	}
	if got := crc32.ChecksumIEEE(b); got != h.crc {
		return h, nil, inconsistent("GPT entries have checksum %#x, not %#x", got, h.crc)
	}
	return h, b, nil
}

// gptParts lists the partitions of an array of entries.
func (s *scanner) gptParts(disk int, h gptHeader, array []byte, sector int64) []Volume {
	le := binary.LittleEndian
	var out []Volume
	for i := range int(h.count) {
		e := array[i*int(h.size):][:gptEntryLen]
		if [16]byte(e) == [16]byte{} {
			continue
		}
		if len(out) == maxPartitions {
			s.problem(disk, inconsistent("more than %d partitions", maxPartitions))
			break
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		v, err := s.partition(disk, i+1, first, last-first+1, sector)
		if err != nil {
			s.problem(disk, err)
			continue
		}
		v.PartType, v.PartUUID, v.PartLabel = guid(e), guid(e[16:]), utf16Text(e[56:], le)
		out = append(out, v)
	}
	return out
}

// utf16Text decodes text that ends at its first NUL.
func utf16Text(p []byte, order binary.ByteOrder) string {
	var u []uint16
	for ; len(p) >= 2; p = p[2:] {
		c := order.Uint16(p)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
