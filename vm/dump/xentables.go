package dump

import (
	"encoding/binary"
	"sync"

	"vmscope/internal/xenguest"
	"vmscope/mem"
)

// xenTables finds the page tables of a PV domain. They are reached from top
// tables: those of the vCPUs, which Xen told, and others by what Xen does to them. It
// puts its own entries into each, one of which leads to the table itself, and lets no
// table be mapped for writing. The others are looked for when they are read, so that
// nothing is read of the file that nobody asks for; and all at once before the first
// bulk read, which may come across lower tables first.
//
// It is safe for concurrent use.
type xenTables struct {
	raw  mem.PhysReader
	ram  []mem.Range
	page func(frame uint64) (uint64, bool) // of the domain

	common xenEntries // nil: not known
	sought sync.Once

	mu      sync.RWMutex
	levels  map[uint64]uint8 // of the pages that are tables
	written pageSet          // pages that a table maps for writing
}

// xenEntries are the entries of a top table that are alike in all.
type xenEntries *[xenguest.LastXenSlot - xenguest.FirstCommonSlot + 1]uint64

// pageSet are pages, in groups of 64.
type pageSet map[uint64]uint64

func (s pageSet) add(page uint64)      { s[page/64] |= 1 << (page % 64) }
func (s pageSet) has(page uint64) bool { return s[page/64]>>(page%64)&1 != 0 }

// findTables finds the tables that are reached from roots, frames of the machine.
func findTables(raw *machine, page func(frame uint64) (uint64, bool), roots []uint64) *xenTables {
	t := &xenTables{raw: raw, ram: raw.Ranges(), page: page, levels: make(map[uint64]uint8), written: make(pageSet)}
	for _, frame := range roots {
		root, ok := page(frame)
		if !ok {
			continue
		}
		if t.common == nil {
			t.common = t.commonOf(root)
		}
		t.walk(root)
	}
	return t
}

// level is that of a table, 4 for a top one; 0: the page is none.
func (t *xenTables) level(page uint64) uint8 {
	t.mu.RLock()
	level, written := t.levels[page], t.written.has(page)
	t.mu.RUnlock()
	if level != 0 || written || !t.isTop(page) {
		return level
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.levels[page] == 0 {
		t.walk(page)
	}
	return t.levels[page]
}

// all finds all tables that there are. It looks at every page.
func (t *xenTables) all() {
	t.sought.Do(func() {
		for _, r := range t.ram {
			for pa := r.Start; pa < r.End(); pa += mem.PageSize {
				t.level(uint64(pa) / mem.PageSize)
			}
		}
	})
}

// isTop tells whether a page looks like a top table: its entry leads to itself, and
// what all of them have is there. What was one and is used for other things since is
// told by that it is mapped for writing.
func (t *xenTables) isTop(page uint64) bool {
	var b [8]byte
	if _, err := t.raw.ReadPhys(b[:], mem.PA(page*mem.PageSize+8*xenguest.SelfSlot)); err != nil {
		return false
	}
	e := binary.LittleEndian.Uint64(b[:])
	if e&xenguest.Present == 0 {
		return false
	}
	if self, ok := t.page(xenguest.Frame(e)); !ok || self != page {
		return false
	}
	is := t.commonOf(page)
	return is != nil && (t.common == nil || *is == *t.common)
}

// commonOf reads the entries of a top table that are alike in all; nil: it cannot be
// read.
func (t *xenTables) commonOf(page uint64) xenEntries {
	const changing = 1<<5 | 1<<6 // accessed, dirty: what the processor notes
	is := xenEntries(new([xenguest.LastXenSlot - xenguest.FirstCommonSlot + 1]uint64))
	var b [8 * len(is)]byte
	if _, err := t.raw.ReadPhys(b[:], mem.PA(page*mem.PageSize+8*xenguest.FirstCommonSlot)); err != nil {
		return nil
	}
	for i := range is {
		is[i] = binary.LittleEndian.Uint64(b[8*i:]) &^ changing
	}
	return is
}

// walk notes a top table and all below it. A page is a table of one level, as Xen has
// it: the first that is said counts. Each is read once, whatever leads to it. What
// cannot be read leads nowhere. t.mu is held, or t is not shared yet.
func (t *xenTables) walk(top uint64) {
	var b [mem.PageSize]byte
	todo := []uint64{top}
	t.levels[top] = 4
	for len(todo) > 0 {
		page := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, err := t.raw.ReadPhys(b[:], mem.PA(page*mem.PageSize)); err != nil {
			continue
		}
		level := t.levels[page]
		for i := range mem.PageSize / 8 {
			e := binary.LittleEndian.Uint64(b[8*i:])
			if e&xenguest.Present == 0 || xenguest.IsXenSlot(level, i) {
				continue
			}
			to, ok := t.page(xenguest.Frame(e))
			switch {
			case !ok:
			case level > 1 && e&xenguest.Large == 0:
				if t.levels[to] == 0 {
					t.levels[to] = level - 1
					todo = append(todo, to)
				}
			case level == 1 && e&xenguest.Writable != 0:
				t.written.add(to)
			}
		}
	}
}
