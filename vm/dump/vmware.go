package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// VMware keeps the state of a suspended machine in a .vmss file, of a snapshot
// in a .vmsn file, and the memory there too or beside it in a .vmem file, which
// is RAM and nothing else. A state file has groups of tags; the group "memory"
// tells where the RAM lies, the group "cpu" has registers (the format as VMware
// gave it to crash: vmware_vmss.h, vmware_vmss.c).
const (
	vmwareHeader = 12
	vmwareGroup  = 80 // name, offset, size

	maxVMwareGroups  = 4096
	maxVMwareTags    = 1 << 18 // of a group
	maxVMwareRegions = 64
)

// vmwareMagics are of the state files that are read.
var vmwareMagics = map[uint32]bool{0xbed2bed2: true, 0xbed3bed3: true, 0xbad1bad1: true, 0xbad2bad2: true}

const vmwareOld = 0xbed0bed0 // its offsets have 32 bits

func isVMware(head []byte) bool {
	if len(head) < vmwareHeader {
		return false
	}
	m := binary.LittleEndian.Uint32(head)
	return vmwareMagics[m] || m == vmwareOld
}

// vmwareState is what a state file tells.
type vmwareState struct {
	regions [maxVMwareRegions]struct{ page, frame, pages uint64 } // page: in the memory's file
	count   uint64                                                // of regions; 0: all memory lies from 0 on
	inside  bool                                                  // the memory is in this file
	off     uint64
	size    uint64
	cpus    []vm.Registers
	told    []vmwareTold // of each of cpus
}

// vmwareTold are the registers that make a set worth having.
type vmwareTold struct{ rip, cr3, cr4 bool }

// vmwareTag is one item of a group.
type vmwareTag struct {
	name    string
	index   [3]uint32
	value   uint64 // of at most 8 bytes; block: 0
	block   bool
	packed  bool
	off     uint64 // of the block's bytes
	size    uint64
	next    uint64
	inBytes uint64 // unpacked
}

func parseVMware(src source) (*vmwareState, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: VMware state file: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
	var h [vmwareHeader]byte
	if err := readFull(src, h[:], 0); err != nil {
		return nil, fmt.Errorf("%w: VMware state file: its header has %d bytes, the file has %d", ErrTruncated, vmwareHeader, src.Size())
	}
	le := binary.LittleEndian
	groups := le.Uint32(h[8:])
	switch {
	case le.Uint32(h[:]) == vmwareOld:
		return nil, bad("its offsets have 32 bits, as of old products")
	case groups == 0 || groups > maxVMwareGroups:
		return nil, bad("%d groups", groups)
	}
	s := &vmwareState{}
	seen := make(map[string]bool)
	for i := range uint64(groups) {
		var g [vmwareGroup]byte
		at := vmwareHeader + i*vmwareGroup
		if err := readFull(src, g[:], at); err != nil {
			return nil, fmt.Errorf("%w: VMware state file: group at offset %#x: %w", ErrTruncated, at, err)
		}
		name, _, _ := strings.Cut(string(g[:64]), "\x00")
		take := map[string]func(vmwareTag) error{"memory": s.memoryTag, "cpu": s.cpuTag(src)}[name]
		if take == nil || seen[name] {
			continue
		}
		seen[name] = true
		err := vmwareTags(src, le.Uint64(g[64:]), take)
		if err != nil && name == "memory" {
			return nil, fmt.Errorf("VMware state file: group %q: %w", name, err)
		}
	}
	if !seen["memory"] {
		return nil, bad("no group \"memory\"")
	}
	if s.count > maxVMwareRegions {
		return nil, bad("%d regions of memory", s.count)
	}
	return s, nil
}

// vmwareTags gives take the tags from off on, up to the empty one.
func vmwareTags(src source, off uint64, take func(vmwareTag) error) error {
	for range maxVMwareTags {
		t, err := vmwareTagAt(src, off)
		if err != nil {
			return err
		}
		if t.next == 0 {
			return nil
		}
		if err := take(t); err != nil {
			return fmt.Errorf("%.64q at offset %#x: %w", t.name, off, err)
		}
		off = t.next
	}
	return fmt.Errorf("%w: more than %d items", ErrFormat, maxVMwareTags)
}

// vmwareTagAt reads the tag at off; next is 0 behind the last.
func vmwareTagAt(src source, off uint64) (vmwareTag, error) {
	// Size of the value and number of indices in a byte, and the length of the name.
	var b [2 + 255 + 3*4 + 64]byte
	if off > src.Size() {
		return vmwareTag{}, fmt.Errorf("%w: item at offset %#x, the file has %d bytes", ErrTruncated, off, src.Size())
	}
	b2 := b[:min(uint64(len(b)), src.Size()-off)]
	if err := readFull(src, b2, off); err != nil || len(b2) < 2 {
		return vmwareTag{}, fmt.Errorf("%w: item at offset %#x: %v", ErrTruncated, off, err)
	}
	if b[0] == 0 && b[1] == 0 {
		return vmwareTag{}, nil
	}
	le := binary.LittleEndian
	size, indices, name := uint64(b[0]&0x3f), uint64(b[0]>>6), uint64(b[1])
	body := 2 + name + 4*indices
	head := body + size
	t := vmwareTag{block: size >= 62, packed: size == 62}
	if t.block {
		head = body + 18
	}
	if head > uint64(len(b2)) {
		return t, fmt.Errorf("%w: item at offset %#x", ErrTruncated, off)
	}
	t.name = string(b[2 : 2+name])
	for i := range indices {
		t.index[i] = le.Uint32(b[2+name+4*i:])
	}
	t.next = off + head
	if !t.block {
		var v [8]byte
		copy(v[:], b[body:head])
		t.value, t.size = le.Uint64(v[:]), size
		return t, nil
	}
	t.size, t.inBytes = le.Uint64(b[body:]), le.Uint64(b[body+8:])
	t.off = off + head + uint64(le.Uint16(b[body+16:]))
	if t.size > maxFile {
		return t, fmt.Errorf("%w: item at offset %#x of %d bytes", ErrFormat, off, t.size)
	}
	t.next = t.off + t.size
	return t, nil
}

func (s *vmwareState) memoryTag(t vmwareTag) error {
	i := t.index[0]
	switch t.name {
	case "regionsCount":
		s.count = t.value
	case "regionPageNum", "regionPPN", "regionSize":
		if i >= maxVMwareRegions || t.value > 1<<40 {
			return fmt.Errorf("%w: region %d, %#x", ErrFormat, i, t.value)
		}
		r := &s.regions[i]
		*map[string]*uint64{"regionPageNum": &r.page, "regionPPN": &r.frame, "regionSize": &r.pages}[t.name] = t.value
	case "Memory":
		switch {
		case !t.block:
			return fmt.Errorf("%w: no block", ErrFormat)
		case t.packed:
			return fmt.Errorf("%w: VMware compressed the memory in it; make a snapshot with a .vmem file", ErrFormat)
		case s.inside:
			return fmt.Errorf("%w: memory in several blocks", ErrFormat)
		}
		s.inside, s.off, s.size = true, t.off, t.size
	}
	return nil
}

// vmwareGeneral is where the block "gpregs" has each of vm.Registers.General:
// rax rcx rdx rbx rbp rsp rsi rdi r8 … r15.
var vmwareGeneral = [16]int{0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

var vmwareNames = map[string]int{
	"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7,
	"r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15,
}

// cpuTag takes the registers of the CPU that the first index names. Older
// products write them one by one, later ones in blocks.
func (s *vmwareState) cpuTag(src source) func(vmwareTag) error {
	le := binary.LittleEndian
	return func(t vmwareTag) error {
		if t.name == "cpu:numVCPUs" && len(s.cpus) == 0 && t.value <= maxCPUs {
			s.cpus, s.told = make([]vm.Registers, t.value), make([]vmwareTold, t.value)
		}
		i := t.index[0]
		if uint64(i) >= uint64(len(s.cpus)) {
			return nil
		}
		r, told := &s.cpus[i], &s.told[i]
		var b []byte
		if t.block && t.size <= 128 && !t.packed {
			b = make([]byte, t.size)
			if err := readFull(src, b, t.off); err != nil {
				return err
			}
		}
		cr := func(n int, v uint64) {
			switch n {
			case 0:
				r.CR0 = v
			case 3:
				r.CR3, told.cr3 = v, true
			case 4:
				r.CR4, told.cr4 = v, true
			}
		}
		g, named := vmwareNames[t.name]
		switch {
		case named && !t.block:
			r.General[g] = t.value
		case t.name == "gpregs" && len(b) == 128:
			for g, at := range vmwareGeneral {
				r.General[g] = le.Uint64(b[8*at:])
			}
		case t.name == "CR64" && len(b) == 72:
			for n := range 9 {
				cr(n, le.Uint64(b[8*n:]))
			}
		case t.name == "CR64" && !t.block:
			cr(int(t.index[1]), t.value)
		case t.name == "IDTR" && len(b) == 10:
			r.IDTBase = le.Uint64(b[2:])
		case t.name == "IDTR" && !t.block && t.index[1] == 1:
			r.IDTBase |= t.value & (1<<32 - 1)
		case t.name == "IDTR" && !t.block && t.index[1] == 2:
			r.IDTBase |= t.value << 32
		case t.name == "rip" && !t.block:
			r.RIP, told.rip = t.value, true
		case strings.EqualFold(t.name, "eflags") && !t.block:
			r.RFLAGS |= t.value
		}
		r.RSP = r.General[4]
		return nil
	}
}

// registers are those of every CPU, or none if one lacks some.
func (s *vmwareState) registers() []vm.Registers {
	for i, t := range s.told {
		if !t.rip || !t.cr3 || !t.cr4 {
			return nil
		}
		s.cpus[i].Valid = true
	}
	return s.cpus
}

// pieces tells where a file of so many bytes has the memory.
func (s *vmwareState) pieces(off, size uint64, truncated bool) ([]piece, error) {
	if s.count == 0 {
		return []piece{{0, size &^ (mem.PageSize - 1), off}}, nil
	}
	var out []piece
	for i, r := range s.regions[:s.count] {
		p := piece{r.frame * mem.PageSize, r.pages * mem.PageSize, off + r.page*mem.PageSize}
		have := size - min(size, p.off-off)
		if p.size > have && !truncated {
			return nil, fmt.Errorf("%w: region %d of VMware's memory ends at byte %d, there are %d", ErrTruncated, i, p.off-off+p.size, size)
		}
		if p.size = min(p.size, have); p.size > 0 {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: VMware state file without memory", ErrFormat)
	}
	return union(out), nil
}

// openVMware opens a state file, and the memory in or beside it. file is its own
// from then on if it succeeds.
func openVMware(path string, file *ramfile.File, o options) (vm.Machine, error) {
	s, err := parseVMware(file)
	if err != nil {
		return nil, err
	}
	if s.inside {
		if s.off > file.Size() || s.size > file.Size()-s.off {
			if !o.truncated || s.off >= file.Size() {
				return nil, fmt.Errorf("%w: VMware state file: its memory ends at byte %d, the file has %d", ErrTruncated, s.off+s.size, file.Size())
			}
			s.size = file.Size() - s.off
		}
		return s.open(path, file, s.off, s.size, "VMware state file", o)
	}
	beside := strings.TrimSuffix(path, filepath.Ext(path)) + ".vmem"
	f, err := openRegular(beside)
	if err != nil {
		return nil, fmt.Errorf("%w: VMware state file without memory, which is in a .vmem file beside it: %w", ErrFormat, err)
	}
	vmem, err := ramfile.Map(f, false)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	m, err := s.open(beside, vmem, 0, vmem.Size(), "told by "+filepath.Base(path), o)
	if err != nil {
		return nil, errors.Join(err, vmem.Close())
	}
	if err := file.Close(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (s *vmwareState) open(path string, file *ramfile.File, off, size uint64, how string, o options) (vm.Machine, error) {
	p, err := s.pieces(off, size, o.truncated)
	if err != nil {
		return nil, err
	}
	places, err := pages(file, p)
	if err != nil {
		return nil, err
	}
	m, err := newMachine(path, file, places, fmt.Sprintf("%d regions (%s)", max(s.count, 1), how))
	if err != nil {
		return nil, err
	}
	m.regs = s.registers()
	return m, nil
}

// besideVMem gives what the state file beside a .vmem file tells, and its name;
// nil: there is none.
func besideVMem(path string) (*vmwareState, string, error) {
	stem, ok := strings.CutSuffix(path, ".vmem")
	if !ok {
		return nil, "", nil
	}
	for _, ext := range []string{".vmss", ".vmsn"} {
		s, err := vmwareStateOf(stem + ext)
		if errors.Is(err, fs.ErrNotExist) || s == nil && err == nil {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("%w (%s; without it: tell the layout)", err, filepath.Base(stem+ext))
		}
		return s, filepath.Base(stem + ext), nil
	}
	return nil, "", nil
}

// vmwareStateOf reads a state file; nil: it is none, or has its memory inside.
func vmwareStateOf(path string) (*vmwareState, error) {
	f, err := openRegular(path)
	if errors.Is(err, ErrFormat) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	src, err := plain(f)
	if err != nil {
		return nil, nil
	}
	defer src.Close()
	var head [vmwareHeader]byte
	if readFull(src, head[:], 0) != nil || !isVMware(head[:]) {
		return nil, nil
	}
	s, err := parseVMware(src)
	if err != nil || s.inside {
		return nil, err
	}
	return s, nil
}
