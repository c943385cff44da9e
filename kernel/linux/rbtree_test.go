package linux

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// rbTree links nodes, given in their order, into a balanced tree and gives its
// root node.
func (w *world) rbTree(l *rbLayout, parent mem.VA, nodes []mem.VA) mem.VA {
	if len(nodes) == 0 {
		return 0
	}
	mid := len(nodes) / 2
	at := nodes[mid]
	w.put(at, l.Parent, uint64(parent)|uint64(mid&1)) // the colour does not matter
	w.put(at, l.Left, uint64(w.rbTree(l, at, nodes[:mid])))
	w.put(at, l.Right, uint64(w.rbTree(l, at, nodes[mid+1:])))
	return at
}

func walkRB(v *View, root mem.VA) (got []mem.VA, err error) {
	err = v.RBTree(root, func(n mem.VA) error {
		got = append(got, n)
		return nil
	})
	return got, err
}

func TestRBTree(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 7, 100, 1000} {
		w := newWorld(t)
		l := layoutOf[rbLayout](w)
		root := w.alloc(8)
		var nodes []mem.VA
		for range n {
			nodes = append(nodes, w.alloc(24))
		}
		rand.New(rand.NewPCG(1, uint64(n))).Shuffle(n, func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		w.put64(root, uint64(w.rbTree(l, 0, nodes)))
		if got, err := walkRB(w.v, root); err != nil || !slices.Equal(got, nodes) {
			t.Errorf("%d nodes: got %d, %v", n, len(got), err)
		}
	}
}

func TestRBTreeHostile(t *testing.T) {
	for name, spoil := range map[string]func(w *world, l *rbLayout, n []mem.VA){
		"child of another":       func(w *world, l *rbLayout, n []mem.VA) { w.put(n[1], l.Parent, uint64(n[6])) },
		"root has a parent":      func(w *world, l *rbLayout, n []mem.VA) { w.put(n[3], l.Parent, uint64(n[6])) },
		"a leaf's child is root": func(w *world, l *rbLayout, n []mem.VA) { w.put(n[0], l.Left, uint64(n[3])) },
		"its own child":          func(w *world, l *rbLayout, n []mem.VA) { w.put(n[0], l.Right, uint64(n[0])) },
		"both children the same": func(w *world, l *rbLayout, n []mem.VA) { w.put(n[3], l.Left, uint64(n[5])) },
		"a long chain": func(w *world, l *rbLayout, n []mem.VA) {
			at := n[0]
			for range maxRBDepth {
				down := w.alloc(24)
				w.put(at, l.Left, uint64(down))
				w.put(down, l.Parent, uint64(at))
				at = down
			}
		},
	} {
		w := newWorld(t)
		l := layoutOf[rbLayout](w)
		root := w.alloc(8)
		var nodes []mem.VA
		for range 7 {
			nodes = append(nodes, w.alloc(24))
		}
		w.put64(root, uint64(w.rbTree(l, 0, nodes)))
		spoil(w, l, nodes)
		if got, err := walkRB(w.v, root); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %d nodes, %v", name, len(got), err)
		}
	}
}

// FuzzRBTree walks a tree of a guest that answers each read as it likes.
func FuzzRBTree(f *testing.F) {
	w := newWorld(f)
	k := w.v.Kernel
	root := w.alloc(8)
	var nodes []mem.VA
	for range 20 {
		nodes = append(nodes, w.alloc(24))
	}
	w.put64(root, uint64(w.rbTree(layoutOf[rbLayout](w), 0, nodes)))
	f.Add(w.answersTo(func(v *View) { walkRB(v, root) }))
	f.Add([]byte("\x00\x10\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x20\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, answers []byte) {
		phys := &memtest.Script{Answers: answers}
		got, _ := walkRB(viewOf(k, phys), root)
		if len(got) > len(answers)/24 || phys.Reads > len(answers)/24+8 {
			t.Errorf("%d nodes, %d reads of %d bytes", len(got), phys.Reads, len(answers))
		}
	})
}
