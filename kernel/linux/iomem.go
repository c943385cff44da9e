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
// entries "System RAM" of /proc/iomem, also those within a device (virtio-mem,
// persistent memory that is used as RAM). They are in the list's order.
func (v *View) SystemRAM() ([]mem.Range, error) {
	used, _, err := v.memoryUse()
	return used, err
}

const (
	// maxResources bounds the entries of /proc/iomem, of which large machines have
	// some thousands.
	maxResources = 1 << 16
	// resourceDepth bounds how deep memory is looked for: "Persistent Memory",
	// "dax0.0", "System RAM (kmem)".
	resourceDepth = 4
)

// memoryUse is SystemRAM, and where the uppermost entry ends that is memory or has
// memory in it: what a device could add.
func (v *View) memoryUse() (used []mem.Range, top mem.PA, err error) {
	l, err := layout[resourceLayout](v.Kernel)
	if err != nil {
		return nil, 0, err
	}
	root, err := v.Symbol("iomem_resource")
	if err != nil {
		return nil, 0, err
	}
	n := 0
	var walk func(node mem.VA, depth int) error
	walk = func(node mem.VA, depth int) error {
		var loop brent
		for ; node != 0; n++ {
			if n > maxResources || loop.seen(node) {
				return errBroken("iomem_resource", node, "its list loops")
			}
			start, err := v.Mem.Uint(l.Start.At(node), int(l.Start.Size()))
			if err != nil {
				return err
			}
			end, err := v.Mem.Uint(l.End.At(node), int(l.End.Size()))
			if err != nil {
				return err
			}
			name, err := v.Mem.Pointer(l.Name.At(node))
			if err != nil {
				return err
			}
			had := len(used)
			if s, e := v.Mem.CString(name, 64); e == nil && strings.HasPrefix(string(s), "System RAM") {
				if end >= start {
					used = append(used, mem.Range{Start: mem.PA(start), Size: end - start + 1})
				}
			} else if depth < resourceDepth {
				child, err := v.Mem.Pointer(l.Child.At(node))
				if err == nil {
					err = walk(child, depth+1)
				}
				if err != nil {
					return err
				}
			}
			if len(used) > had && depth == 1 {
				top = max(top, mem.PA(end)+1)
			}
			if node, err = v.Mem.Pointer(l.Sibling.At(node)); err != nil {
				return err
			}
		}
		return nil
	}
	child, err := v.Mem.Pointer(l.Child.At(root))
	if err == nil {
		err = walk(child, 1)
	}
	return used, top, err
}

// CheckLayout compares what the kernel uses as memory with where the source
// says RAM lies: all of it must be RAM, but for as much as the kernel gave back to
// Xen, which it goes on listing. Of a layout that is one of several, tried
// in turn, all must be, and both must also end alike above 4 GiB, but for the part of a device's memory
// that the kernel does not use yet. It is the proof that such a layout is right
// beyond the part of RAM in which the kernel's image lies.
func (v *View) CheckLayout(ram []mem.Range, tried bool) error {
	used, most, err := v.memoryUse()
	if err != nil {
		return fmt.Errorf("check the layout of RAM: %w", err)
	}
	ram = joined(ram)
	var top mem.PA
	given, asked := uint64(0), tried // of a layout that is tried nothing is forgiven
	for _, u := range used {
		top = max(top, u.End())
		// The last page of a range may be cut by firmware, never exceeded.
		lacks := missing(u, ram)
		if lacks > 0 && !asked {
			asked = true
			if given, err = v.givenBack(); err != nil {
				return fmt.Errorf("check the layout of RAM: what the kernel gave back to Xen: %w", err)
			}
		}
		if lacks > given {
			return fmt.Errorf("%w: the kernel uses %#x-%#x as memory, where this layout has none, or not enough of it", mem.ErrInconsistent, uint64(u.Start), uint64(u.End()))
		}
		given -= lacks
	}
	if n := len(ram); tried && n > 0 && ram[n-1].Start >= 4<<30 && (ram[n-1].End() < top || ram[n-1].End() > max(top, most)) {
		return fmt.Errorf("%w: the kernel's memory ends at %#x, this layout's at %#x", mem.ErrInconsistent, uint64(top), uint64(ram[n-1].End()))
	}
	return nil
}

// missing is how many bytes of a range are in none of others, which are in order.
func missing(u mem.Range, ram []mem.Range) uint64 {
	n, at := u.Size, u.Start
	for _, r := range ram {
		if from, to := max(at, r.Start), min(u.End(), r.End()); from < to {
			n -= uint64(to - from)
			at = to
		}
	}
	return n
}

// joined joins ranges that touch.
func joined(in []mem.Range) (out []mem.Range) {
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].End() == r.Start {
			out[n-1].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}
