package linux

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"vmscope/mem"
)

// DirectMap is the virtual address at which the kernel's map of all RAM has
// physical address 0, or would have it if there were RAM. Kernels of 32 bits map
// the first RAM only: see DirectEnd.
func (v *View) DirectMap() (mem.VA, error) {
	base, err := v.port.directMap(v)
	if err != nil {
		return 0, err
	}
	// The image is RAM too, so the map must show it.
	if err := leads(v.Mem, base+mem.VA(v.Kernel.Phys), v.Kernel.Phys); err != nil {
		return 0, fmt.Errorf("map of all RAM at %#x: %w", uint64(base), err)
	}
	return base, nil
}

// DirectEnd is the physical address up to which DirectMap holds: beyond it the
// kernel maps RAM as it needs it. It is the highest of all where no RAM is beyond.
func (v *View) DirectEnd() mem.PA { return v.port.directEnd(v) }

// Image is where the kernel's image is mapped, from _text (or _stext) to _end,
// and where it lies.
func (v *View) Image() (start mem.VA, pa mem.PA, size uint64, err error) {
	start, _, err = v.firstSymbol("_text", "_stext")
	end, err2 := v.Symbol("_end")
	if err = errors.Join(err, err2); err != nil {
		return 0, 0, 0, err
	}
	if start > v.Text || end <= v.Text || end-start > imageMax {
		return 0, 0, 0, fmt.Errorf("image from %#x to %#x: %w", uint64(start), uint64(end), mem.ErrInconsistent)
	}
	return start, v.Kernel.Phys - mem.PA(v.Text-start), uint64(end - start), nil
}

// Traces are the parts of RAM in which Find found the kernel: the pages of its
// VMCOREINFO, and where that does not say where the symbols are, or there is
// none, the kernel's read-only data. Nothing else has to be searched to find it
// again. They are sorted.
func (v *View) Traces() ([]mem.Range, error) {
	var out []mem.Range
	if v.info != nil {
		for _, pa := range v.info.Places { // sorted, of at most a page
			first := pa &^ (mem.PageSize - 1)
			if n := len(out); n > 0 && out[n-1].End() > first {
				continue
			}
			out = append(out, mem.Range{Start: first, Size: mem.PageSize})
		}
		if _, ok := v.info.Kallsyms(); ok {
			return out, nil
		}
	}
	start, _, err := v.firstSymbol("__start_rodata", "_stext")
	end, _, err2 := v.firstSymbol("__end_rodata", "_end")
	if err = errors.Join(err, err2); err != nil {
		return nil, err
	}
	if start < v.Text || end <= start || end-start > imageMax {
		return nil, fmt.Errorf("read-only data from %#x to %#x: %w", uint64(start), uint64(end), mem.ErrInconsistent)
	}
	first := (v.Kernel.Phys + mem.PA(start-v.Text)) &^ (mem.PageSize - 1)
	last := (v.Kernel.Phys + mem.PA(end-v.Text) - 1) &^ (mem.PageSize - 1)
	image := mem.Range{Start: first, Size: uint64(last-first) + mem.PageSize}
	out = slices.DeleteFunc(out, func(r mem.Range) bool { return r.Start >= image.Start && r.Start < image.End() })
	out = append(out, image)
	slices.SortFunc(out, func(a, b mem.Range) int { return cmp.Compare(a.Start, b.Start) })
	return out, nil
}
