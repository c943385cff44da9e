package dump

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"vmscope/vm"
)

// QEMU's migration stream, as `migrate "exec:cat > FILE"` and libvirt's save
// write it. Numbers are big endian (QEMU migration/savevm.h, migration/ram.c).
const (
	streamMagic   = "QEVM"
	streamVersion = 3

	secStart   = 1
	secPart    = 2
	secEnd     = 3
	secFull    = 4
	secSub     = 5
	secDesc    = 6
	secConfig  = 7
	secCommand = 8
	secFooter  = 0x7e

	ramZero     = 2
	ramSizes    = 4
	ramPage     = 8
	ramEnd      = 0x10
	ramContinue = 0x20

	maxBlocks = 4096
)

// stream is the RAM in a migration stream: of each block, where the file has
// each page last.
type stream struct {
	machine string // type, e.g. "pc-q35-7.2"
	blocks  []*ramBlock
	last    *ramBlock // of the page before: it goes on across sections
	whole   bool      // the end was found, behind the states of devices
	regs    []vm.Registers
	noRegs  error // why there are none
}

// ramBlock is a block of RAM: the guest's memory, a ROM, video memory.
type ramBlock struct {
	name string
	size uint64
	// pages are offsets in the file, of pages in groups; 0, which is no page's, is
	// zeros. A group is there if one of its pages is.
	pages map[uint64]*[pageGroup]uint64
}

const (
	pageGroup  = 512
	streamPage = 4096
)

// parseStream reads the stream up to where the RAM is complete.
func parseStream(src source, truncated bool) (*stream, error) {
	r := &streamReader{r: bufio.NewReaderSize(io.NewSectionReader(src, 0, int64(src.Size())), 64<<10)}
	s := &stream{}
	if magic, version := r.u32(), r.u32(); r.err == nil && (magic != binary.BigEndian.Uint32([]byte(streamMagic)) || version != streamVersion) {
		return nil, fmt.Errorf("%w: migration stream of version %d", ErrFormat, version)
	}
	done, err := false, error(nil)
	var ram uint32
	for !done && r.err == nil && err == nil {
		at := r.off
		switch typ := r.u8(); {
		case r.err != nil:
		case typ == secConfig:
			err = s.config(r)
		case typ == secStart:
			id, name := r.u32(), r.name()
			r.skip(8) // instance, version
			if name != "ram" || len(s.blocks) > 0 {
				err = fmt.Errorf("section %q, of which the length cannot be known", name)
				break
			}
			ram = id
			err = s.ram(r)
		case (typ == secPart || typ == secEnd) && len(s.blocks) > 0:
			if id := r.u32(); id != ram && r.err == nil {
				err = fmt.Errorf("section %d, of which the length cannot be known", id)
				break
			}
			err = s.ram(r)
			done = typ == secEnd && err == nil
		case typ == secFooter:
			r.skip(4)
		case typ == secCommand:
			r.skip(2)
			r.skip(uint64(r.u16()))
		default:
			err = fmt.Errorf("%#x where a section should begin", typ)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: migration stream: section at offset %#x: %w", ErrFormat, at, err)
		}
	}
	if r.err != nil && (!truncated || len(s.blocks) == 0) {
		return nil, fmt.Errorf("%w: migration stream: at offset %#x, before the RAM was complete: %w", ErrTruncated, r.off, r.err)
	}
	if done {
		if r.peek() == secFooter {
			r.skip(5)
		}
		s.readStates(src, r.off)
	}
	return s, nil
}

// readStates reads what follows the RAM.
func (s *stream) readStates(src source, off uint64) {
	desc := description(src, off)
	if s.whole = desc != 0; s.whole {
		s.regs, s.noRegs = states(src, off, desc)
	}
}

// config reads the first section: the type of the machine.
func (s *stream) config(r *streamReader) error {
	n := r.u32()
	if n > 255 {
		return fmt.Errorf("a name of %d bytes", n)
	}
	s.machine = string(r.bytes(int(n)))
	for r.peek() == secSub {
		r.skip(1)
		name := r.name()
		r.skip(4)
		switch name {
		case "configuration/target-page-bits":
			if bits := r.u32(); bits != 12 && r.err == nil {
				return fmt.Errorf("pages of %d bits", bits)
			}
		case "configuration/uuid":
			r.skip(16)
		default:
			return fmt.Errorf("%q, which is not known", name)
		}
	}
	return nil
}

// ram reads what one section of RAM has.
func (s *stream) ram(r *streamReader) error {
	for r.err == nil {
		at := r.off
		v := r.u64()
		off, flags := v&^(streamPage-1), v&(streamPage-1)
		what := flags &^ ramContinue
		switch {
		case r.err != nil:
			return nil
		case flags == ramEnd:
			return nil
		case flags == ramSizes:
			if err := s.sizes(r, off); err != nil {
				return err
			}
			continue
		case what != ramZero && what != ramPage:
			return fmt.Errorf("page of kind %#x at offset %#x: this stream is compressed, or split (xbzrle, compress, multifd), or of a later version", flags, at)
		case flags&ramContinue == 0:
			name := r.name()
			s.last = nil
			for _, x := range s.blocks {
				if x.name == name {
					s.last = x
				}
			}
		}
		if r.err != nil {
			return nil
		}
		b := s.last
		if b == nil || off >= b.size {
			return fmt.Errorf("page %#x at offset %#x is in no block", off, at)
		}
		n := off / streamPage
		group := b.pages[n/pageGroup]
		if what == ramZero {
			if c := r.u8(); c != 0 {
				return fmt.Errorf("page of bytes %#x at offset %#x", c, at)
			}
			if group != nil {
				group[n%pageGroup] = 0
			}
			continue
		}
		if group == nil {
			group = new([pageGroup]uint64)
			b.pages[n/pageGroup] = group
		}
		group[n%pageGroup] = r.off
		r.skip(streamPage)
		if r.err != nil { // the page is not whole
			group[n%pageGroup] = 0
		}
	}
	return nil
}

// sizes reads the list of blocks.
func (s *stream) sizes(r *streamReader, total uint64) error {
	if len(s.blocks) > 0 || total > maxBundleRAM {
		return fmt.Errorf("a second list of blocks, or of %d bytes", total)
	}
	for sum := uint64(0); sum < total && r.err == nil; {
		b := &ramBlock{name: r.name(), size: r.u64(), pages: make(map[uint64]*[pageGroup]uint64)}
		if r.err != nil {
			return nil
		}
		if b.size > total-sum || b.size%streamPage != 0 || len(s.blocks) == maxBlocks {
			return fmt.Errorf("block %q of %d bytes, of %d in all", b.name, b.size, total)
		}
		sum += b.size
		s.blocks = append(s.blocks, b)
	}
	return nil
}

// memory is the block that is the guest's RAM: the one of QEMU's name for it,
// else the largest, which must be the only one that is larger than a video
// card's. RAM in several blocks is of a machine with NUMA nodes.
func (s *stream) memory() (*ramBlock, error) {
	const video = 64 << 20
	var best *ramBlock
	large, nodes := 0, 0
	for _, b := range s.blocks {
		if b.name == "pc.ram" || b.name == "mach-virt.ram" {
			return b, nil
		}
		if b.size > video {
			large++
		}
		if strings.Contains(b.name, "ram-node") {
			nodes++
		}
		if best == nil || b.size > best.size {
			best = b
		}
	}
	switch {
	case best == nil:
		return nil, fmt.Errorf("%w: migration stream without memory", ErrFormat)
	case large > 1 || nodes > 1:
		return nil, fmt.Errorf("%w: migration stream of RAM in several blocks (NUMA nodes): how they lie is not known", ErrFormat)
	}
	return best, nil
}

// streamReader reads numbers; after a failure zeros.
type streamReader struct {
	r   *bufio.Reader
	off uint64
	err error
	buf [256]byte
}

func (r *streamReader) bytes(n int) []byte {
	p := r.buf[:n]
	if r.err == nil {
		_, r.err = io.ReadFull(r.r, p)
	}
	if r.err != nil {
		clear(p)
		return p
	}
	r.off += uint64(n)
	return p
}

func (r *streamReader) u8() uint8   { return r.bytes(1)[0] }
func (r *streamReader) u16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *streamReader) u32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *streamReader) u64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

// name reads a string behind its length, a byte.
func (r *streamReader) name() string { return string(r.bytes(int(r.u8()))) }

// peek is the next byte; 0 at the end.
func (r *streamReader) peek() byte {
	if r.err == nil {
		if b, err := r.r.Peek(1); err == nil {
			return b[0]
		}
	}
	return 0
}

func (r *streamReader) skip(n uint64) {
	if r.err == nil {
		var k int
		k, r.err = r.r.Discard(int(n))
		r.off += uint64(k)
	}
}
