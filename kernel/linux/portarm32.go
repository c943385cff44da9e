package linux

import (
	"errors"
	"fmt"

	"vmscope/arch"
	armv7 "vmscope/arch/arm"
	"vmscope/ksym"
	"vmscope/mem"
)

// arm32 is the port of 32-bit Arm (Documentation/arch/arm/memory.rst). The image
// lies in the map of low memory, which leads from PAGE_OFFSET to where RAM begins
// (PHYS_OFFSET); the kernel does not move itself.
type arm32 struct{}

func (arm32) arch() string      { return "armv7l" }
func (arm32) tableArch() string { return "arm" }
func (arm32) align64() uint64   { return 8 }

// pageOffset is where the map of low memory begins, of the kernel whose text is
// there: 1, 2, 2.75 or 3 GiB (CONFIG_VMSPLIT_*). The image begins within the first
// 32 MiB of it (TEXT_OFFSET of arch/arm/Makefile), and modules lie in the 16 MiB
// before it.
func (arm32) pageOffset(text mem.VA) mem.VA { return text &^ (1<<28 - 1) }

const (
	modulesArm32     = 16 << 20
	imageLatestArm32 = 32 << 20
	vmallocEndArm32  = 0xff800000 // VMALLOC_END
)

// claims goes by where the first page tables are: just before the image, which
// on x86 they are behind.
func (p arm32) claims(f *finder, c claim) ([]*claim, bool) {
	base := p.pageOffset(c.text)
	if c.text>>32 != 0 || c.root < base || c.root >= c.text || c.text-base >= imageLatestArm32 || base < 1<<30 {
		return nil, false
	}
	c.modes = []arch.Mode{armv7.Mode{}}
	if s, _ := c.info.Config("ARM_LPAE"); s == "y" {
		c.modes = []arch.Mode{armv7.LPAE}
	}
	return p.places(f, c), true
}

// tableClaims takes the root from the table, so that the kernel must list its
// data there (CONFIG_KALLSYMS_ALL).
func (p arm32) tableClaims(f *finder, t ksym.Found) ([]*claim, error) {
	text, _, root, err := imageIn(t, "swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	found := p.places(f, *tableClaim(t.Table, text, root, 0, 0, armv7.Mode{}, armv7.LPAE))
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: no page tables map its image", mem.ErrInconsistent)
	}
	return found, nil
}

// physStep is what PHYS_OFFSET is a multiple of (arch/arm/kernel/phys2virt.S,
// before v5.11 16 MiB).
const physStep = 2 << 20

// maxPlaces bounds the places that are worth a proof: true tables map themselves in
// one, and a guest can lay false ones in all.
const maxPlaces = 16

// places lists the claim with each distance of the image at which page tables, if
// they lie there, map themselves and the text. Nothing tells PHYS_OFFSET that is
// found without it.
func (p arm32) places(f *finder, c claim) (out []*claim) {
	extents, err := mem.Extents(f.phys)
	if err != nil {
		return nil
	}
	off := mem.PA(c.root - p.pageOffset(c.root))
	for _, e := range extents {
		end := min(e.End(), 1<<40)
		first := max(e.Start, off) - off
		for phys := (first + physStep - 1) &^ (physStep - 1); phys+off < end; phys += physStep {
			if f.ctx.Err() != nil || len(out) == maxPlaces {
				return out
			}
			c.delta = uint64(p.pageOffset(c.root)) - uint64(phys)
			var modes []arch.Mode
			for _, m := range c.modes {
				s := mem.NewSpace("kernel", f.phys, m.Kernel(f.phys, c.phys(c.root)))
				if leads(s, c.root, c.phys(c.root)) == nil && leads(s, c.text, c.phys(c.text)) == nil {
					modes = append(modes, m)
				}
			}
			if len(modes) > 0 {
				found := c
				found.modes = modes
				out = append(out, &found)
			}
		}
	}
	return out
}

// directMap: the difference may be negative, where RAM begins above 4 GiB.
func (arm32) directMap(v *View) (mem.VA, error) { return v.Text - mem.VA(v.Kernel.Phys), nil }

// directEnd is where low memory ends: the map of it has holes where the firmware
// keeps RAM to itself, and what is behind leads elsewhere.
func (p arm32) directEnd(v *View) mem.PA {
	end := v.Kernel.Phys
	base := v.Text - mem.VA(end)
	tables := arch.MaxTables
	for r, err := range v.Mem.Tr.(arch.Paging).MappingsWithin(&tables, v.Text, vmallocEndArm32-1) {
		if err != nil {
			continue
		}
		if r.VA != base+mem.VA(r.PA) {
			break
		}
		end = r.PA + mem.PA(r.Size)
	}
	return end
}

// vmemmap: the array of struct page is none of virtual memory, and has gaps.
func (arm32) vmemmap(*View) (mem.VA, error) {
	return 0, fmt.Errorf("the array of struct page of a kernel of 32 bits: %w", errors.ErrUnsupported)
}

func (p arm32) halves(v *View) Halves {
	start := p.pageOffset(v.Text)
	end := v.Text - mem.VA(v.Kernel.Phys) + mem.VA(p.directEnd(v))
	return Halves{Modules: Span{start - modulesArm32, start}, Direct: Span{start, end}, Vmalloc: Span{end, vmallocEndArm32}}
}
