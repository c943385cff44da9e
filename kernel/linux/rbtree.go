package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// rbLayout is struct rb_node (include/linux/rbtree_types.h).
type rbLayout struct {
	Parent ctype.Field `c:"rb_node.__rb_parent_color"`
	Right  ctype.Field `c:"rb_node.rb_right"`
	Left   ctype.Field `c:"rb_node.rb_left"`
}

// maxRBDepth bounds the height of a red-black tree: twice the logarithm of its
// nodes, of which there are at most maxList.
const maxRBDepth = 2 * 24

// RBTree walks a red-black tree (struct rb_root) in its order and calls each
// with the address of every node. Every node must name as its parent the node
// that we came from, so that no node is met twice.
//
// A tree that does not hold together is an ErrInconsistent at the node where it
// broke. An error of each ends the walk.
func (v *View) RBTree(root mem.VA, each func(node mem.VA) error) error {
	l, err := layout[rbLayout](v.Kernel)
	if err != nil {
		return err
	}
	n, err := span(l.Parent, l.Right, l.Left)
	if err != nil {
		return err
	}
	node, err := v.Mem.Pointer(root)
	if err != nil {
		return err
	}
	type step struct{ node, right mem.VA }
	var up []step // ancestors whose left side is done with or being walked
	parent := mem.VA(0)
	o := object{b: make([]byte, n)}
	count := 0
	for node != 0 || len(up) > 0 {
		for node != 0 {
			if count++; count > maxList || len(up) >= maxRBDepth {
				return errBroken("rbtree", node, fmt.Sprintf("%d nodes, %d deep (root at %#x)", count, len(up), uint64(root)))
			}
			if err := o.read(v, node); err != nil {
				return err
			}
			if p := o.ptr(l.Parent) &^ 3; p != parent { // the low bits are the colour
				return errBroken("rbtree", node, fmt.Sprintf("its parent is %#x, came from %#x", uint64(p), uint64(parent)))
			}
			left, right := o.ptr(l.Left), o.ptr(l.Right)
			if left == right && left != 0 {
				return errBroken("rbtree", node, "its children are the same")
			}
			up = append(up, step{node, right})
			parent, node = node, left
		}
		last := up[len(up)-1]
		up = up[:len(up)-1]
		if err := each(last.node); err != nil {
			return err
		}
		parent, node = last.node, last.right
	}
	return nil
}
