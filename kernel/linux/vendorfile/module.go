package vendorfile

import (
	"bytes"
	"encoding/binary"
	"strings"

	"vmscope/mem"
)

// Module is a module's file. It is for one goroutine.
type Module struct {
	Image
	Name string // as the kernel calls it

	elf            *elfFile
	symtab, strtab []byte
	percpu         int    // section of per-CPU data; -1 if there is none
	percpuBase     mem.VA // what its symbols count from
	at             map[string]mem.VA
	functions      []span // symbols of code
	exports        []string
}

// Relocations that modules have (System V ABI, AMD64 supplement); the kernel
// knows no others (arch/x86/kernel/module.c).
const (
	relNone  = 0
	rel64    = 1
	relPC32  = 2
	relPLT32 = 4
	rel32    = 10
	rel32S   = 11
	relPC64  = 24
)

// Numbers of sections that are none, and a binding (elf.h).
const (
	shnUndef = 0
	shnAbs   = 0xfff1
	stbWeak  = 2
)

// ParseModule reads a module for a kernel, packed in whatever way. It keeps and
// changes b if that is not packed. The module lies nowhere until it is placed.
func ParseModule(k *Kernel, b []byte) (*Module, error) {
	b, err := unpack(b, maxModule)
	if err != nil {
		return nil, err
	}
	f, err := parseELF(b)
	if err != nil {
		return nil, err
	}
	if f.kind != etRelocatable {
		return nil, errFormat("an ELF file of kind %d: no module", f.kind)
	}
	m := &Module{elf: f, percpu: -1}
	m.tables, m.kernel = k.tables, k
	for i, s := range f.sections {
		switch {
		case s.kind == shtSymtab && m.symtab == nil && int(s.link) < len(f.sections):
			m.symtab, m.strtab = f.data(i), f.data(int(s.link))
		case s.name == ".data..percpu":
			m.percpu = i
		case s.name == ".note.gnu.build-id":
			m.ID = buildID(f.data(i))
		case s.name == ".modinfo":
			for field := range bytes.SplitSeq(f.data(i), []byte{0}) {
				if name, ok := strings.CutPrefix(string(field), "name="); ok {
					m.Name = name
				}
			}
		}
		if s.flags&shfAlloc != 0 && s.size <= maxModule {
			m.Sections = append(m.Sections, &Section{Name: s.name, Size: s.size, Data: f.data(i),
				Write: s.flags&shfWrite != 0, Exec: s.flags&shfExec != 0, index: i})
		}
	}
	if m.ID == "" || m.Name == "" {
		return nil, errFormat("a module without a build id or a name")
	}
	m.lookup = func(name string) (mem.VA, bool) { va, ok := m.at[name]; return va, ok }
	const mark = "__ksymtab_"
	m.each(func(s symbol) bool {
		if name, ok := strings.CutPrefix(cstring(m.strtab, uint64(s.name)), mark); ok && s.index != shnUndef {
			m.exports = append(m.exports, name)
		}
		return true
	})
	return m, nil
}

// each calls f with the symbols of the file until it returns false.
func (m *Module) each(f func(symbol) bool) {
	for b := m.symtab; len(b) >= symbolSize; b = b[symbolSize:] {
		if !f(parseSymbol(b)) {
			return
		}
	}
}

// Exports are the names that other modules may use.
func (m *Module) Exports() []string { return m.exports }

// Place says where the sections of the module lie in a guest, by name, and its
// per-CPU data, and where its symbols do then. Sections that section does not
// know have no place.
func (m *Module) Place(section func(name string) (mem.VA, bool), percpu uint64) {
	base, code := make(map[uint16]mem.VA, len(m.Sections)), make(map[uint16]bool)
	for _, s := range m.Sections {
		s.Addr = 0
		if s.index == m.percpu {
			m.percpuBase = mem.VA(percpu) // it lies somewhere else for each CPU
			continue
		}
		if va, ok := section(s.Name); ok && s.Size > 0 && va <= ^mem.VA(0)-mem.VA(s.Size) {
			s.Addr = va
			base[uint16(s.index)], code[uint16(s.index)] = va, s.Exec
		}
	}
	m.settle()
	m.at, m.functions = make(map[string]mem.VA), nil
	m.each(func(s symbol) bool {
		if va, ok := base[s.index]; ok && s.name != 0 {
			m.at[cstring(m.strtab, uint64(s.name))] = va + mem.VA(s.value)
			if code[s.index] {
				m.functions = append(m.functions, span{va + mem.VA(s.value), s.size})
			}
		}
		return true
	})
	m.unlisted = nil
	for name, at := range m.at {
		if of, ok := strings.CutPrefix(name, trampoline); ok {
			m.unlisted = append(m.unlisted, Site{At: at, Target: m.at["__SCK__"+of], Kind: StaticCall, Len: 5})
		}
	}
}

// span is a run of memory.
type span struct {
	at   mem.VA
	size uint64
}

// Amid reports whether an address lies within a function of the module, and none
// begins there. Files may lack the symbols of some.
func (m *Module) Amid(va mem.VA) bool {
	amid := false
	for _, f := range m.functions {
		if f.at == va {
			return false
		}
		amid = amid || uint64(va-f.at) < f.size
	}
	return amid
}

// Relocate makes the sections that have a place what they are there. resolve
// gives the values of symbols of the kernel and of other modules.
func (m *Module) Relocate(resolve func(name string) (uint64, bool)) error {
	byIndex := make(map[uint32]*Section, len(m.Sections))
	for _, s := range m.Sections {
		byIndex[uint32(s.index)] = s
	}
	values := make(map[uint32]uint64)
	nowhere := make(map[uint32]bool) // symbols in sections that have no bytes, and so no place
	m.untold = make(map[mem.VA]int)
	value := func(n uint32) (uint64, error) {
		if v, ok := values[n]; ok {
			return v, nil
		}
		if uint64(n) >= uint64(len(m.symtab))/symbolSize {
			return 0, errFormat("symbol %d of %d", n, len(m.symtab)/symbolSize)
		}
		s := parseSymbol(m.symtab[uint64(n)*symbolSize:])
		v := s.value
		switch {
		case s.index == shnUndef && n != 0:
			name := cstring(m.strtab, uint64(s.name))
			var ok bool
			if v, ok = resolve(name); !ok && s.bind != stbWeak {
				return 0, errFormat("symbol %q is nowhere", name)
			}
		case s.index == shnUndef, s.index == shnAbs:
		default:
			of, ok := byIndex[uint32(s.index)]
			if !ok {
				return 0, errFormat("symbol %d in section %d, which is not loaded", n, s.index)
			}
			base := of.Addr
			nowhere[n] = of.Addr == 0 && of.Size == 0
			if of.index == m.percpu {
				base = m.percpuBase
			}
			v += uint64(base)
		}
		values[n] = v
		return v, nil
	}
	for i, rs := range m.elf.sections {
		to := byIndex[rs.info]
		if rs.kind != shtRela || to == nil || to.Addr == 0 || to.Data == nil {
			continue
		}
		for list := m.elf.data(i); len(list) >= relaSize; list = list[relaSize:] {
			at, size, err := m.apply(to, list, value)
			if err != nil {
				return err
			}
			if sym := binary.LittleEndian.Uint32(list[12:]); nowhere[sym] {
				m.untold[at] = size
			}
		}
	}
	return nil
}

// apply does one relocation (elf.h: Elf64_Rela) of a section, and tells of where
// and how many bytes it was.
func (m *Module) apply(to *Section, r []byte, value func(uint32) (uint64, error)) (at mem.VA, n int, err error) {
	le := binary.LittleEndian
	off, kind, sym, addend := le.Uint64(r), le.Uint32(r[8:]), le.Uint32(r[12:]), le.Uint64(r[16:])
	size := uint64(4)
	switch kind {
	case relNone:
		return 0, 0, nil
	case rel64, relPC64:
		size = 8
	case relPC32, relPLT32, rel32, rel32S:
	default:
		return 0, 0, errFormat("relocation of kind %d", kind)
	}
	if off > uint64(len(to.Data)) || uint64(len(to.Data))-off < size {
		return 0, 0, errFormat("relocation at %#x of %q, which has %d bytes", off, to.Name, len(to.Data))
	}
	v, err := value(sym)
	if err != nil {
		return 0, 0, err
	}
	v += addend
	switch kind {
	case relPC32, relPLT32, relPC64:
		v -= uint64(to.Addr) + off
	}
	if size == 8 {
		le.PutUint64(to.Data[off:], v)
	} else {
		le.PutUint32(to.Data[off:], uint32(v))
	}
	return to.Addr + mem.VA(off), int(size), nil
}
