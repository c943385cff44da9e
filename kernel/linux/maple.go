package linux

import (
	"errors"
	"fmt"
	"math"

	"vmscope/ctype"
	"vmscope/mem"
)

// mapleLayout is what is read of a maple tree (include/linux/maple_tree.h).
type mapleLayout struct {
	Node   ctype.Type  `c:"maple_node"`
	Root   ctype.Field `c:"maple_tree.ma_root"`
	Parent ctype.Field `c:"maple_node.parent"`
	Dense  ctype.Field `c:"maple_node.slot"`
	Pivot  ctype.Field `c:"maple_range_64.pivot"`
	Slot   ctype.Field `c:"maple_range_64.slot"`
	APivot ctype.Field `c:"maple_arange_64.pivot"`
	ASlot  ctype.Field `c:"maple_arange_64.slot"`
}

// How a maple tree codes pointers to nodes (lib/maple_tree.c). Nodes are
// aligned to their size, which leaves the low bits free for the node's type.
const (
	mapleNodeSize  = 256
	mapleNodeMask  = mapleNodeSize - 1
	mapleTypeShift = 3
	mapleTypeMask  = 15
	mapleIsRoot    = 1 // in maple_node.parent: the node is the root, the rest is its tree

	mapleMaxHeight = 31 // MAPLE_HEIGHT_MAX
	// mapleMaxNodes bounds the nodes of one tree: vm.max_map_count is 65,530,
	// distributions raise it to 2^20, and a node holds several entries.
	mapleMaxNodes = 1 << 20
)

// The kinds of nodes (enum maple_type).
const (
	mapleDense    = iota // a leaf: an entry for each index
	mapleLeaf64          // a leaf of ranges
	mapleRange64         // an inner node
	mapleARange64        // an inner node that also knows the gaps below it
)

// shape says where a kind of node has its slots and pivots.
type shape struct {
	slot, pivot   uint64 // offsets
	slots, pivots int
	leaf          bool
}

// maplePlan is what walking maple trees takes in one kernel.
type maplePlan struct {
	word         uint64 // bytes of a slot, a pivot, an index
	root, parent uint64
	shapes       [4]shape
}

func newMaplePlan(k *Kernel) (*maplePlan, error) {
	l, err := layout[mapleLayout](k)
	if err != nil {
		return nil, err
	}
	if n := l.Node.Size(); n != mapleNodeSize {
		return nil, fmt.Errorf("maple nodes of %d bytes: %w", n, errors.ErrUnsupported)
	}
	p := &maplePlan{word: l.Root.Size(), root: l.Root.Offset, parent: l.Parent.Offset}
	if p.word != 4 && p.word != 8 {
		return nil, fmt.Errorf("maple trees with pointers of %d bytes: %w", p.word, errors.ErrUnsupported)
	}
	for kind, f := range [4]struct {
		slot, pivot ctype.Field
		leaf        bool
	}{
		mapleDense:    {l.Dense, ctype.Field{}, true},
		mapleLeaf64:   {l.Slot, l.Pivot, true},
		mapleRange64:  {l.Slot, l.Pivot, false},
		mapleARange64: {l.ASlot, l.APivot, false},
	} {
		s := shape{slot: f.slot.Offset, pivot: f.pivot.Offset, slots: f.slot.Type.Len(), leaf: f.leaf}
		if kind != mapleDense {
			s.pivots = f.pivot.Type.Len()
		}
		ends := max(s.slot+p.word*uint64(s.slots), s.pivot+p.word*uint64(s.pivots), p.parent+p.word)
		if s.slots < 1 || kind != mapleDense && s.pivots != s.slots-1 || s.slot > mapleNodeSize || s.pivot > mapleNodeSize || ends > mapleNodeSize {
			return nil, fmt.Errorf("maple nodes of kind %d with %d slots and %d pivots: %w", kind, s.slots, s.pivots, errors.ErrUnsupported)
		}
		p.shapes[kind] = s
	}
	return p, nil
}

// mapleEntry is one range of indices and what the tree holds for it.
type mapleEntry struct {
	First, Last uint64 // both belong to the range
	Entry       mem.VA
}

// mapleWalk walks maple trees. It keeps buffers and is not safe for concurrent
// use.
type mapleWalk struct {
	*maplePlan
	v     *View
	out   []mapleEntry
	nodes int
	room  int                    // for more entries
	bufs  []*[mapleNodeSize]byte // one for each level
}

func (v *View) mapleWalk() (*mapleWalk, error) {
	plan, err := derived(v.Kernel, newMaplePlan)
	return &mapleWalk{maplePlan: plan, v: v}, err
}

// entries appends the entries of the maple tree at the given address in the order
// of their indices. Ranges without an entry are left out.
//
// The tree must hold together: the root names its tree, each node its parent,
// and the ranges of a node fill what its parent gives it. A node that the
// kernel has replaced while we walked (it then names itself as its parent) is an
// ErrInconsistent, as all else that does not fit; entries before it are given.
func (w *mapleWalk) entries(tree mem.VA, to []mapleEntry) ([]mapleEntry, error) {
	root, err := w.v.Mem.Pointer(tree + mem.VA(w.root))
	switch {
	case err != nil || root == 0:
		return to, err
	case root&3 != 2:
		// One entry needs no node: it stands for index 0.
		return append(to, mapleEntry{0, 0, root}), nil
	case root <= mem.PageSize:
		return to, nil // an entry that the tree keeps for itself
	}
	w.out, w.nodes, w.room = to, 0, maxAreas
	err = w.node(root, tree|mapleIsRoot, 0, math.MaxUint64>>(64-8*w.word), 0)
	return w.out, err
}

// node walks the node that enode points to, whose indices are first to last.
// parent is what it must name as its parent.
func (w *mapleWalk) node(enode, parent mem.VA, first, last uint64, depth int) error {
	at, kind := enode&^mapleNodeMask, int(enode>>mapleTypeShift&mapleTypeMask)
	if depth >= mapleMaxHeight || w.nodes >= mapleMaxNodes {
		return errBroken("maple tree", at, fmt.Sprintf("%d nodes, %d deep", w.nodes, depth))
	}
	if kind >= len(w.shapes) {
		return errBroken("maple tree", at, fmt.Sprintf("a node of kind %d", kind))
	}
	w.nodes++
	if depth == len(w.bufs) {
		w.bufs = append(w.bufs, new([mapleNodeSize]byte))
	}
	b := w.bufs[depth]
	if _, err := w.v.Mem.Read(b[:], at); err != nil {
		return err
	}
	// The root's parent is its tree; any other's has its slot in the low bits.
	p := mem.VA(uintAt(b[:], w.parent, w.word))
	if depth > 0 {
		p &^= mapleNodeMask
	}
	if p != parent {
		return errBroken("maple tree", at, fmt.Sprintf("its parent is %#x, came from %#x", uint64(p), uint64(parent)))
	}
	s := &w.shapes[kind]
	if !s.leaf && depth+1 >= mapleMaxHeight {
		return errBroken("maple tree", at, "too deep")
	}
	for i := range s.slots {
		end := w.end(b, s, kind, i, first, last)
		if end < first || end > last {
			return errBroken("maple tree", at, fmt.Sprintf("slot %d ends at %#x, not within %#x-%#x", i, end, first, last))
		}
		entry := mem.VA(uintAt(b[:], s.slot+w.word*uint64(i), w.word))
		switch {
		case !s.leaf && entry <= mem.PageSize:
			return errBroken("maple tree", at, fmt.Sprintf("no node in slot %d", i))
		case !s.leaf:
			if err := w.node(entry, at, first, end, depth+1); err != nil {
				return err
			}
		case entry == 0, entry&3 == 2 && entry <= mem.PageSize: // nothing, or reserved (XA_ZERO_ENTRY)
		case w.room == 0:
			return errBroken("maple tree", at, fmt.Sprintf("more than %d entries", maxAreas))
		default:
			w.room--
			w.out = append(w.out, mapleEntry{first, end, entry})
		}
		if end == last {
			return nil
		}
		first = end + 1
	}
	return errBroken("maple tree", at, fmt.Sprintf("its slots end before %#x", last))
}

// end is the last index of slot i, which begins at first. The pivot is left out
// behind the last slot of a full node, and zero behind the last of others that
// end where the node does.
func (w *mapleWalk) end(b *[mapleNodeSize]byte, s *shape, kind, i int, first, last uint64) uint64 {
	if kind == mapleDense {
		if i == s.slots-1 {
			return last
		}
		return first
	}
	if i >= s.pivots {
		return last
	}
	if end := uintAt(b[:], s.pivot+w.word*uint64(i), w.word); end != 0 || i == 0 {
		return end
	}
	return last
}
