package dump

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// The crash dumps of 64-bit Windows: a header of two pages (QEMU
// include/qemu/win_dump_defs.h, WinDumpHeader64), then the pages, either in runs
// that the header lists, or behind a second header with a bitmap of them
// (volatility3 layers/crash.py, _SUMMARY_DUMP).
const (
	winMagic   = "PAGEDU64"
	winMagic32 = "PAGEDUMP"

	winMajor   = 8
	winMinor   = 12
	winTable   = 16 // cr3
	winMachine = 48
	winRuns    = 136 // their number
	winRun     = 152 // first page frame and number of pages of each
	winMaxRuns = 43  // as many as there is room for
	winContext = 840 // CONTEXT of the CPU that crashed
	winType    = 3992
	winHeader  = 8192

	winX86 = 0x8664 // IMAGE_FILE_MACHINE_AMD64

	// Of the second header.
	winBitmapFirst = 0x20 // offset in the file of the first page
	winBitmapBits  = 0x30
	winBitmapAt    = 0x38
)

// winKinds are the types of dumps, and what they hold.
var winKinds = map[uint32]struct {
	name string
	bits bool // a bitmap tells the pages
}{
	1: {"all memory", false},
	2: {"the kernel's memory only", true},
	5: {"all memory", true},
	6: {"the kernel's memory only", true},
	7: {"what Windows chose", true},
}

// isWindows tells the dump by its header.
func isWindows(head []byte) bool {
	return strings.HasPrefix(string(head), winMagic) || strings.HasPrefix(string(head), winMagic32)
}

// openWindows opens a crash dump. Nothing of Windows is decoded: it is memory,
// and vm.Info says whose.
func openWindows(path string, file *ramfile.File, o options) (vm.Machine, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: Windows crash dump: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
	var h [winHeader]byte
	if err := readFull(file, h[:], 0); err != nil {
		return nil, fmt.Errorf("%w: Windows crash dump: its header has %d bytes, the file %d", ErrTruncated, winHeader, file.Size())
	}
	le := binary.LittleEndian
	typ := le.Uint32(h[winType:])
	kind, ok := winKinds[typ]
	switch {
	case string(h[:8]) != winMagic:
		return nil, bad("of a 32-bit Windows, which is not supported")
	case !ok:
		return nil, bad("of type %d: not known, or without memory (a minidump)", typ)
	}
	list, err := winRunList(h[:], file.Size(), o.truncated)
	if kind.bits {
		list, err = winBitmap(file, o.truncated)
	}
	if err != nil {
		return nil, err
	}
	places, err := pages(file, union(list))
	if err != nil {
		return nil, err
	}
	m, err := newMachine(path, file, places, "the page frames in the Windows crash dump: "+kind.name)
	if err != nil {
		return nil, err
	}
	m.info.System = fmt.Sprintf("Windows (kernel version %d, build %d)", le.Uint32(h[winMajor:]), le.Uint32(h[winMinor:]))
	if le.Uint32(h[winMachine:]) == winX86 {
		m.regs = []vm.Registers{winRegisters(h[winContext:], le.Uint64(h[winTable:]))}
	}
	return m, nil
}

// winRunList are the runs of a header, of which the pages follow it one after
// another.
func winRunList(h []byte, size uint64, truncated bool) ([]piece, error) {
	le := binary.LittleEndian
	n := le.Uint32(h[winRuns:])
	if n == 0 || n > winMaxRuns {
		return nil, fmt.Errorf("%w: Windows crash dump: %d runs of memory", ErrFormat, n)
	}
	var list []piece
	at := uint64(winHeader)
	for i := range uint64(n) {
		frame, count := le.Uint64(h[winRun+16*i:]), le.Uint64(h[winRun+16*i+8:])
		if frame > maxPA/mem.PageSize || count > maxPA/mem.PageSize {
			return nil, fmt.Errorf("%w: Windows crash dump: run %d of %#x pages at %#x: no machine has that", ErrFormat, i, count, frame)
		}
		p := piece{frame * mem.PageSize, count * mem.PageSize, at}
		at += p.size
		if at > size {
			if !truncated {
				return nil, fmt.Errorf("%w: Windows crash dump: run %d of its memory ends at byte %d, the file has %d", ErrTruncated, i, at, size)
			}
			p.size -= min(p.size, at-size)
		}
		if p.size > 0 {
			list = append(list, p)
		}
	}
	return winSome(list)
}

func winSome(list []piece) ([]piece, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: Windows crash dump without memory", ErrFormat)
	}
	return list, nil
}

// winBitmap are the pages that the second header lists, in the order of the
// file.
func winBitmap(file *ramfile.File, truncated bool) ([]piece, error) {
	var h [winBitmapAt]byte
	if err := readFull(file, h[:], winHeader); err != nil {
		return nil, fmt.Errorf("%w: Windows crash dump: no room for its second header: %w", ErrTruncated, err)
	}
	le := binary.LittleEndian
	at, frames := le.Uint64(h[winBitmapFirst:]), le.Uint64(h[winBitmapBits:])
	switch {
	case string(h[:8]) != "SDMPDUMP" && string(h[:8]) != "FDMPDUMP":
		return nil, fmt.Errorf("%w: Windows crash dump: %q where its bitmap should be, at offset %#x: not known", ErrFormat, h[:8], winHeader)
	case frames == 0 || frames > maxFrames || at > maxFile:
		return nil, fmt.Errorf("%w: Windows crash dump: a bitmap of %d page frames, pages at offset %#x", ErrFormat, frames, at)
	case (frames+7)/8 > file.Size():
		return nil, fmt.Errorf("%w: Windows crash dump: its bitmap has %d bytes, the file %d", ErrTruncated, (frames+7)/8, file.Size())
	}
	b, err := readBitmap(file, winHeader+winBitmapAt, frames)
	if err != nil {
		return nil, fmt.Errorf("Windows crash dump: %w", err)
	}
	var list []piece
	for n := range b.from(0, frames) {
		if at+mem.PageSize > file.Size() {
			if truncated {
				break
			}
			return nil, fmt.Errorf("%w: Windows crash dump: page frame %#x is at byte %d, the file has %d", ErrTruncated, n, at, file.Size())
		}
		if i := len(list) - 1; i >= 0 && list[i].end() == n*mem.PageSize {
			list[i].size += mem.PageSize
		} else {
			if len(list) == maxSegs {
				return nil, fmt.Errorf("%w: Windows crash dump: memory in more than %d pieces", ErrFormat, maxSegs)
			}
			list = append(list, piece{n * mem.PageSize, mem.PageSize, at})
		}
		at += mem.PageSize
	}
	return winSome(list)
}

// winRegisters decodes the CONTEXT of x86-64, to which the header adds cr3.
func winRegisters(b []byte, cr3 uint64) vm.Registers {
	le := binary.LittleEndian
	r := vm.Registers{
		CR3: cr3, RIP: le.Uint64(b[248:]), RFLAGS: uint64(le.Uint32(b[68:])),
		CS: le.Uint16(b[56:]), SS: le.Uint16(b[66:]),
	}
	for i := range r.General {
		r.General[i] = le.Uint64(b[120+8*i:])
	}
	r.RSP = r.General[4]
	return r
}
