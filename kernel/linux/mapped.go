package linux

import (
	"vmscope/arch/x86"
	"vmscope/mem"
)

// mapped searches symbol tables where the vCPUs' page tables map a kernel's image, which is much less than all RAM. What
// is not found so is no error.
func (f *finder) mapped(extents []mem.Range) ([]*Kernel, error) {
	var tried []mem.PA
	for _, c := range f.hints.CPUs {
		if !c.Valid {
			continue
		}
		mode := x86.ModeOf(c.CR0, c.CR4, c.EFER)
		for _, root := range []mem.PA{mem.PA(c.CR3), x86.KernelRoot(mem.PA(c.CR3))} {
			image := mappedImage(mem.NewSpace("vCPU", f.phys, x86.NewPaging(f.phys, root, mode)))
			if image.Size == 0 || len(tried) > 0 && tried[len(tried)-1] == image.Start {
				continue
			}
			tried = append(tried, image.Start)
			f.step("page tables of a vCPU", "map %d MiB at physical %#x", image.Size>>20, uint64(image.Start))
			if found, err := f.search(clip(image, extents)); err != nil || len(found) > 0 {
				return found, err
			}
		}
	}
	return nil, nil
}

// mappedImage finds the run of memory that page tables map in the kernel's image area and that lies in one piece.
func mappedImage(s *mem.Space) (r mem.Range) {
	for off := mem.VA(0); off < 1<<30 && r.Size < imageMax; off += imageAlign {
		m, err := s.Translate(kernelMap + off)
		switch {
		case err == nil && r.Size == 0:
			r = mem.Range{Start: m.PA, Size: imageAlign}
		case err == nil && m.PA == r.End():
			r.Size += imageAlign
		case r.Size > 0:
			return r
		}
	}
	return r
}
