// Package vendorfile reads a vendor's own files of a Linux kernel, vmlinuz and
// modules, and says what a guest's memory must hold by them: code and data as
// they lie there, relocated, and every place that the kernel may rewrite, with
// the forms that are valid for it (Matcher).
//
// What a file lists is as good as the file. The bytes may be anybody's all the
// same: parsing is bounded by the size of the file, and what does not hold
// together is an error.
package vendorfile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"

	"vmscope/ctype"
	"vmscope/mem"
)

// ErrFormat is in the chain of errors that say that a file is not what it should
// be.
var ErrFormat = errors.New("not a sound file of a kernel")

func errFormat(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Section is a section of a file and where it lies in memory.
type Section struct {
	Name  string
	Addr  mem.VA // in memory; 0 if it has no place there
	Size  uint64
	Data  []byte // nil if the file holds none; shared with the Image
	Write bool
	Exec  bool

	index int
}

// End is the address behind the section.
func (s *Section) End() mem.VA { return s.Addr + mem.VA(s.Size) }

// Image is the code and the data of a file, for where they lie in one guest's
// memory. It may be read concurrently until it is moved.
type Image struct {
	ID       string // the build id of the file, in hexadecimal
	Sections []*Section

	places []*Section // with data and a place, by address
	tables *tables
	kernel *Kernel // of a module
	lookup func(name string) (mem.VA, bool)
	// unlisted are places that no table has, as linked: trampolines of static
	// calls, and where ftrace's own code calls what traces. slide is how far from
	// there the image lies.
	unlisted []Site
	slide    uint64
	untold   map[mem.VA]int // what was not told of a module's places, in bytes
}

// Untold reports how many bytes from an address on the file does not tell: they
// name a place in a section of no bytes, and where such a one lies the guest
// does not tell, either. The kernel's locks have such keys where it does not
// check locks.
func (im *Image) Untold(at mem.VA) int {
	for i := range 8 {
		if n := im.untold[at-mem.VA(i)]; n > i {
			return n - i
		}
	}
	return 0
}

// Section finds a section by its name; nil if there is none.
func (im *Image) Section(name string) *Section {
	i := slices.IndexFunc(im.Sections, func(s *Section) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return im.Sections[i]
}

// Symbol is the address of a symbol in memory.
func (im *Image) Symbol(name string) (mem.VA, bool) { return im.lookup(name) }

// settle takes up where sections lie.
func (im *Image) settle() {
	im.places = im.places[:0]
	for _, s := range im.Sections {
		if s.Addr != 0 && len(s.Data) > 0 {
			im.places = append(im.places, s)
		}
	}
	slices.SortFunc(im.places, func(a, b *Section) int {
		switch {
		case a.Addr < b.Addr:
			return -1
		case a.Addr > b.Addr:
			return 1
		}
		return 0
	})
}

// At is what the file has from an address on, to the end of the section there;
// nil if it has nothing there.
func (im *Image) At(va mem.VA) []byte {
	i := sort.Search(len(im.places), func(i int) bool { return im.places[i].Addr > va })
	if i == 0 {
		return nil
	}
	s := im.places[i-1]
	if off := va - s.Addr; off < mem.VA(len(s.Data)) {
		return s.Data[off:]
	}
	return nil
}

// between is what the file has between two of its symbols.
func (im *Image) between(from, to string) (at mem.VA, data []byte) {
	start, ok := im.lookup(from)
	end, ok2 := im.lookup(to)
	if !ok || !ok2 || end <= start {
		return 0, nil
	}
	b := im.At(start)
	if mem.VA(len(b)) < end-start {
		return 0, nil
	}
	return start, b[:end-start]
}

// tables are the layouts of the tables that list places.
type tables struct {
	Alt      uint64      `c:"sizeof(alt_instr),optional"` // arch/x86/include/asm/alternative.h
	AltInstr ctype.Field `c:"alt_instr.instr_offset,optional"`
	AltRepl  ctype.Field `c:"alt_instr.repl_offset,optional"`
	AltLen   ctype.Field `c:"alt_instr.instrlen,optional"`
	AltRLen  ctype.Field `c:"alt_instr.replacementlen,optional"`

	Jump     uint64      `c:"sizeof(jump_entry),optional"` // include/linux/jump_label.h
	JumpCode ctype.Field `c:"jump_entry.code,optional"`
	JumpTo   ctype.Field `c:"jump_entry.target,optional"`
	JumpKey  ctype.Field `c:"jump_entry.key,optional"`

	Call     uint64      `c:"sizeof(static_call_site),optional"` // include/linux/static_call_types.h
	CallAddr ctype.Field `c:"static_call_site.addr,optional"`
	CallKey  ctype.Field `c:"static_call_site.key,optional"`

	Para      uint64      `c:"sizeof(paravirt_patch_site),optional"` // arch/x86/include/asm/paravirt_types.h
	ParaInstr ctype.Field `c:"paravirt_patch_site.instr,optional"`
	ParaLen   ctype.Field `c:"paravirt_patch_site.len,optional"`

	ExHandler ctype.Field `c:"exception_table_entry.handler,optional"` // arch/x86/include/asm/extable.h, up to v5.15

	PV      ctype.Type `c:"paravirt_patch_template,optional"`
	PVData  ctype.Type `c:"patch_xxl,optional"`  // arch/x86/kernel/paravirt_patch.c, before v5.13
	PVLocks ctype.Type `c:"patch_lock,optional"` // there
}

// fits reports whether members lie in an entry of a size.
func fits(size uint64, fields ...ctype.Field) bool {
	for _, f := range fields {
		if !f.Valid() || f.Size() > size || f.Offset > size-f.Size() {
			return false
		}
	}
	return size > 0
}

// buildID finds the GNU build id among notes (elf.h: NT_GNU_BUILD_ID); "" if
// there is none.
func buildID(notes []byte) string {
	le := binary.LittleEndian
	for len(notes) >= 12 {
		name, desc, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		at := 12 + (name+3)&^3
		end := at + (desc+3)&^3
		if at+desc > uint64(len(notes)) {
			break
		}
		if kind == 3 && string(notes[12:min(16, len(notes))]) == "GNU\x00" && name == 4 {
			return hex.EncodeToString(notes[at : at+desc])
		}
		notes = notes[min(end, uint64(len(notes))):]
	}
	return ""
}

// BuildID is buildID for notes of a guest.
func BuildID(notes []byte) string { return buildID(notes) }
