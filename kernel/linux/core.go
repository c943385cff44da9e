package linux

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// DirectMap is the virtual address at which the kernel maps physical address 0
// (page_offset_base; Documentation/arch/x86/x86_64/mm.rst).
func (v *View) DirectMap() (mem.VA, error) {
	at, err := v.Symbol("page_offset_base")
	if err != nil {
		return 0, err
	}
	base, err := v.Mem.Pointer(at)
	if err != nil {
		return 0, err
	}
	// The image is RAM too, so the map must show it.
	if err := leads(v.Mem, base+mem.VA(v.Kernel.Phys), v.Kernel.Phys); err != nil {
		return 0, fmt.Errorf("page_offset_base %#x: %w", uint64(base), err)
	}
	return base, nil
}

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
// VMCOREINFO, or if it was found without, its image. Nothing else has to be
// searched to find it again.
func (v *View) Traces() ([]mem.Range, error) {
	if v.info == nil {
		_, pa, size, err := v.Image()
		if err != nil {
			return nil, err
		}
		first := pa &^ (mem.PageSize - 1)
		last := (pa + mem.PA(size) - 1) &^ (mem.PageSize - 1)
		return []mem.Range{{Start: first, Size: uint64(last-first) + mem.PageSize}}, nil
	}
	var out []mem.Range
	for _, pa := range v.info.Places { // sorted, of at most a page
		first := pa &^ (mem.PageSize - 1)
		if n := len(out); n > 0 && out[n-1].End() > first {
			continue
		}
		out = append(out, mem.Range{Start: first, Size: mem.PageSize})
	}
	return out, nil
}
