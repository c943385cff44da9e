package dump

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vmscope/internal/ramfile"
	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
)

// The core of a Xen domain (xl dump-core) is an ELF file of sections, without
// program headers (Xen docs/misc/dump-core-format.txt): pages, and the list of
// their frame numbers, in any order.
const (
	xenPages    = ".xen_pages"
	xenFrames   = ".xen_pfn" // of a domain whose frame numbers are physical: PVH, HVM
	xenP2M      = ".xen_p2m" // of a PV domain: pairs of pseudo-physical and machine frame
	xenContexts = ".xen_prstatus"
	xenNotes    = ".note.Xen"

	xenNoteHeader = 0x2000001 // XEN_ELFNOTE_DUMPCORE_HEADER: magic, vCPUs, pages, page size
	xenMagicPV    = 0xf00febed
	xenMagicHVM   = 0xf00febee
	xenNoFrame    = ^uint64(0)

	maxXenSections = 1 << 12
	maxXenNames    = 64 << 10
	maxXenNumbers  = 1 << 24 // runs of the machine's frames: Xen may give single ones
)

// xenCore is what the headers tell.
type xenCore struct {
	sections map[string]xenSection
	hvm      bool
	cpus     uint64
	pages    uint64
}

type xenSection struct{ off, size uint64 }

// isXenCore tells a core of sections only.
func isXenCore(head []byte) bool {
	le := binary.LittleEndian
	return len(head) >= 64 && head[4] == 2 && head[5] == 1 && le.Uint16(head[16:]) == etCore &&
		le.Uint16(head[56:]) == 0 && le.Uint16(head[60:]) > 0 && le.Uint16(head[58:]) == 64
}

func xenBad(format string, a ...any) error {
	return fmt.Errorf("%w: core of a Xen domain: %s", ErrFormat, fmt.Sprintf(format, a...))
}

// parseXenCore reads the section headers and notes.
func parseXenCore(file *ramfile.File) (*xenCore, error) {
	var h [64]byte
	if err := readFull(file, h[:], 0); err != nil {
		return nil, fmt.Errorf("%w: core of a Xen domain: its header has %d bytes, the file has %d", ErrTruncated, len(h), file.Size())
	}
	le := binary.LittleEndian
	off, num, names := le.Uint64(h[40:]), uint64(le.Uint16(h[60:])), uint64(le.Uint16(h[62:]))
	if num > maxXenSections || names >= num {
		return nil, xenBad("%d sections, their names in section %d", num, names)
	}
	table := make([]byte, num*64)
	if err := readFull(file, table, off); err != nil {
		return nil, fmt.Errorf("%w: core of a Xen domain: section headers at offset %#x: %w", ErrTruncated, off, err)
	}
	at := func(i uint64) xenSection { return xenSection{le.Uint64(table[i*64+24:]), le.Uint64(table[i*64+32:])} }
	s := at(names)
	text := make([]byte, min(s.size, maxXenNames))
	// The names are the last in the file: of a cut one nothing can be read.
	if err := readFull(file, text, s.off); err != nil {
		return nil, fmt.Errorf("%w: core of a Xen domain: names of sections at offset %#x: %w", ErrTruncated, s.off, err)
	}
	x := &xenCore{sections: make(map[string]xenSection)}
	for i := range num {
		if n := uint64(le.Uint32(table[i*64:])); n < uint64(len(text)) {
			name, _, _ := strings.Cut(string(text[n:min(n+64, uint64(len(text)))]), "\x00")
			x.sections[name] = at(i)
		}
	}
	return x, x.header(file)
}

// header reads the note that tells the kind of domain, and checks the sections
// that must be there against it.
func (x *xenCore) header(file *ramfile.File) error {
	le := binary.LittleEndian
	s, ok := x.sections[xenNotes]
	if !ok {
		return xenBad("a core without program headers and without section %q", xenNotes)
	}
	b := make([]byte, min(s.size, maxXenNames))
	if err := readFull(file, b, s.off); err != nil {
		return fmt.Errorf("%w: core of a Xen domain: section %q at offset %#x: %w", ErrTruncated, xenNotes, s.off, err)
	}
	found := false
	for _, n := range notes(b) {
		if n.name != "Xen" || n.typ != xenNoteHeader || len(n.desc) < 32 {
			continue
		}
		magic, page := le.Uint64(n.desc), le.Uint64(n.desc[24:])
		x.cpus, x.pages = le.Uint64(n.desc[8:]), le.Uint64(n.desc[16:])
		if magic != xenMagicPV && magic != xenMagicHVM || page != mem.PageSize {
			return xenBad("magic %#x, pages of %d bytes", magic, page)
		}
		x.hvm, found = magic == xenMagicHVM, true
	}
	if !found {
		return xenBad("no header note")
	}
	pages, list := x.sections[xenPages], x.list()
	switch {
	case x.pages == 0 || x.pages > maxFrames || pages.size/mem.PageSize < x.pages || list.size/x.entry() < x.pages:
		return xenBad("%d pages, of which section %q has %d and the list of frames %d", x.pages, xenPages, pages.size/mem.PageSize, list.size/x.entry())
	case pages.off > maxFile || list.off > maxFile:
		return xenBad("sections at offsets %#x and %#x", pages.off, list.off)
	case pages.off+x.pages*mem.PageSize > file.Size():
		return fmt.Errorf("%w: core of a Xen domain: its pages end at byte %d, the file has %d", ErrTruncated, pages.off+x.pages*mem.PageSize, file.Size())
	}
	return nil
}

func (x *xenCore) list() xenSection {
	if x.hvm {
		return x.sections[xenFrames]
	}
	return x.sections[xenP2M]
}

// entry is the size of one in the list of frames.
func (x *xenCore) entry() uint64 {
	if x.hvm {
		return 8
	}
	return 16
}

// frames gives f the physical and the machine frame number of each page in the
// file, which are one number if the domain is not PV.
func (x *xenCore) frames(file *ramfile.File, f func(i, physical, machine uint64) error) error {
	le := binary.LittleEndian
	list, size := x.list(), x.entry()
	buf := make([]byte, 4096*size)
	for i := uint64(0); i < x.pages; {
		n := min(x.pages-i, 4096)
		if err := readFull(file, buf[:n*size], list.off+i*size); err != nil {
			return fmt.Errorf("%w: core of a Xen domain: list of frames at offset %#x: %w", ErrTruncated, list.off+i*size, err)
		}
		for k := range n {
			e := buf[k*size:]
			physical := le.Uint64(e)
			machine := physical
			if !x.hvm {
				machine = le.Uint64(e[8:])
			}
			if physical == xenNoFrame {
				continue
			}
			if physical > maxPA/mem.PageSize || machine > maxPA/mem.PageSize {
				return xenBad("page %d is of frame %#x, machine frame %#x: no machine has that", i+k, physical, machine)
			}
			if err := f(i+k, physical, machine); err != nil {
				return err
			}
		}
		i += n
	}
	return nil
}

// pieces are the runs of pages in the file, and for a PV domain those of the
// machine's frames: their off is the domain's own address. Where the list has a frame
// twice, the first counts.
func (x *xenCore) pieces(file *ramfile.File) (memory, numbers []piece, err error) {
	add := func(to *[]piece, p piece, most int) error {
		if n := len(*to); n > 0 && (*to)[n-1].end() == p.pa && (*to)[n-1].off+(*to)[n-1].size == p.off {
			(*to)[n-1].size += p.size
			return nil
		}
		if len(*to) == most {
			return xenBad("memory in more than %d pieces", most)
		}
		*to = append(*to, p)
		return nil
	}
	base := x.sections[xenPages].off
	err = x.frames(file, func(i, frame, machine uint64) error {
		pa := frame * mem.PageSize
		if err := add(&memory, piece{pa, mem.PageSize, base + i*mem.PageSize}, maxSegs); err != nil || x.hvm {
			return err
		}
		return add(&numbers, piece{machine * mem.PageSize, mem.PageSize, pa}, maxXenNumbers)
	})
	if err == nil && len(memory) == 0 {
		err = xenBad("without memory")
	}
	return union(memory), union(numbers), err
}

func openXenCore(path string, file *ramfile.File) (vm.Machine, error) {
	x, err := parseXenCore(file)
	if err != nil {
		return nil, err
	}
	memory, numbers, err := x.pieces(file)
	if err != nil {
		return nil, err
	}
	places, err := pages(file, memory)
	if err != nil {
		return nil, err
	}
	m, err := newMachine(path, file, places, "the list of frames in the core of a Xen domain (PVH or HVM)")
	if err != nil {
		return nil, err
	}
	m.regs = x.registers(file)
	if !x.hvm {
		return newXenPV(m, numbers, x.roots(file)), nil
	}
	return m, nil
}

// contexts calls f with the struct vcpu_guest_context of each vCPU. Those of another
// size, as of 32-bit domains, are left out: registers are a hint.
func (x *xenCore) contexts(file *ramfile.File, f func(context []byte)) {
	s := x.sections[xenContexts]
	if x.cpus > maxCPUs || s.size != x.cpus*xenguest.ContextSize {
		return
	}
	b := make([]byte, xenguest.ContextSize)
	for i := range x.cpus {
		if err := readFull(file, b, s.off+i*xenguest.ContextSize); err != nil {
			return
		}
		f(b)
	}
}

// registers are those of the vCPUs.
func (x *xenCore) registers(file *ramfile.File) []vm.Registers {
	var out []vm.Registers
	x.contexts(file, func(b []byte) {
		if r, err := xenguest.Registers(b, !x.hvm); err == nil {
			out = append(out, r)
		}
	})
	return out
}
