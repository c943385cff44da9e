package linux

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// mapleWorld is a world in which maple trees grow.
type mapleWorld struct {
	*world
	p *maplePlan
}

func newMapleWorld(t testing.TB) *mapleWorld {
	w := newWorld(t)
	p, err := newMaplePlan(w.v.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	return &mapleWorld{w, p}
}

// node makes a node and gives it coded as a slot has it. Pivots that are 0 are
// left out.
func (w *mapleWorld) node(kind int, slots []mem.VA, pivots []uint64) mem.VA {
	w.next = (w.next + mapleNodeMask) &^ mapleNodeMask
	at := w.alloc(mapleNodeSize)
	s := w.p.shapes[kind]
	for i, e := range slots {
		w.put64(at+mem.VA(s.slot)+mem.VA(8*i), uint64(e))
		if !s.leaf {
			w.put64(e&^mapleNodeMask+mem.VA(w.p.parent), uint64(at)|uint64(i)<<3|6)
		}
	}
	for i, p := range pivots {
		w.put64(at+mem.VA(s.pivot)+mem.VA(8*i), p)
	}
	return at | mem.VA(kind)<<mapleTypeShift | 4
}

// tree makes a tree of its root node.
func (w *mapleWorld) tree(root mem.VA) mem.VA {
	at := w.alloc(64)
	w.put64(at+mem.VA(w.p.root), uint64(root)|2)
	w.put64(root&^mapleNodeMask+mem.VA(w.p.parent), uint64(at)|mapleIsRoot)
	return at
}

const maxIndex = math.MaxUint64

func TestMaple(t *testing.T) {
	w := newMapleWorld(t)
	leaf := func(slots []mem.VA, pivots ...uint64) mem.VA { return w.node(mapleLeaf64, slots, pivots) }
	full := make([]mem.VA, 16)
	pivots := make([]uint64, 15)
	var fullWant []mapleEntry
	for i := range full {
		full[i] = mem.VA(0x10000 + 8*i)
		if i < 15 {
			pivots[i] = uint64(10*i + 9)
		}
		fullWant = append(fullWant, mapleEntry{uint64(10 * i), uint64(10*i + 9), full[i]})
	}
	fullWant[15].Last = maxIndex
	dense := make([]mem.VA, 31)
	dense[0], dense[3], dense[30] = 0x8000, 0x8008, 0x8010

	single := w.alloc(64)
	w.put64(single+mem.VA(w.p.root), 0x123450)
	reserved := w.alloc(64)
	w.put64(reserved+mem.VA(w.p.root), 257<<2|2)

	for _, c := range []struct {
		name string
		tree mem.VA
		want []mapleEntry
	}{
		{"empty", w.alloc(64), nil},
		{"one entry without a node", single, []mapleEntry{{0, 0, 0x123450}}},
		{"an entry of the tree's own", reserved, nil},
		{"gaps", w.tree(leaf([]mem.VA{0, 0x9000, 0, 0x9008, 0}, 0xfff, 0x1fff, 0x4fff, 0x7fff, maxIndex)),
			[]mapleEntry{{0x1000, 0x1fff, 0x9000}, {0x5000, 0x7fff, 0x9008}}},
		{"last pivot left out", w.tree(leaf([]mem.VA{0x9000, 0x9008}, 0xfff)),
			[]mapleEntry{{0, 0xfff, 0x9000}, {0x1000, maxIndex, 0x9008}}},
		{"first index alone", w.tree(leaf([]mem.VA{0x9000, 0}, 0, maxIndex)), []mapleEntry{{0, 0, 0x9000}}},
		{"reserved slot", w.tree(leaf([]mem.VA{257<<2 | 2, 0x9000, 0}, 5, 6, maxIndex)), []mapleEntry{{6, 6, 0x9000}}},
		{"full leaf", w.tree(leaf(full, pivots...)), fullWant},
		{"arange over leaves", w.tree(w.node(mapleARange64, []mem.VA{
			leaf([]mem.VA{0, 0x9000, 0}, 0xf, 0x1f, 0xff),
			leaf([]mem.VA{0x9008, 0x9010}, 0x17f), // its end is that of the parent's slot
			leaf([]mem.VA{0}, maxIndex),
		}, []uint64{0xff, 0x1ff})), []mapleEntry{{0x10, 0x1f, 0x9000}, {0x100, 0x17f, 0x9008}, {0x180, 0x1ff, 0x9010}}},
		{"three levels", w.tree(w.node(mapleRange64, []mem.VA{
			w.node(mapleRange64, []mem.VA{leaf([]mem.VA{0x9000, 0}, 1, 9), leaf([]mem.VA{0, 0x9008}, 14, 19)}, []uint64{9, 19}),
			w.node(mapleARange64, []mem.VA{leaf([]mem.VA{0x9010, 0}, 20, 29), leaf([]mem.VA{0, 0x9018}, 99)}, []uint64{29, maxIndex}),
		}, []uint64{19, maxIndex})), []mapleEntry{{0, 1, 0x9000}, {15, 19, 0x9008}, {20, 20, 0x9010}, {100, maxIndex, 0x9018}}},
		{"dense leaf", w.tree(w.node(mapleRange64, []mem.VA{
			w.node(mapleDense, dense, nil), leaf([]mem.VA{0}, maxIndex),
		}, []uint64{30, maxIndex})), []mapleEntry{{0, 0, 0x8000}, {3, 3, 0x8008}, {30, 30, 0x8010}}},
	} {
		got, err := w.v.maple(c.tree, nil)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v\n want %v", c.name, got, err, c.want)
		}
	}
}

// TestMapleRandom grows trees of random shape and wants back what was put in.
func TestMapleRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		w := newMapleWorld(t)
		var want []mapleEntry
		var grow func(first, last uint64, depth int) mem.VA
		grow = func(first, last uint64, depth int) mem.VA {
			kind := mapleLeaf64
			if depth > 0 {
				kind = mapleRange64 + r.IntN(2)
			}
			s := w.p.shapes[kind]
			n := 1 + r.IntN(min(s.slots, int(min(last-first, 1000))+1))
			var slots []mem.VA
			var pivots []uint64
			for i := range n {
				end := last
				if i < n-1 {
					// Leave an index for each slot that is to come.
					end = first + r.Uint64N(max((last-first)/uint64(n-i), 1))
				}
				if end == 0 && i > 0 {
					end = first
				}
				switch {
				case depth > 0:
					slots = append(slots, grow(first, end, depth-1))
				case r.IntN(3) > 0:
					e := mem.VA(0x100000 + 8*r.IntN(1<<20))
					slots = append(slots, e)
					want = append(want, mapleEntry{first, end, e})
				default:
					slots = append(slots, 0)
				}
				if len(pivots) < s.pivots && (i == 0 || i < n-1 || r.IntN(2) == 0) {
					pivots = append(pivots, end)
				}
				if end == last {
					break
				}
				first = end + 1
			}
			return w.node(kind, slots, pivots)
		}
		tree := w.tree(grow(0, maxIndex, r.IntN(3)))
		got, err := w.v.maple(tree, nil)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d entries, %v; want %d", len(got), err, len(want))
		}
	}
}

// TestMapleHostile breaks trees; each must be noticed.
func TestMapleHostile(t *testing.T) {
	for name, spoiled := range map[string]func(w *mapleWorld) mem.VA{
		"replaced node": func(w *mapleWorld) mem.VA {
			n := w.node(mapleLeaf64, []mem.VA{0x9000}, []uint64{maxIndex})
			tree := w.tree(n)
			w.put64(n&^mapleNodeMask, uint64(n&^mapleNodeMask)) // it is its own parent
			return tree
		},
		"root of another tree": func(w *mapleWorld) mem.VA {
			n := w.node(mapleLeaf64, []mem.VA{0x9000}, []uint64{maxIndex})
			tree := w.tree(n)
			w.tree(n)
			return tree
		},
		"child of another parent": func(w *mapleWorld) mem.VA {
			leaf := w.node(mapleLeaf64, []mem.VA{0x9000}, nil)
			n := w.node(mapleRange64, []mem.VA{leaf}, []uint64{maxIndex})
			w.node(mapleRange64, []mem.VA{leaf}, []uint64{maxIndex})
			return w.tree(n)
		},
		"its own child": func(w *mapleWorld) mem.VA {
			n := w.node(mapleRange64, []mem.VA{0x9000}, []uint64{maxIndex})
			w.put64(n&^mapleNodeMask+mem.VA(w.p.shapes[mapleRange64].slot), uint64(n))
			return w.tree(n)
		},
		"falling pivots": func(w *mapleWorld) mem.VA {
			return w.tree(w.node(mapleLeaf64, []mem.VA{0x9000, 0x9008, 0}, []uint64{9, 5, maxIndex}))
		},
		"beyond its parent's limit": func(w *mapleWorld) mem.VA {
			leaf := w.node(mapleLeaf64, []mem.VA{0x9000, 0}, []uint64{20})
			return w.tree(w.node(mapleRange64, []mem.VA{leaf, w.node(mapleLeaf64, []mem.VA{0}, nil)}, []uint64{10, maxIndex}))
		},
		"no child": func(w *mapleWorld) mem.VA {
			return w.tree(w.node(mapleRange64, []mem.VA{w.node(mapleLeaf64, []mem.VA{0}, nil)}, []uint64{10, 20}))
		},
		"unknown kind": func(w *mapleWorld) mem.VA {
			return w.tree(w.node(mapleLeaf64, []mem.VA{0}, nil) | 9<<mapleTypeShift)
		},
		"too deep": func(w *mapleWorld) mem.VA {
			n := w.node(mapleLeaf64, []mem.VA{0x9000}, nil)
			for range mapleMaxHeight {
				n = w.node(mapleRange64, []mem.VA{n}, nil)
			}
			return w.tree(n)
		},
	} {
		w := newMapleWorld(t)
		if got, err := w.v.maple(spoiled(w), nil); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	w := newMapleWorld(t)
	nowhere := w.alloc(64)
	w.put64(nowhere+mem.VA(w.p.root), 0x40000000|mapleLeaf64<<mapleTypeShift|6)
	if got, err := w.v.maple(nowhere, nil); !errors.Is(err, mem.ErrNoRAM) || len(got) != 0 {
		t.Errorf("a node nowhere: %v, %v", got, err)
	}
}

// checkEntries checks what holds for every list of entries: they rise and do not
// overlap.
func checkEntries(t *testing.T, got []mapleEntry) {
	t.Helper()
	for i, e := range got {
		if e.Last < e.First || i > 0 && e.First <= got[i-1].Last {
			t.Fatalf("entry %d, %#x-%#x, behind %#x", i, e.First, e.Last, got[max(i, 1)-1].Last)
		}
	}
}

// FuzzMaple walks a tree of a guest that answers each read as it likes, but for
// the parents, which are made to fit: else nothing would ever get far.
func FuzzMaple(f *testing.F) {
	w := newMapleWorld(f)
	f.Add([]byte{})
	leaf := func(slots []mem.VA, pivots ...uint64) mem.VA { return w.node(mapleLeaf64, slots, pivots) }
	for _, tree := range []mem.VA{
		w.tree(leaf([]mem.VA{0, 0x9000, 0}, 9, 99, maxIndex)),
		w.tree(w.node(mapleARange64, []mem.VA{leaf([]mem.VA{0x9000, 0}, 1, 9), leaf([]mem.VA{0, 0x9008}, 14, 19), w.node(mapleDense, []mem.VA{0x9010}, nil)}, []uint64{9, 19, maxIndex})),
		w.tree(w.node(mapleRange64, []mem.VA{w.node(mapleRange64, []mem.VA{leaf([]mem.VA{0x9000, 0}, 1, 9), leaf([]mem.VA{0, 0x9008}, 14)}, []uint64{9}), leaf([]mem.VA{0})}, []uint64{19})),
	} {
		f.Add(w.answersTo(func(v *View) { v.maple(tree, nil) }))
	}
	f.Fuzz(func(t *testing.T, answers []byte) {
		phys := &obliging{Script: memtest.Script{Answers: answers}}
		v := viewOf(w.v.Kernel, phys)
		got, err := v.maple(0x1000, nil)
		checkEntries(t, got)
		if phys.Reads > len(answers)/8+2 {
			t.Errorf("%d reads for %d bytes", phys.Reads, len(answers))
		}
		if err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNoRAM) {
			t.Error(err)
		}
	})
}

// obliging answers as the script has it, but every node names as its parent the
// node that points to it, unless the script begins it with an odd byte.
type obliging struct {
	memtest.Script
	nodes []mem.PA
	texts [][]byte
}

func (o *obliging) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := o.Script.ReadPhys(p, pa)
	if len(p) != mapleNodeSize || err != nil || p[0]&1 != 0 && len(o.nodes) > 0 {
		return n, err
	}
	parent := uint64(0x1000 | mapleIsRoot)
search:
	for i := len(o.nodes) - 1; i >= 0; i-- {
		for off := 0; off < mapleNodeSize; off += 8 {
			if binary.LittleEndian.Uint64(o.texts[i][off:])&^mapleNodeMask == uint64(pa) {
				parent = uint64(o.nodes[i])
				break search
			}
		}
	}
	binary.LittleEndian.PutUint64(p, parent)
	o.nodes, o.texts = append(o.nodes, pa), append(o.texts, slices.Clone(p))
	return n, err
}

func (v *View) maple(tree mem.VA, to []mapleEntry) ([]mapleEntry, error) {
	w, err := v.mapleWalk()
	if err != nil {
		return to, err
	}
	return w.entries(tree, to)
}
