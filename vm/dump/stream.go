package dump

import (
	"encoding/binary"
	"fmt"

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

	deltas []delta // of all blocks
	room   *uint64 // of ramBlock
	// What the stream was made with, as far as it changes what is in it.
	mapped, shared bool
}

// parseStream reads the stream up to where the RAM is complete.
func parseStream(src source, truncated bool) (*stream, error) {
	r := newStreamReader(src)
	s := &stream{room: groupRoom(src.Size())}
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
		case "configuration/capabilities":
			for n := r.u32(); n > 0 && r.err == nil; n-- {
				switch r.name() {
				case "mapped-ram":
					s.mapped = true
				case "x-ignore-shared":
					s.shared = true
				}
			}
		default:
			return fmt.Errorf("%q, which is not known", name)
		}
	}
	return nil
}
