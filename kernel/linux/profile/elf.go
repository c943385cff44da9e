package profile

import (
	"context"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"vmscope/internal/binread"
	"vmscope/ksym"
	"vmscope/mem"
)

// fromELF reads a vmlinux: its BTF, or else its DWARF, and its symbols. It needs
// only those parts of the file in memory.
func fromELF(ctx context.Context, r io.ReaderAt) (p *Profile, err error) {
	// debug/elf and debug/dwarf do not promise to bear any file.
	defer func() {
		if x := recover(); x != nil {
			p, err = nil, errFormat("ELF: %v", x)
		}
	}()
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	switch {
	case f.Data != elf.ELFDATA2LSB:
		return nil, errFormat("an ELF file of a big-endian machine")
	case f.Type == elf.ET_REL:
		return nil, errFormat("a module or object file, not the whole kernel")
	case f.Type == elf.ET_CORE:
		return nil, errFormat("a dump, not the kernel's file")
	}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_COMPRESSED != 0 && !strings.HasPrefix(s.Name, ".debug_") {
			return nil, errFormat("section %s is compressed", s.Name)
		}
	}
	e := &elfFile{f}
	p = &Profile{machine: uint16(f.Machine)}
	if p.BuildID, err = e.buildID(); err != nil {
		return nil, err
	}
	if err := e.symbols(p); err != nil {
		return nil, err
	}
	switch btf := e.section(".BTF"); {
	case btf != nil:
		p.Format = "BTF"
		b, err := e.data(btf, maxBTF)
		if err != nil {
			return nil, err
		}
		return p.withTypes(b)
	case e.section(".debug_info") != nil || e.section(".zdebug_info") != nil:
		p.Format = "DWARF"
		b, err := e.dwarf(ctx)
		if err != nil {
			return nil, err
		}
		return p.withTypes(b)
	}
	p.Format = "ELF"
	if p.Symbols == nil {
		return nil, errFormat("an ELF file with neither DWARF, BTF nor symbols")
	}
	return p, nil
}

type elfFile struct{ *elf.File }

// section finds a section whose bytes are in the file: those of a file that only
// has debug information are not.
func (e *elfFile) section(name string) *elf.Section {
	if s := e.Section(name); s != nil && s.Type != elf.SHT_NOBITS {
		return s
	}
	return nil
}

// data reads a section of at most limit bytes.
func (e *elfFile) data(s *elf.Section, limit uint64) ([]byte, error) {
	if s.Size > limit {
		return nil, errFormat("section %s of %d bytes", s.Name, s.Size)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%w: section %s: %w", ErrFormat, s.Name, err)
	}
	return b, nil
}

// maxNotes bounds the notes of a kernel, which have some hundred bytes.
const maxNotes = 1 << 16

// buildID finds the GNU build id; "" if there is none.
func (e *elfFile) buildID() (string, error) {
	for _, s := range e.Sections {
		if s.Type != elf.SHT_NOTE || s.Size > maxNotes {
			continue
		}
		b, err := e.data(s, maxNotes)
		if err != nil {
			return "", err
		}
		if id := buildIDOf(b); id != "" {
			return id, nil
		}
	}
	return "", nil
}

// buildIDOf finds the GNU build id among notes (elf.h: NT_GNU_BUILD_ID).
func buildIDOf(notes []byte) string {
	r := binread.New("notes", notes)
	for r.Left() > 0 {
		name, desc, kind := int(r.U32()), int(r.U32()), r.U32()
		owner := r.Bytes(name)
		r.Align(4)
		id := r.Bytes(desc)
		if r.Err() == nil && kind == 3 && string(owner) == "GNU\x00" {
			return hex.EncodeToString(id)
		}
		r.Align(4)
	}
	return ""
}

// maxSymbols bounds the symbols of a file; kernels have some 200,000.
const maxSymbols = 2_000_000

// symbols takes up the symbols and, from where one of them says, the banner.
func (e *elfFile) symbols(p *Profile) error {
	s := e.SectionByType(elf.SHT_SYMTAB)
	if s == nil {
		return nil
	}
	if s.Size > maxSymbols*elf.Sym64Size {
		return errFormat("symbols of %d bytes", s.Size)
	}
	all, err := e.Symbols()
	if err != nil {
		return fmt.Errorf("%w: symbols: %w", ErrFormat, err)
	}
	var list []ksym.Symbol
	for _, sym := range all {
		kind := elf.ST_TYPE(sym.Info)
		if sym.Name == "" || sym.Section == elf.SHN_UNDEF || kind == elf.STT_FILE || kind == elf.STT_SECTION {
			continue
		}
		letter := e.letter(sym)
		list = append(list, ksym.Symbol{
			Name: sym.Name, Addr: mem.VA(sym.Value), Size: sym.Size, Type: letter,
			// As ksym.ParseSystemMap has it: per-CPU symbols of x86-64 up to 6.14 are
			// linked at 0.
			Absolute: letter|0x20 == 'a' || sym.Value < 1<<20,
		})
		if sym.Name == "linux_banner" {
			p.Banner = e.banner(sym.Value)
		}
	}
	if len(list) > 0 {
		p.Symbols = ksym.NewList(list)
	}
	return nil
}

// letter is how nm calls the kind of a symbol.
func (e *elfFile) letter(s elf.Symbol) byte {
	c := byte('A')
	if i := int(s.Section); i > 0 && i < len(e.Sections) {
		switch sec := e.Sections[i]; {
		case sec.Flags&elf.SHF_EXECINSTR != 0:
			c = 'T'
		case sec.Flags&elf.SHF_WRITE == 0:
			c = 'R'
		case sec.Type == elf.SHT_NOBITS:
			c = 'B'
		default:
			c = 'D'
		}
	}
	switch elf.ST_BIND(s.Info) {
	case elf.STB_LOCAL:
		c |= 0x20
	case elf.STB_WEAK:
		c = 'W'
	}
	return c
}

// maxBanner bounds the banner; kernels write some 200 bytes.
const maxBanner = 1024

// banner reads the kernel's banner at an address of the link; "" if the file
// does not hold it.
func (e *elfFile) banner(at uint64) string {
	for _, s := range e.Sections {
		if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_ALLOC == 0 || s.Flags&elf.SHF_COMPRESSED != 0 || at < s.Addr || at-s.Addr >= s.Size {
			continue
		}
		b := make([]byte, min(maxBanner, s.Size-(at-s.Addr)))
		n, err := s.ReadAt(b, int64(at-s.Addr))
		if err != nil && err != io.EOF {
			return ""
		}
		return bannerOf(b[:n])
	}
	return ""
}

// bannerOf is the text of a banner as /proc/version prints it; "" if it is none.
func bannerOf(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	if !strings.HasPrefix(s, "Linux version ") {
		return ""
	}
	return strings.TrimRight(s, "\n")
}
