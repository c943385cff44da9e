package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// xarrayLayout is what is read of an XArray (include/linux/xarray.h), which an
// IDR and a radix tree are as well (since v4.20).
type xarrayLayout struct {
	Head   ctype.Field `c:"xarray.xa_head"`
	Shift  ctype.Field `c:"xa_node.shift"`
	Offset ctype.Field `c:"xa_node.offset"`
	Parent ctype.Field `c:"xa_node.parent"`
	Slots  ctype.Field `c:"xa_node.slots"`
}

// How an XArray marks what is in a slot: the two low bits of a pointer to a
// node are 10; values (bit 0) and small internal entries (siblings, retry) are
// not pointers.
const (
	xaInternal    = 2
	xaInternalMax = 4096
	maxXArray     = 1 << 23 // entries of one, see maxList
	maxXANodes    = 1 << 20
)

// XArray calls each with every pointer in the XArray at an address, and its
// index, in their order. Each node must name as its parent the node that we
// came from and its own place in that, so that no node is met twice.
//
// One that does not hold together is an ErrInconsistent at the node where it
// broke. An error of each ends the walk.
func (v *View) XArray(at mem.VA, each func(index uint64, entry mem.VA) error) error {
	l, err := layout[xarrayLayout](v.Kernel)
	if err != nil {
		return err
	}
	n, err := span(l.Shift, l.Offset, l.Parent, l.Slots)
	if err != nil {
		return err
	}
	head, err := v.Mem.Pointer(l.Head.At(at))
	if err != nil {
		return err
	}
	w := xaWalk{v: v, l: l, size: n, each: each, slots: uint64(l.Slots.Type.Len())}
	return w.entry(head, 0, 0, 0, 64)
}

type xaWalk struct {
	v              *View
	l              *xarrayLayout
	size           int
	slots          uint64
	each           func(uint64, mem.VA) error
	entries, nodes int
}

// entry looks at what slot offset of the node parent holds; all its indexes
// begin with base, and a node there has a shift below shift.
func (w *xaWalk) entry(e, parent mem.VA, offset, base uint64, shift uint64) error {
	switch {
	case e == 0 || e&1 != 0:
		return nil
	case e&3 != xaInternal:
		if w.entries++; w.entries > maxXArray {
			return errBroken("xarray", parent, fmt.Sprintf("more than %d entries", maxXArray))
		}
		return w.each(base, e)
	case e < xaInternalMax:
		return nil
	}
	at := e - xaInternal
	o := object{b: make([]byte, w.size)}
	if w.nodes++; w.nodes > maxXANodes {
		return errBroken("xa_node", at, fmt.Sprintf("more than %d nodes", maxXANodes))
	}
	if err := o.read(w.v, at); err != nil {
		return err
	}
	own := o.uint(w.l.Shift)
	switch {
	case own >= shift:
		return errBroken("xa_node", at, fmt.Sprintf("shift %d below a node of shift %d", own, shift))
	case o.ptr(w.l.Parent) != parent || parent != 0 && o.uint(w.l.Offset) != offset:
		return errBroken("xa_node", at, fmt.Sprintf("its parent is %#x, came from %#x", uint64(o.ptr(w.l.Parent)), uint64(parent)))
	}
	slots := object{b: o.bytes(w.l.Slots)}
	word := uint64(w.v.Mem.PointerSize())
	for i := range w.slots {
		if err := w.entry(mem.VA(uintAt(slots.b, word*i, word)), at, i, base+i<<own, own); err != nil {
			return err
		}
	}
	return nil
}
