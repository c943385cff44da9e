package ksym

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

// maxModuleSyms bounds the symbols of one module. The biggest modules, with
// debug symbols kept, have some tens of thousands.
const maxModuleSyms = 1 << 18

// ParseModuleSymbols reads the symbols that a module keeps of itself
// (struct mod_kallsyms in include/linux/module.h: symtab, strtab, typetab). The
// slices hold what the guest's pointers lead to; symtab is num_symtab entries of
// Elf64_Sym (24 bytes), or of Elf32_Sym (16 bytes) where pointers have 4 bytes.
// typetab holds nm's letters and may be nil: then the letters are inferred from
// the symbols' ELF types.
//
// Undefined and nameless symbols are left out, as the kernel does; the order is
// that of symtab. Symbols whose name lies outside strtab end the list: what was
// read stands beside an error that wraps mem.ErrInconsistent.
func ParseModuleSymbols(symtab, strtab, typetab []byte, pointerSize int) ([]Symbol, error) {
	entry := 24
	if pointerSize == 4 {
		entry = 16
	}
	n := len(symtab) / entry
	if n > maxModuleSyms {
		return nil, fmt.Errorf("module with %d symbols: %w", n, mem.ErrInconsistent)
	}
	out := make([]Symbol, 0, n)
	// One copy for all names, which share it: names in strtab overlap at will,
	// so copies of each could be n times as much.
	text := string(strtab)
	for i := range n {
		e := parseELFSym(symtab[i*entry:][:entry])
		if e.name == 0 || e.shndx == 0 {
			continue
		}
		if uint64(e.name) >= uint64(len(strtab)) {
			return out, fmt.Errorf("module symbol %d: name at %d of %d bytes: %w", i, e.name, len(strtab), mem.ErrInconsistent)
		}
		size := bytes.IndexByte(strtab[e.name:], 0)
		if size < 0 || size > maxName {
			return out, fmt.Errorf("module symbol %d: name at %d has no end: %w", i, e.name, mem.ErrInconsistent)
		}
		if size == 0 {
			continue
		}
		s := Symbol{
			Name: text[e.name : int(e.name)+size],
			Addr: mem.VA(e.value),
			Size: e.size,
			Type: e.letter(),
			// SHN_ABS
			Absolute: e.shndx == 0xfff1,
		}
		if i < len(typetab) && typetab[i] > ' ' && typetab[i] < 0x7f {
			s.Type = typetab[i]
		}
		out = append(out, s)
	}
	return out, nil
}

// elfSym is a symbol of ELF (System V ABI, "Symbol Table").
type elfSym struct {
	name        uint32
	info        byte
	shndx       uint16
	value, size uint64
}

func parseELFSym(b []byte) elfSym {
	le := binary.LittleEndian
	if len(b) == 16 {
		return elfSym{le.Uint32(b), b[12], le.Uint16(b[14:]), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))}
	}
	return elfSym{le.Uint32(b), b[4], le.Uint16(b[6:]), le.Uint64(b[8:]), le.Uint64(b[16:])}
}

// letter is about what nm prints: t for functions, d for the rest, a for
// absolute ones; upper case for global symbols, w for weak ones.
func (e elfSym) letter() byte {
	c := byte('d')
	switch {
	case e.shndx == 0xfff1:
		c = 'a'
	case e.info>>4 == 2: // STB_WEAK
		return 'w'
	case e.info&15 == 2: // STT_FUNC
		c = 't'
	}
	if e.info>>4 == 1 { // STB_GLOBAL
		c -= 'a' - 'A'
	}
	return c
}
