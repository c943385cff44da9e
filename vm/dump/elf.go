package dump

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// The numbers of the ELF specification (System V ABI, chapters 4 and 5) that a
// core has need of.
const (
	etCore   = 4
	ptLoad   = 1
	ptNote   = 4
	pnXNum   = 0xffff // the real count is in sh_info of section 0
	emI386   = 3
	emX86    = 62
	emArm64  = 183
	maxSegs  = 1 << 20  // program headers; paging=true writes some ten thousand
	maxNotes = 64 << 20 // bytes, of all notes together
)

// progHeader is an ELF program header of either class.
type progHeader struct {
	typ                              uint32
	off, vaddr, paddr, filesz, memsz uint64
}

// core is a parsed ELF core file.
type core struct {
	class64 bool
	machine uint16
	progs   []progHeader
}

// parseELF reads the headers of an ELF core. It allocates in proportion to
// headers that are really in the file.
func parseELF(file *ramfile.File) (*core, error) {
	bad := func(format string, a ...any) (*core, error) {
		return nil, fmt.Errorf("%w: ELF file: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
	var h [64]byte
	if n, err := file.ReadAt(h[:], 0); n < 52 {
		return bad("no room for its header: %v", err)
	}
	le := binary.LittleEndian
	c := &core{class64: h[4] == 2}
	switch {
	case h[4] != 1 && h[4] != 2:
		return bad("class %d", h[4])
	case h[5] != 1:
		return bad("not little endian; big-endian guests are not supported")
	}
	if t := le.Uint16(h[16:]); t != etCore {
		return bad("type %d is no core; it is a program or library, not memory", t)
	}
	c.machine = le.Uint16(h[18:])
	var phoff, shoff, num, entsize uint64
	want := uint64(32)
	if c.class64 {
		phoff, shoff, want = le.Uint64(h[32:]), le.Uint64(h[40:]), 56
		entsize, num = uint64(le.Uint16(h[54:])), uint64(le.Uint16(h[56:]))
	} else {
		phoff, shoff = uint64(le.Uint32(h[28:])), uint64(le.Uint32(h[32:]))
		entsize, num = uint64(le.Uint16(h[42:])), uint64(le.Uint16(h[44:]))
	}
	size := file.Size()
	if num == pnXNum {
		off := uint64(28) // of sh_info
		if c.class64 {
			off = 44
		}
		var b [4]byte
		if shoff > size || size-shoff < off+4 {
			return bad("section 0, which holds the number of segments, lies outside of it")
		}
		if _, err := file.ReadAt(b[:], int64(shoff+off)); err != nil {
			return bad("section 0: %v", err)
		}
		num = uint64(le.Uint32(b[:]))
	}
	switch {
	case num == 0:
		return bad("it has no segments")
	case entsize != want:
		return bad("program headers of %d bytes, not %d", entsize, want)
	case num > maxSegs:
		return bad("%d segments are more than any dump has", num)
	case phoff > size || num*entsize > size-phoff:
		return nil, fmt.Errorf("%w: its %d program headers reach to byte %d, the file has %d", ErrTruncated, num, phoff+num*entsize, size)
	}
	buf := make([]byte, num*entsize)
	if _, err := file.ReadAt(buf, int64(phoff)); err != nil {
		return bad("program headers: %v", err)
	}
	c.progs = make([]progHeader, num)
	for i := range c.progs {
		b := buf[uint64(i)*entsize:]
		if c.class64 {
			c.progs[i] = progHeader{le.Uint32(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])}
		} else {
			u := func(o int) uint64 { return uint64(le.Uint32(b[o:])) }
			c.progs[i] = progHeader{le.Uint32(b), u(4), u(8), u(12), u(16), u(20)}
			if c.progs[i].off == 1<<32-1 {
				c.progs[i].off = 1<<64 - 1
			}
		}
	}
	return c, nil
}

// piece is a run of physical memory and where its bytes are. off is noFile for
// zeros.
type piece struct {
	pa, size, off uint64
}

const noFile = 1<<64 - 1

// maxZeros bounds the memory that a core claims without holding it: every byte
// of it costs 1/32768 of a byte of ours.
const maxZeros = 1 << 40

// maxPA is above every physical address (52 bits on x86-64 and Arm) and far
// enough below the end of uint64 that sums cannot wrap.
const maxPA = 1 << 56

func (p piece) end() uint64 { return p.pa + p.size }

// head is the first n bytes of p, tail all but those.
func (p piece) head(n uint64) piece { return piece{p.pa, n, p.off} }

func (p piece) tail(n uint64) piece {
	if p.off != noFile {
		p.off += n
	}
	return piece{p.pa + n, p.size - n, p.off}
}

// pieces turns the PT_LOAD headers into disjoint runs, sorted by address. Where
// several headers give the same physical memory (paging=true writes one for
// each mapping), the file's bytes win over zeros and the first wins else.
func (c *core) pieces(size uint64, truncated bool) ([]piece, error) {
	var data, zero []piece
	loads, need, nonzero := 0, uint64(0), false
	for _, p := range c.progs {
		if p.typ != ptLoad || p.memsz == 0 && p.filesz == 0 {
			continue
		}
		loads++
		nonzero = nonzero || p.paddr != 0
		memsz := max(p.memsz, p.filesz)
		// QEMU marks memory that is mapped but not in the dump (devices) by
		// the offset -1 (dump/dump.c get_offset_range).
		if p.filesz == 0 && p.off == noFile {
			continue
		}
		if p.paddr > maxPA || memsz > maxPA || p.off+p.filesz < p.off {
			return nil, fmt.Errorf("%w: ELF segment of %#x bytes at %#x, offset %#x: no machine has that", ErrFormat, memsz, p.paddr, p.off)
		}
		avail := p.filesz
		if p.filesz > 0 && p.off+p.filesz > size {
			need = max(need, p.off+p.filesz)
			avail = 0
			if p.off < size {
				avail = size - p.off
			}
		}
		if avail > 0 {
			data = append(data, piece{p.paddr, avail, p.off})
		}
		if avail == p.filesz && memsz > p.filesz {
			zero = append(zero, piece{p.paddr + p.filesz, memsz - p.filesz, noFile})
		}
	}
	switch {
	case loads > 1 && !nonzero:
		return nil, fmt.Errorf("%w: its segments have no physical addresses; it is the core of a process, not of a machine", ErrFormat)
	case need > 0 && !truncated:
		return nil, fmt.Errorf("%w: its headers tell of %d bytes, the file has %d", ErrTruncated, need, size)
	}
	zero = union(zero)
	var zeros uint64
	for _, z := range zero {
		zeros += z.size
	}
	if zeros > maxZeros {
		return nil, fmt.Errorf("%w: ELF core that claims %d bytes of memory without giving them", ErrFormat, zeros)
	}
	out := gaps(union(data), zero)
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: ELF core without memory", ErrFormat)
	}
	return out, nil
}

// union sorts pieces, cuts off what an earlier one covers, and joins those
// that continue each other in memory and file.
func union(in []piece) []piece {
	slices.SortStableFunc(in, func(a, b piece) int { return cmp.Compare(a.pa, b.pa) })
	var out []piece
	end := uint64(0)
	for _, p := range in {
		if p.end() <= end {
			continue
		}
		if p.pa < end {
			p = p.tail(end - p.pa)
		}
		end = p.end()
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.end() == p.pa && (l.off == noFile && p.off == noFile || l.off != noFile && l.off+l.size == p.off) {
				l.size += p.size
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

// gaps adds to data the parts of zero that it does not cover. Both are sorted
// and disjoint.
func gaps(data, zero []piece) []piece {
	out := slices.Clone(data)
	i := 0
	for _, z := range zero {
		for i < len(data) && data[i].end() <= z.pa {
			i++
		}
		for j := i; z.size > 0; j++ {
			if j == len(data) || data[j].pa >= z.end() {
				out = append(out, z)
				break
			}
			if data[j].pa > z.pa {
				out = append(out, piece{z.pa, data[j].pa - z.pa, noFile})
			}
			if data[j].end() >= z.end() {
				break
			}
			z = z.tail(data[j].end() - z.pa)
		}
	}
	slices.SortFunc(out, func(a, b piece) int { return cmp.Compare(a.pa, b.pa) })
	return out
}

// maxRagged bounds the pages that are copied because a segment starts inside
// them. Monitors write whole pages; kernels a few ragged ones.
const maxRagged = 4096

// pages turns pieces into places that start on a page: a page in which a piece
// starts is copied, with zeros for what no piece gives.
func pages(file *ramfile.File, in []piece) ([]ramfile.Place, error) {
	var ragged []ramfile.Place
	for _, p := range in {
		base := mem.PA(p.pa &^ (mem.PageSize - 1))
		if uint64(base) == p.pa || len(ragged) > 0 && ragged[len(ragged)-1].PA == base {
			continue
		}
		if len(ragged) == maxRagged {
			return nil, fmt.Errorf("%w: ELF core with more than %d segments that start inside a page", ErrFormat, maxRagged)
		}
		ragged = append(ragged, ramfile.Place{PA: base, Bytes: make([]byte, mem.PageSize)})
	}
	out, i := slices.Clone(ragged), 0
	for _, p := range in {
		for i < len(ragged) && uint64(ragged[i].PA)+mem.PageSize <= p.pa {
			i++
		}
		for j := i; p.size > 0; j++ {
			if j == len(ragged) || uint64(ragged[j].PA) >= p.end() {
				out = append(out, place(file, p))
				break
			}
			base := uint64(ragged[j].PA)
			if p.pa < base {
				out = append(out, place(file, p.head(base-p.pa)))
				p = p.tail(base - p.pa)
			}
			n := min(p.size, base+mem.PageSize-p.pa)
			if p.off != noFile {
				at := p.pa - base
				if _, err := file.ReadAt(ragged[j].Bytes[at:at+n], int64(p.off)); err != nil {
					return nil, fmt.Errorf("read dump: %w", err)
				}
			}
			p = p.tail(n)
		}
	}
	return out, nil
}

func place(file *ramfile.File, p piece) ramfile.Place {
	if p.off == noFile {
		file, p.off = nil, 0
	}
	return ramfile.Place{PA: mem.PA(p.pa), File: file, Off: p.off, Size: p.size}
}

func openELF(path string, file *ramfile.File, o options) (vm.Machine, error) {
	c, err := parseELF(file)
	if err != nil {
		return nil, err
	}
	p, err := c.pieces(file.Size(), o.truncated)
	if err != nil {
		return nil, err
	}
	places, err := pages(file, p)
	if err != nil {
		return nil, err
	}
	m, err := newMachine(path, file, places, "ELF program headers")
	if err != nil {
		return nil, err
	}
	list := c.notes(file)
	m.regs = c.registers(list)
	if is, regs, how := isVBox(list); is {
		m.regs, m.info.Layout = regs, how
	}
	if b, err := bundleOf(path, m, list); b != nil || err != nil {
		return b, err
	}
	return m, nil
}
