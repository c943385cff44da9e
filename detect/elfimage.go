package detect

import (
	"encoding/binary"

	"vmscope/mem"
)

// image is what the program headers of an ELF file say, of one that is mapped
// into a process.
type image struct {
	wide     bool // 64 bits
	segments []elfSegment
}

type elfSegment struct {
	kind, flags        uint32
	offset, addr, size uint64 // size in the file
}

// Of ELF (elf(5)).
const (
	elfLoad     = 1
	elfDynamic  = 2
	elfExec     = 1
	elfWrite    = 2
	dynTextRel  = 22
	dynFlags    = 30
	flagTextRel = 4

	maxSegments = 64
	maxDynamic  = mem.PageSize
)

// parseImage reads the program headers in the first page of a file; ok is false
// if it is no ELF file or they are not there.
func parseImage(b []byte) (i image, ok bool) {
	le := binary.LittleEndian
	if len(b) < 64 || string(b[:4]) != "\x7fELF" || b[5] != 1 {
		return i, false
	}
	var at, size, n uint64
	switch b[4] {
	case 1:
		at, size, n = uint64(le.Uint32(b[28:])), uint64(le.Uint16(b[42:])), uint64(le.Uint16(b[44:]))
	case 2:
		i.wide = true
		at, size, n = le.Uint64(b[32:]), uint64(le.Uint16(b[54:])), uint64(le.Uint16(b[56:]))
	default:
		return i, false
	}
	want := uint64(32)
	if i.wide {
		want = 56
	}
	if size != want || n > maxSegments || at > uint64(len(b)) || n*size > uint64(len(b))-at {
		return i, false
	}
	for k := range n {
		h := b[at+k*size:]
		s := elfSegment{kind: le.Uint32(h)}
		if i.wide {
			s.flags, s.offset, s.addr, s.size = le.Uint32(h[4:]), le.Uint64(h[8:]), le.Uint64(h[16:]), le.Uint64(h[32:])
		} else {
			s.flags, s.offset, s.addr, s.size = le.Uint32(h[24:]), uint64(le.Uint32(h[4:])), uint64(le.Uint32(h[8:])), uint64(le.Uint32(h[16:]))
		}
		i.segments = append(i.segments, s)
	}
	return i, true
}

// harmless says why a process may itself have changed the byte of the file at
// offset, which it has at va; "" if it is code that is not to be written. Read
// fills p with what the file has at an offset, or the process at an address.
func (i image) harmless(va mem.VA, offset uint64, read func(p []byte, offset uint64, at mem.VA) bool) string {
	const page = mem.PageSize - 1
	var code *elfSegment
	for k, s := range i.segments {
		// The rest of its last page belongs to it as well.
		first, end := s.offset&^page, (s.offset+s.size+page)&^page
		if s.kind == elfLoad && s.flags&elfExec != 0 && offset >= first && offset < end {
			code = &i.segments[k]
		}
	}
	switch {
	case code == nil:
		return "the file does not have it as code"
	case code.flags&elfWrite != 0:
		return "the file has it as code and data"
	}
	bias := va - mem.VA(code.addr+offset-code.offset)
	for _, s := range i.segments {
		if s.kind != elfDynamic {
			continue
		}
		b := make([]byte, min(s.size, maxDynamic))
		if !read(b, s.offset, bias+mem.VA(s.addr)) {
			return "whether its code is relocated is not in memory"
		}
		if i.relocated(b) {
			return "the file's code is relocated (DT_TEXTREL)"
		}
	}
	return ""
}

// relocated reports whether a dynamic section tells of relocations in code.
func (i image) relocated(b []byte) bool {
	word := 4
	if i.wide {
		word = 8
	}
	for ; len(b) >= 2*word; b = b[2*word:] {
		tag, val := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[word:])) // the upper halves are 0
		switch {
		case tag == 0:
			return false
		case tag == dynTextRel, tag == dynFlags && val&flagTextRel != 0:
			return true
		}
	}
	return false
}
