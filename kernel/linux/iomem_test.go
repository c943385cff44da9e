package linux

import (
	"errors"
	"testing"

	"vmscope/ksym"
	"vmscope/mem"
)

// TestGivenBack has a kernel that lists memory which it gave back to Xen: a layout without that is right, one that lacks
// more is not.
func TestGivenBack(t *testing.T) {
	used := []mem.Range{{Start: 0x1000, Size: 0x9ec00}, {Start: 0x100000, Size: 0xaeff000}}
	const hole = 40 << 12
	layouts := map[string]struct {
		ram   []mem.Range
		lacks uint64
	}{
		"whole":      {[]mem.Range{{Start: 0, Size: 0xa0000}, {Start: 0x100000, Size: 0xaf00000}}, 0},
		"one hole":   {[]mem.Range{{Start: 0, Size: 0xa0000}, {Start: 0x100000, Size: 0x100000}, {Start: 0x200000 + hole, Size: 0xae00000 - hole}}, hole},
		"holes":      {[]mem.Range{{Start: 0x2000, Size: 0x9e000}, {Start: 0x100000, Size: 0x100000}, {Start: 0x200000 + hole, Size: 0xae00000 - hole}}, hole + 0x1000},
		"end":        {[]mem.Range{{Start: 0, Size: 0xa0000}, {Start: 0x100000, Size: 0xaefe000}}, 0x1000},
		"wrong half": {[]mem.Range{{Start: 0x100000, Size: 0xaf00000}}, 0x9ec00},
	}
	for _, balloon := range []struct {
		known           bool
		low, high, lent uint64 // pages
	}{{}, {known: true}, {true, 40, 0, 0}, {true, 1, 39, 0}, {true, 30, 1, 10}, {true, 1 << 62, 3 << 62, 1 << 63}} {
		w := newWorld(t)
		symbols := []ksym.Symbol{{Name: "iomem_resource", Addr: w.resources(used)}}
		if balloon.known {
			l, at := layoutOf[balloonLayout](w), w.alloc(128)
			w.put(at, l.Low, balloon.low)
			w.put(at, l.High, balloon.high)
			w.put(at, l.Lent, balloon.lent)
			symbols = append(symbols, ksym.Symbol{Name: "balloon_stats", Addr: at})
		}
		w.v.Kernel.more = &linked{list: ksym.NewList(symbols)}
		given := (min(balloon.low, 1<<20) + min(balloon.high, 1<<20) + min(balloon.lent, 1<<20)) << 12
		for name, l := range layouts {
			for _, tried := range []bool{false, true} {
				err := w.v.CheckLayout(l.ram, tried)
				if right := l.lacks == 0 || !tried && l.lacks <= given; right != (err == nil) || err != nil && !errors.Is(err, mem.ErrInconsistent) {
					t.Errorf("%s, which lacks %#x, tried %t, with %+v: %v", name, l.lacks, tried, balloon, err)
				}
			}
		}
	}
}

// resources makes a list of entries "System RAM".
func (w *world) resources(ram []mem.Range) (root mem.VA) {
	l := layoutOf[resourceLayout](w)
	name := w.alloc(16)
	w.bytes(name, "System RAM\x00")
	root = w.alloc(128)
	from, link := root, l.Child
	for _, r := range ram {
		at := w.alloc(128)
		w.put(at, l.Start, uint64(r.Start))
		w.put(at, l.End, uint64(r.End())-1)
		w.put(at, l.Name, uint64(name))
		w.put(from, link, uint64(at))
		from, link = at, l.Sibling
	}
	return root
}
