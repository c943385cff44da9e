package linux

import (
	"fmt"
	"strings"

	"vmscope/ctype"
	"vmscope/mem"
)

// resourceLayout is struct resource (include/linux/ioport.h).
type resourceLayout struct {
	Start   ctype.Field `c:"resource.start"`
	End     ctype.Field `c:"resource.end"`
	Name    ctype.Field `c:"resource.name"`
	Sibling ctype.Field `c:"resource.sibling"`
	Child   ctype.Field `c:"resource.child"`
}

// SystemRAM lists the physical ranges that the kernel uses as memory: the
// entries "System RAM" at the top of /proc/iomem.
func (v *View) SystemRAM() ([]mem.Range, error) {
	l, err := layout[resourceLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	root, err := v.Symbol("iomem_resource")
	if err != nil {
		return nil, err
	}
	var out []mem.Range
	node, err := v.Mem.Pointer(l.Child.At(root))
	var loop brent
	for n := 0; err == nil && node != 0; n++ {
		if n > 1<<16 || loop.seen(node) {
			return out, errBroken("iomem_resource", node, "its list loops")
		}
		var start, end uint64
		var name mem.VA
		if start, err = v.Mem.Uint(l.Start.At(node), int(l.Start.Size())); err != nil {
			break
		}
		if end, err = v.Mem.Uint(l.End.At(node), int(l.End.Size())); err != nil {
			break
		}
		if name, err = v.Mem.Pointer(l.Name.At(node)); err != nil {
			break
		}
		if s, e := v.Mem.CString(name, 64); e == nil && strings.HasPrefix(string(s), "System RAM") && end >= start {
			out = append(out, mem.Range{Start: mem.PA(start), Size: end - start + 1})
		}
		node, err = v.Mem.Pointer(l.Sibling.At(node))
	}
	return out, err
}

// CheckLayout compares what the kernel uses as memory with where the source
// says RAM lies: all of it must be RAM, and above 4 GiB both must end alike. It
// is the proof that a layout found by trial is right beyond the part of RAM in
// which the kernel's image lies.
func (v *View) CheckLayout(ram []mem.Range) error {
	used, err := v.SystemRAM()
	if err != nil {
		return fmt.Errorf("check the layout of RAM: %w", err)
	}
	var top mem.PA
	for _, u := range used {
		top = max(top, u.End())
		inside := false
		for _, r := range ram {
			// The last page of a range may be cut by firmware, never exceeded.
			inside = inside || u.Start >= r.Start && u.End() <= r.End()
		}
		if !inside {
			return fmt.Errorf("%w: the kernel uses %#x-%#x as memory, where this layout has none", mem.ErrInconsistent, uint64(u.Start), uint64(u.End()))
		}
	}
	if n := len(ram); n > 0 && ram[n-1].Start >= 4<<30 && top != ram[n-1].End() {
		return fmt.Errorf("%w: the kernel's memory ends at %#x, this layout's at %#x", mem.ErrInconsistent, uint64(top), uint64(ram[n-1].End()))
	}
	return nil
}
