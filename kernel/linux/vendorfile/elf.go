package vendorfile

import (
	"bytes"
	"encoding/binary"
	"math"
)

// Numbers of ELF (System V ABI; elf.h).
const (
	etRelocatable = 1
	etExecutable  = 2
	emX8664       = 62

	ptLoad = 1

	shtSymtab = 2
	shtStrtab = 3
	shtRela   = 4
	shtNote   = 7
	shtNobits = 8

	shfWrite = 1
	shfAlloc = 2
	shfExec  = 4

	headerSize  = 64
	sectionSize = 64
	segmentSize = 56
	symbolSize  = 24
	relaSize    = 24
)

// maxSections bounds the sections of a file; modules with a section for each
// function have some thousands.
const maxSections = 1 << 16

// elfFile is a 64-bit ELF file for x86-64.
type elfFile struct {
	b        []byte
	kind     uint16
	sections []elfSection
	segments []elfSegment
	end      uint64 // behind the section headers
}

type elfSection struct {
	name                         string
	kind                         uint32
	flags, addr, off, size, each uint64
	link, info                   uint32
}

type elfSegment struct{ off, phys, size uint64 }

// parseELF reads the headers of a file.
func parseELF(b []byte) (*elfFile, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:4]) != "\x7fELF" || b[4] != 2 || b[5] != 1 || le.Uint16(b[18:]) != emX8664 {
		return nil, errFormat("no ELF file for x86-64")
	}
	f := &elfFile{b: b, kind: le.Uint16(b[16:])}
	shoff, shnum, shstr := le.Uint64(b[40:]), uint64(le.Uint16(b[60:])), int(le.Uint16(b[62:]))
	phoff, phnum := le.Uint64(b[32:]), uint64(le.Uint16(b[56:]))
	if shnum == 0 && shoff != 0 { // more than fit: the first header counts
		first, ok := f.bytes(shoff, sectionSize)
		if !ok {
			return nil, errFormat("section headers at %#x", shoff)
		}
		shnum, shstr = le.Uint64(first[32:]), int(le.Uint32(first[40:]))
	}
	if shnum > maxSections {
		return nil, errFormat("%d sections", shnum)
	}
	heads, ok := f.bytes(shoff, shnum*sectionSize)
	if !ok {
		return nil, errFormat("%d section headers at %#x", shnum, shoff)
	}
	f.end = shoff + shnum*sectionSize
	var names []byte
	for pass := range 2 { // the section with the names may be the last
		for i := range int(shnum) {
			h := heads[i*sectionSize:]
			if pass == 0 {
				s := elfSection{kind: le.Uint32(h[4:]), flags: le.Uint64(h[8:]), addr: le.Uint64(h[16:]), off: le.Uint64(h[24:]),
					size: le.Uint64(h[32:]), link: le.Uint32(h[40:]), info: le.Uint32(h[44:]), each: le.Uint64(h[56:])}
				if _, ok := f.bytes(s.off, s.size); !ok && s.kind != shtNobits && s.kind != 0 {
					return nil, errFormat("section %d of %d bytes at %#x", i, s.size, s.off)
				}
				f.sections = append(f.sections, s)
				continue
			}
			f.sections[i].name = cstring(names, uint64(le.Uint32(h)))
		}
		if pass == 0 && shstr < len(f.sections) {
			names = f.data(shstr)
		}
	}
	progs, ok := f.bytes(phoff, phnum*segmentSize)
	if !ok {
		return nil, errFormat("%d program headers at %#x", phnum, phoff)
	}
	for ; len(progs) >= segmentSize; progs = progs[segmentSize:] {
		if le.Uint32(progs) != ptLoad {
			continue
		}
		s := elfSegment{off: le.Uint64(progs[8:]), phys: le.Uint64(progs[24:]), size: le.Uint64(progs[32:])}
		if _, ok := f.bytes(s.off, s.size); !ok || s.phys > math.MaxInt32 {
			return nil, errFormat("segment of %d bytes at %#x", s.size, s.off)
		}
		f.segments = append(f.segments, s)
	}
	return f, nil
}

// bytes is a part of the file.
func (f *elfFile) bytes(off, n uint64) ([]byte, bool) {
	if n > uint64(len(f.b)) || off > uint64(len(f.b))-n {
		return nil, false
	}
	return f.b[off : off+n : off+n], true
}

// data is what a section holds; nil if the file holds nothing of it.
func (f *elfFile) data(i int) []byte {
	s := f.sections[i]
	if s.kind == shtNobits || s.kind == 0 {
		return nil
	}
	b, _ := f.bytes(s.off, s.size)
	return b
}

// maxName bounds the name of a section or symbol.
const maxName = 4096

func cstring(b []byte, off uint64) string {
	if off >= uint64(len(b)) {
		return ""
	}
	b = b[off:min(uint64(len(b)), off+maxName)]
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return ""
	}
	return string(b[:i])
}

// symbol is an entry of a symbol table (elf.h: Elf64_Sym).
type symbol struct {
	name  uint32
	bind  byte
	index uint16
	value uint64
	size  uint64
}

func parseSymbol(b []byte) symbol {
	le := binary.LittleEndian
	return symbol{name: le.Uint32(b), bind: b[4] >> 4, index: le.Uint16(b[6:]), value: le.Uint64(b[8:]), size: le.Uint64(b[16:])}
}
