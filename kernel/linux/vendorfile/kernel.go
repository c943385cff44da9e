package vendorfile

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// kernelMap is where x86-64 kernels map physical address 0 of their image as it
// is linked (__START_KERNEL_map).
const kernelMap = 0xffffffff80000000

// Kernel is a kernel's file. It is for one goroutine.
type Kernel struct {
	Image
	elf *elfFile
	// Places, as addresses of the link, to which the slide is added, from which
	// it is taken away, and to which it is added in 64 bits
	// (arch/x86/tools/relocs.c).
	add32, sub32, add64 []byte
	symbols             symbols // as linked
	types               *ctype.Types
	declared            map[string]ctype.Type // prototypes of functions that were asked for; void: not known

	// Thunks, as linked: of indirect branches by their register, and of returns.
	branches map[mem.VA]uint8
	returns  map[mem.VA]bool
	// counter is the code that the kernel puts before functions to count the
	// depth of calls, and where it was linked (arch/x86/kernel/callthunks.c).
	counter   []byte
	counterAt mem.VA
}

// symbols are those of a kernel: a ksym.Table, or a ksym.List.
type symbols interface {
	All() iter.Seq[ksym.Symbol]
	At(va mem.VA) iter.Seq[string]
	Lookup(name string) (ksym.Symbol, error)
	LookupAll(name string) []ksym.Symbol
	Nearest(va mem.VA) (ksym.Symbol, uint64, error)
}

// ParseKernel reads a vmlinuz, packed in whatever way, or the ELF file with its
// relocations that is in it. It keeps and changes b if that is not packed. The
// cost is some 100 ms; afterwards the kernel lies where it was linked.
func ParseKernel(ctx context.Context, b []byte) (*Kernel, error) {
	b, err := payload(b)
	if err != nil {
		return nil, err
	}
	f, err := parseELF(b)
	if err != nil {
		return nil, err
	}
	if f.kind != etExecutable {
		return nil, errFormat("an ELF file of kind %d: no kernel", f.kind)
	}
	k := &Kernel{elf: f}
	if err := k.readRelocations(); err != nil {
		return nil, err
	}
	for i, s := range f.sections {
		if s.flags&shfAlloc == 0 || s.addr < kernelMap { // before v6.15 per-CPU data are linked at 0
			continue
		}
		if s.size > maxKernel || s.addr > -uint64(s.size)-1 {
			return nil, errFormat("section %q of %d bytes at %#x", s.name, s.size, s.addr)
		}
		k.Sections = append(k.Sections, &Section{Name: s.name, Addr: mem.VA(s.addr), Size: s.size, Data: f.data(i),
			Write: s.flags&shfWrite != 0, Exec: s.flags&shfExec != 0, index: i})
	}
	k.settle()
	notes := k.Section(".notes")
	if notes == nil {
		return nil, errFormat("no section .notes: its build id is not known")
	}
	if k.ID = buildID(notes.Data); k.ID == "" {
		return nil, errFormat("no build id in .notes")
	}
	btf := k.Section(".BTF")
	if btf == nil {
		return nil, errFormat("no section .BTF: the layout of its tables is not known")
	}
	if k.types, err = ctype.Parse(btf.Data); err != nil {
		return nil, fmt.Errorf("%w: .BTF: %w", ErrFormat, err)
	}
	k.declared = make(map[string]ctype.Type)
	k.tables = new(tables)
	if err := ctype.Bind(k.types, k.tables); err != nil {
		return nil, err
	}
	if err := k.readSymbols(ctx); err != nil {
		return nil, err
	}
	k.readNames()
	return k, nil
}

// readRelocations finds the three lists behind the ELF file, each behind a zero:
// what is to be added in 64 bits, taken away, and added in 32. Since v6.15 there
// is nothing to be taken away, and no list of it.
func (k *Kernel) readRelocations() error {
	rest := k.elf.b[k.elf.end:]
	if len(rest) < 8 || len(rest)%4 != 0 {
		return errFormat("%d bytes behind the ELF file, which are no relocations", len(rest))
	}
	var lists [][]byte
	for at := 0; at < len(rest); at += 4 {
		switch zero := binary.LittleEndian.Uint32(rest[at:]) == 0; {
		case zero && len(lists) == 3, !zero && at == 0:
			return errFormat("relocations that are no lists behind zeros")
		case zero:
			lists = append(lists, rest[at+4:at+4])
		default:
			n := len(lists) - 1
			lists[n] = lists[n][:len(lists[n])+4]
		}
	}
	switch len(lists) {
	case 2:
		k.add64, k.add32 = lists[0], lists[1]
	case 3:
		k.add64, k.sub32, k.add32 = lists[0], lists[1], lists[2]
	default:
		return errFormat("%d lists of relocations", len(lists))
	}
	return nil
}

// Relocate moves the kernel to where it lies in a guest: slide bytes from where
// it was linked.
func (k *Kernel) Relocate(slide uint64) error {
	delta := slide - k.slide
	if delta == 0 {
		return nil
	}
	le := binary.LittleEndian
	apply := func(list []byte, size int, change func(p []byte)) error {
		for ; len(list) >= 4; list = list[4:] {
			at := uint64(int64(int32(le.Uint32(list))))
			p := k.loaded(at)
			if len(p) < size {
				return errFormat("a relocation at %#x, where the file has nothing", at)
			}
			change(p)
		}
		return nil
	}
	err := apply(k.add32, 4, func(p []byte) { le.PutUint32(p, le.Uint32(p)+uint32(delta)) })
	if err == nil {
		err = apply(k.sub32, 4, func(p []byte) { le.PutUint32(p, le.Uint32(p)-uint32(delta)) })
	}
	if err == nil {
		err = apply(k.add64, 8, func(p []byte) { le.PutUint64(p, le.Uint64(p)+delta) })
	}
	if err != nil {
		return err
	}
	for _, s := range k.Sections {
		s.Addr += mem.VA(delta)
	}
	k.slide = slide
	k.settle()
	return nil
}

// loaded is what the file has from an address of the link on: by where segments
// are loaded, as relocations count.
func (k *Kernel) loaded(at uint64) []byte {
	phys := at - kernelMap
	for _, s := range k.elf.segments {
		if off := phys - s.phys; off < s.size {
			return k.elf.b[s.off+off : s.off+s.size]
		}
	}
	return nil
}

// Linked is the address at which a symbol was linked.
func (k *Kernel) Linked(name string) (mem.VA, bool) {
	s, err := k.symbols.Lookup(name)
	return s.Addr, err == nil
}

// Entry reports whether a symbol of code begins at an address.
func (k *Kernel) Entry(va mem.VA) bool {
	s, off, err := k.symbols.Nearest(va - mem.VA(k.slide))
	return err == nil && off == 0 && (s.Type|0x20 == 't' || s.Type|0x20 == 'w')
}

// Named reports whether an address is that of one of the symbols.
func (k *Kernel) Named(va mem.VA, names ...string) bool {
	for n := range k.symbols.At(va - mem.VA(k.slide)) {
		if slices.Contains(names, n) {
			return true
		}
	}
	return false
}

// Global is the value of a symbol that modules may refer to.
func (k *Kernel) Global(name string) (uint64, bool) {
	for _, s := range k.symbols.LookupAll(name) {
		switch {
		case s.Type >= 'a' && s.Type != 'w' && s.Type != 'v': // of one file only
		case s.Absolute, s.Type == 'A':
			return uint64(s.Addr), true
		default:
			return uint64(s.Addr) + k.slide, true
		}
	}
	return 0, false
}

// readSymbols finds kallsyms in the file, as it is found in RAM.
func (k *Kernel) readSymbols(ctx context.Context) error {
	data := k.Section(".rodata")
	if data == nil {
		return errFormat("no section .rodata: its symbols are not known")
	}
	size := (uint64(len(data.Data)) + mem.PageSize - 1) &^ (mem.PageSize - 1) // whole pages are searched
	extents := []mem.Range{{Start: mem.PA(data.Addr - kernelMap), Size: size}}
	found, err := ksym.Find(ctx, loadedFile{k}, extents)
	if len(found) != 1 {
		if err == nil {
			err = errFormat("%d symbol tables (kallsyms) in it", len(found))
		}
		return err
	}
	table := found[0].Table
	if table.Proof().Physical {
		table = table.Rebase(kernelMap)
	}
	k.symbols = table
	k.lookup = func(name string) (mem.VA, bool) {
		s, err := k.symbols.Lookup(name)
		return s.Addr + mem.VA(k.slide), err == nil && !s.Absolute
	}
	return nil
}

// loadedFile reads a kernel's file as the physical memory for which it is linked.
type loadedFile struct{ k *Kernel }

// ReadPhys implements mem.PhysReader.
func (f loadedFile) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n := 0
	for n < len(p) {
		b := f.k.loaded(uint64(pa) + uint64(n) + kernelMap)
		if len(b) == 0 {
			return n, &mem.FaultError{Op: "read", Space: "the kernel's file", Addr: uint64(pa) + uint64(n), Err: mem.ErrNoRAM}
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

// registers are the names that thunks have of theirs, by number.
var registers = []string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// trampoline is how the names of trampolines of static calls begin; their keys
// are named __SCK__ and the same.
const trampoline = "__SCT__"

// readNames takes up the symbols that have a meaning by their names
// (arch/x86/lib/retpoline.S, include/linux/static_call.h,
// arch/x86/kernel/ftrace_64.S).
func (k *Kernel) readNames() {
	k.branches, k.returns = make(map[mem.VA]uint8), make(map[mem.VA]bool)
	for s := range k.symbols.All() {
		switch {
		case strings.HasPrefix(s.Name, trampoline):
			site := Site{At: s.Addr, Kind: StaticCall, Len: 5}
			if key, err := k.symbols.Lookup("__SCK__" + s.Name[len(trampoline):]); err == nil {
				site.Target = key.Addr
			}
			k.unlisted = append(k.unlisted, site)
		case s.Name == "ftrace_call", s.Name == "ftrace_regs_call", s.Name == "ftrace_graph_call":
			k.unlisted = append(k.unlisted, Site{At: s.Addr, Kind: FtraceCall, Len: 5})
		case strings.HasSuffix(s.Name, "_return_thunk"):
			k.returns[s.Addr] = true
		case strings.HasPrefix(s.Name, "__x86_indirect_"):
			// thunk, its_thunk, call_thunk, jump_thunk
			if i := slices.Index(registers, s.Name[strings.LastIndexByte(s.Name, '_')+1:]); i >= 0 {
				k.branches[s.Addr] = uint8(i)
			}
		}
	}
	if at, b := k.between("skl_call_thunk_template", "skl_call_thunk_tail"); len(b) <= maxLen {
		k.counterAt, k.counter = at, b
	}
}
