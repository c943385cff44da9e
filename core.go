package vmscope

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/dump"
)

// WriteCore writes all RAM as an ELF core that crash and drgn open: its
// segments carry the kernel's virtual addresses, as those of /proc/vmcore do,
// and its notes the kernel's VMCOREINFO. Memory that was never used becomes
// holes if out is a file. progress may be nil.
//
// The vCPUs' registers are in it if the source tells them and the guest stands
// still (Paused, or a dump): they would not fit the memory else.
func (v *View) WriteCore(ctx context.Context, out io.Writer, progress func(done, total uint64)) error {
	g, ok := v.Machine.(mem.Ranger)
	if !ok {
		return fmt.Errorf("dump: the RAM of this source is not known: %w", errors.ErrUnsupported)
	}
	processor, ok := processors[v.Arch]
	if !ok {
		return fmt.Errorf("dump: a core of a %s machine: %w", v.Arch, errors.ErrUnsupported)
	}
	base, err := v.DirectMap()
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	extents, err := mem.Extents(v.Machine)
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	var segs []dump.Segment
	for _, r := range mapped(g.Ranges(), v.DirectEnd()) {
		va := base + mem.VA(r.Start)
		if r.Start >= v.DirectEnd() {
			va = notMapped
		}
		segs = append(segs, dump.Segment{
			VA: va, PA: r.Start, Size: r.Size, Flags: 7,
			Data: runsWithin(r, extents),
			Read: func(p []byte, off uint64) error {
				_, err := v.Machine.ReadPhys(p, r.Start+mem.PA(off))
				return err
			},
		})
	}
	if v.Text != base+mem.VA(v.Kernel.Phys) { // else it lies in the map of RAM
		image, err := v.imageSegment(segs)
		if err != nil {
			return fmt.Errorf("dump: %w", err)
		}
		segs = append(segs, image)
	}
	var notes []dump.Note
	if v.Mode.PointerSize() == 8 { // their registers are as wide
		notes = v.cpuNotes(ctx)
	}
	if text := v.CoreInfo(); text != "" {
		notes = append(notes, dump.CoreInfoNote(text))
	}
	return dump.WriteCore(ctx, out, processor, notes, segs, progress)
}

// notMapped stands in a core for the address of memory that the kernel maps at
// times (kexec-tools, kexec/crashdump-elf.c).
const notMapped = ^mem.VA(0)

// mapped cuts ranges where the kernel's map of RAM ends.
func mapped(ranges []mem.Range, end mem.PA) (out []mem.Range) {
	for _, r := range ranges {
		if r.Start < end && end < r.End() {
			out = append(out, mem.Range{Start: r.Start, Size: uint64(end - r.Start)})
			r = mem.Range{Start: end, Size: uint64(r.End() - end)}
		}
		out = append(out, r)
	}
	return out
}

// imageSegment is the kernel's image, whose bytes are those of one of segs.
func (v *View) imageSegment(segs []dump.Segment) (dump.Segment, error) {
	start, pa, size, err := v.Image()
	if err != nil {
		return dump.Segment{}, err
	}
	for i, s := range segs {
		if pa >= s.PA && pa+mem.PA(size) <= s.PA+mem.PA(s.Size) {
			return dump.Segment{VA: start, PA: pa, Size: size, Flags: 7, Of: i, Off: uint64(pa - s.PA)}, nil
		}
	}
	return dump.Segment{}, fmt.Errorf("the kernel's image at %#x does not lie in one range of RAM: %w", uint64(pa), mem.ErrInconsistent)
}

// processors are those of which cores are written, by what uname -m prints.
var processors = map[string]elf.Machine{"x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64, "i686": elf.EM_386, "armv7l": elf.EM_ARM}

// runsWithin lists what of the extents lies within r, as offsets into it.
func runsWithin(r mem.Range, extents []mem.Range) []dump.Run {
	runs := []dump.Run{}
	for _, e := range extents {
		if start, end := max(e.Start, r.Start), min(e.End(), r.End()); start < end {
			runs = append(runs, dump.Run{Off: uint64(start - r.Start), Size: uint64(end - start)})
		}
	}
	return runs
}

// cpuNotes tells the registers of the vCPUs, where they fit the memory.
func (v *View) cpuNotes(ctx context.Context) []dump.Note {
	c, ok := v.Machine.(vm.CPUs)
	if !ok || !v.still {
		return nil
	}
	regs, err := c.CPUs(ctx)
	if err != nil {
		return nil // a core without is worth as much
	}
	return dump.CPUNotes(regs)
}
