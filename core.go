package vmscope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm/dump"
)

// WriteCore writes all RAM as an ELF core that crash and drgn open: its
// segments carry the kernel's virtual addresses, as those of /proc/vmcore do,
// and its notes the kernel's VMCOREINFO. Memory that was never used becomes
// holes if out is a file. progress may be nil.
func (v *View) WriteCore(ctx context.Context, out io.Writer, progress func(done, total uint64)) error {
	g, ok := v.Machine.(mem.Ranger)
	if !ok {
		return fmt.Errorf("dump: the RAM of this source is not known: %w", errors.ErrUnsupported)
	}
	base, err := v.DirectMap()
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	extents, err := mem.Extents(v.Machine)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	start, pa, size, err := v.Image()
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	// The image's own mapping stands first and shares the bytes of the direct
	// map.
	image := dump.Segment{VA: start, PA: pa, Size: size, Flags: 7, Of: -1}
	segs := []dump.Segment{image}
	for _, r := range g.Ranges() {
		s := dump.Segment{VA: base + mem.VA(r.Start), PA: r.Start, Size: r.Size, Flags: 7, Data: []dump.Run{}}
		s.Read = func(p []byte, off uint64) error {
			_, err := v.Machine.ReadPhys(p, r.Start+mem.PA(off))
			return err
		}
		for _, e := range extents {
			if e.Start >= r.Start && e.End() <= r.End() {
				s.Data = append(s.Data, dump.Run{Off: uint64(e.Start - r.Start), Size: e.Size})
			}
		}
		if pa >= r.Start && pa+mem.PA(size) <= r.End() {
			segs[0].Of, segs[0].Off = len(segs), uint64(pa-r.Start)
		}
		segs = append(segs, s)
	}
	if segs[0].Of < 0 {
		return fmt.Errorf("dump: the kernel's image at %#x does not lie in one range of RAM: %w", uint64(pa), mem.ErrInconsistent)
	}
	notes := []dump.Note{{Name: "CORE", Type: ntPRStatus, Desc: make([]byte, prStatusSize)}}
	if text := v.CoreInfo(); text != "" {
		notes = append(notes, dump.Note{Name: "VMCOREINFO", Desc: []byte(text)})
	}
	return dump.WriteCore(ctx, out, notes, segs, progress)
}

// The note that every core has for each CPU: struct elf_prstatus of x86-64,
// here without registers.
const (
	ntPRStatus   = 1
	ntPRPSInfo   = 3
	prStatusSize = 336
	psInfoSize   = 136
)

// WriteProcessCore writes the memory of one process as an ELF core that gdb
// opens with the executable beside it. Pages that are not in RAM (never
// touched, swapped out) read as zeros; missing counts their bytes.
func (v *View) WriteProcessCore(ctx context.Context, out io.Writer, t linux.Task, progress func(done, total uint64)) (missing uint64, err error) {
	space, err := v.SpaceOf(t)
	if err != nil {
		return 0, err
	}
	areas, err := v.Areas(t)
	if err != nil {
		return 0, err
	}
	var segs []dump.Segment
	for _, a := range areas {
		if a.End <= a.Start || a.Start >= 1<<63 { // the vsyscall page is the kernel's
			continue
		}
		s := dump.Segment{VA: a.Start, Size: uint64(a.End - a.Start), Flags: flagsOf(a.Perms)}
		s.Data = presentRuns(ctx, space, a.Start, a.End)
		left := s.Size
		for _, r := range s.Data {
			left -= r.Size
		}
		missing += left
		s.Read = func(p []byte, off uint64) error {
			for len(p) > 0 {
				n := min(len(p), mem.PageSize)
				if _, err := space.Read(p[:n], a.Start+mem.VA(off)); err != nil {
					if errors.Is(err, mem.ErrUnreachable) {
						return err
					}
					clear(p[:n]) // went away since it was listed
					missing += uint64(n)
				}
				p, off = p[n:], off+uint64(n)
			}
			return nil
		}
		segs = append(segs, s)
	}
	info := make([]byte, psInfoSize) // struct elf_prpsinfo: pid at 24, name at 40
	info[24], info[25], info[26], info[27] = byte(t.PID), byte(t.PID>>8), byte(t.PID>>16), byte(t.PID>>24)
	copy(info[40:55], bytes.TrimRight([]byte(t.Comm()), "\x00"))
	notes := []dump.Note{{Name: "CORE", Type: ntPRPSInfo, Desc: info}}
	err = dump.WriteCore(ctx, out, notes, segs, progress)
	return missing, err
}

// presentRuns lists the runs of pages between start and end that are in RAM.
func presentRuns(ctx context.Context, s *mem.Space, start, end mem.VA) []dump.Run {
	runs := []dump.Run{}
	for va := start; va < end && ctx.Err() == nil; {
		m, err := s.Translate(va)
		size := uint64(mem.PageSize)
		if err != nil {
			// A whole table may be missing: go on behind what it would map.
			var f *mem.FaultError
			if errors.As(err, &f) && f.Level > 1 && f.Level <= 5 {
				size = 1 << (12 + 9*(f.Level-1))
				size -= uint64(va) & (size - 1)
			}
		} else {
			size = m.Left()
		}
		size = min(size, uint64(end-va))
		if err == nil {
			off := uint64(va - start)
			if n := len(runs); n > 0 && runs[n-1].Off+runs[n-1].Size == off {
				runs[n-1].Size += size
			} else {
				runs = append(runs, dump.Run{Off: off, Size: size})
			}
		}
		va += mem.VA(size)
	}
	return runs
}

// flagsOf turns rwxp into the flags of a program header.
func flagsOf(perms string) (f uint32) {
	for i, bit := range []uint32{4, 2, 1} {
		if i < len(perms) && perms[i] != '-' {
			f |= bit
		}
	}
	return f
}
