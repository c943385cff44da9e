package profile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// Write writes what p tells as an ELF file: a vmlinux of which only the build
// id, the banner, the types (as BTF) and the symbols are left. Open reads it, as
// do nm, readelf, pahole and bpftool.
func (p *Profile) Write(w io.Writer) error {
	e := &elfWriter{machine: p.machine}
	// What nm tells kinds of symbols by. They hold nothing of use.
	kinds := map[byte]uint16{
		't': e.section(".text", elf.SHT_NOBITS, elf.SHF_ALLOC|elf.SHF_EXECINSTR, 0, nil),
		'r': e.section(".rodata", elf.SHT_NOBITS, elf.SHF_ALLOC, 0, nil),
		'd': e.section(".data", elf.SHT_PROGBITS, elf.SHF_ALLOC|elf.SHF_WRITE, 0, make([]byte, 8)),
		'b': e.section(".bss", elf.SHT_NOBITS, elf.SHF_ALLOC|elf.SHF_WRITE, 0, nil),
		'a': uint16(elf.SHN_ABS),
	}
	if p.BuildID != "" {
		id, err := hex.DecodeString(p.BuildID)
		if err != nil {
			return fmt.Errorf("build id %q: %w", p.BuildID, err)
		}
		note := words(4, uint32(len(id)), 3)
		note = append(append(note, "GNU\x00"...), id...)
		e.section(".note.gnu.build-id", elf.SHT_NOTE, elf.SHF_ALLOC, 0, append(note, make([]byte, -len(id)&3)...))
	}
	if p.Symbols != nil && p.Banner != "" {
		if s, err := p.Symbols.Lookup("linux_banner"); err == nil {
			e.section(".rodata.banner", elf.SHT_PROGBITS, elf.SHF_ALLOC, uint64(s.Addr), []byte(p.Banner+"\n\x00"))
		}
	}
	if p.btf != nil {
		e.section(".BTF", elf.SHT_PROGBITS, 0, 0, p.btf)
	}
	if p.Symbols != nil {
		var local, global bytes.Buffer
		local.Write(make([]byte, elf.Sym64Size))
		names := []byte{0}
		for s := range p.Symbols.All() {
			to, bind := &global, elf.STB_GLOBAL
			switch kind := s.Type | 0x20; {
			case kind == 'w' || kind == 'v':
				bind = elf.STB_WEAK
			case s.Type >= 'a':
				to, bind = &local, elf.STB_LOCAL
			}
			in, ok := kinds[s.Type|0x20]
			if !ok {
				in = kinds['r'] // of ISF and weak ones it is not known
			}
			to.Write(words(uint32(len(names)), uint32(elf.ST_INFO(bind, elf.STT_NOTYPE))|uint32(in)<<16,
				uint32(s.Addr), uint32(s.Addr>>32), uint32(s.Size), uint32(s.Size>>32)))
			names = append(append(names, s.Name...), 0)
		}
		strs := e.section(".strtab", elf.SHT_STRTAB, 0, 0, names)
		i := e.section(".symtab", elf.SHT_SYMTAB, 0, 0, append(bytes.Clone(local.Bytes()), global.Bytes()...))
		h := &e.heads[i-1]
		h.Link, h.Info, h.Entsize, h.Addralign = uint32(strs), uint32(local.Len()/elf.Sym64Size), elf.Sym64Size, 8
	}
	return e.write(w)
}

func words(vs ...uint32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// elfWriter writes an ELF file of sections.
type elfWriter struct {
	machine uint16
	heads   []elf.Section64 // without the first, which is void
	data    [][]byte
	names   []byte
}

const elfHeader = 64

// section adds a section and gives its number.
func (e *elfWriter) section(name string, kind elf.SectionType, flags elf.SectionFlag, addr uint64, data []byte) uint16 {
	if e.names == nil {
		e.names = []byte{0}
	}
	e.heads = append(e.heads, elf.Section64{Name: uint32(len(e.names)), Type: uint32(kind), Flags: uint64(flags), Addr: addr, Size: uint64(len(data)), Addralign: 1})
	e.names = append(append(e.names, name...), 0)
	e.data = append(e.data, data)
	return uint16(len(e.heads))
}

func (e *elfWriter) write(w io.Writer) error {
	names := e.section(".shstrtab", elf.SHT_STRTAB, 0, 0, nil)
	e.data[names-1], e.heads[names-1].Size = e.names, uint64(len(e.names))
	off := uint64(elfHeader)
	for i := range e.heads {
		off = (off + 7) &^ 7
		e.heads[i].Off = off
		off += e.heads[i].Size
	}
	off = (off + 7) &^ 7
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: e.machine, Version: uint32(elf.EV_CURRENT), Shoff: off,
		Ehsize: elfHeader, Phentsize: 56, Shentsize: 64, Shnum: uint16(len(e.heads) + 1), Shstrndx: names,
	}
	var out bytes.Buffer
	if err := binary.Write(&out, binary.LittleEndian, &h); err != nil {
		return err
	}
	for i, b := range e.data {
		out.Write(make([]byte, e.heads[i].Off-uint64(out.Len())))
		out.Write(b)
	}
	out.Write(make([]byte, off-uint64(out.Len())))
	if err := binary.Write(&out, binary.LittleEndian, append([]elf.Section64{{}}, e.heads...)); err != nil {
		return err
	}
	_, err := w.Write(out.Bytes())
	return err
}
