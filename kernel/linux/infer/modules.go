package infer

import (
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/mem"
)

// Bounds of what is read of modules.
const (
	maxModule  = 2 << 10 // bytes of a struct module: what is sought lies in the first KiB or so
	minModule  = 512
	maxModules = 1 << 14 // in the list
	maxSize    = 256 << 20
	maxUses    = 1 << 12
	maxPages   = 1 << 16 // of all modules together, whose mappings are looked up
	maxParts   = 16      // kinds of memory: MOD_MEM_NUM_TYPES is 7, include/linux/module.h
	maxPart    = 256     // bytes of a struct module_layout, or module_memory, with a lock in it
)

// A struct module begins with state, list and name, which has MODULE_NAME_LEN
// bytes (include/linux/module.h).
func (l *look) moduleList() int  { return l.w }
func (l *look) moduleNamed() int { return 3 * l.w }
func (l *look) nameLen() int     { return 64 - l.w }

// modules are copies of the loaded modules.
type modules struct {
	all   []object
	at    map[mem.VA]int // index in all
	reach int

	self []int // where in each is its own address
}

// moduleMembers finds the members of struct module. An error says that modules
// cannot be listed.
func (l *look) moduleMembers(b *book) error {
	m, err := l.modules()
	if err == nil {
		err = l.layout(m, b)
	}
	if err != nil {
		return fmt.Errorf("module: %w", err)
	}
	// enum module_state, list_head list, char name[]: since Linux 2.6.
	b.add("module", "state", 0, uint32Type)
	b.add("module", "list", l.moduleList(), b.listHead)
	b.add("module", "name", l.moduleNamed(), char(uint32(l.nameLen())))
	b.more = func() {
		b.c.Enum("module_state", 4, false, []ctype.NewValue{
			{Name: "MODULE_STATE_LIVE", Value: 0}, {Name: "MODULE_STATE_COMING", Value: 1},
			{Name: "MODULE_STATE_GOING", Value: 2}, {Name: "MODULE_STATE_UNFORMED", Value: 3},
		})
	}
	return nil
}

// modules finds and copies the modules.
func (l *look) modules() (*modules, error) {
	if head, err := l.k.Symbol("modules"); err == nil {
		return l.modulesAt(head)
	}
	var found []*modules
	for _, head := range l.image().modules {
		if m, err := l.modulesAt(head); err == nil {
			l.found["modules"] = head
			found = append(found, m)
		}
	}
	return only("list of all modules", found)
}

// modulesAt copies the modules of a list, and checks that each begins as every one has since
// Linux 2.6: its name is that of its directory in sysfs as well, and its own
// address stands in it, as it does in its kobject and in the nodes of the tree of
// all modules' memory.
func (l *look) modulesAt(head mem.VA) (*modules, error) {
	nodes, err := l.ring(head, maxModules)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, unproved("there is none")
	}
	m := &modules{at: make(map[mem.VA]int), reach: maxModule}
	step := 1 + len(nodes)/maxSample
	for i := 0; i < len(nodes); i += step {
		o, err := l.object(nodes[i]-mem.VA(l.moduleList()), maxModule, minModule)
		if err != nil {
			return nil, err
		}
		if state := o.u32(0); state > 3 || l.moduleName(&o) == "" {
			return nil, unproved("state %d, name %.20q at %#x", state, l.moduleName(&o), uint64(o.at))
		}
		m.at[o.at] = len(m.all)
		m.all = append(m.all, o)
		m.reach = min(m.reach, len(o.b))
	}
	m.self = m.columns(l.w, l.w, func(o *object, off int) bool { return o.ptr(off) == o.at })
	if len(m.self) < 2 {
		return nil, unproved("a module's own address stands in it %d times", len(m.self))
	}
	named := m.columns(l.w, l.w, func(o *object, off int) bool {
		p := o.word(off)
		if !l.inKernel(p) {
			return false
		}
		name := l.moduleName(o)
		text, err := l.object(mem.VA(p), len(name)+1, len(name)+1)
		return err == nil && string(text.b) == name+"\x00"
	})
	if len(named) == 0 {
		return nil, unproved("name: it is not that in sysfs")
	}
	return m, nil
}

// moduleName is the name, "" if there is none that a module can have.
func (l *look) moduleName(o *object) string { return moduleName(o.b[l.moduleNamed():][:l.nameLen()]) }

func moduleName(b []byte) string {
	for i, c := range b {
		switch {
		case c == 0:
			return string(b[:i])
		case c != '_' && c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z'):
			return ""
		}
	}
	return ""
}

// columns lists the offsets, multiples of step, at which ok holds of all modules.
func (m *modules) columns(step, width int, ok func(o *object, off int) bool) []int {
	var out []int
next:
	for off := 0; off+width <= m.reach; off += step {
		for i := range m.all {
			if !ok(&m.all[i], off) {
				continue next
			}
		}
		out = append(out, off)
	}
	return out
}

// parts are where struct module says where a module lies: n entries of some bytes
// each from at on. An entry begins with the address of a part and has its size.
type parts struct{ at, n, each, size int }

// layout finds where a module tells where it lies: entries of a like size, each
// with the address of the module in it, since Linux 4.2 (struct mod_tree_node).
// Two are what stays and what is freed once the module has started
// (module_layout), more are the kinds of memory of Linux 6.4 and later
// (module_memory).
func (l *look) layout(m *modules, b *book) error {
	var found []parts
	for n := min(len(m.self), maxParts); n >= 2 && len(found) == 0; n-- {
		for _, run := range progressions(m.self, n, maxPart) {
			for back := 2 * l.w; back <= 40; back += l.w {
				for size := l.w; size < back; size += 4 {
					p := parts{run.first - back, n, run.step, size}
					if n == 2 && (back < l.w+12 || size != l.w) { // base, size, text_size, ro_size: struct module_layout
						continue
					}
					if p.at >= l.moduleNamed()+l.nameLen() && p.each > back && l.lie(m, p) {
						found = append(found, p)
					}
				}
			}
		}
	}
	p, err := only("where modules lie", found)
	if err != nil {
		return err
	}
	if p.n == 2 {
		b.add("module", "core_layout", p.at, opaque(p.each))
		b.add("module", "init_layout", p.at+p.each, opaque(p.each))
		b.add("module_layout", "base", 0, pointerType)
		b.add("module_layout", "size", p.size, uint32Type)
	} else {
		b.add("module", "mem", p.at, opaque(p.n*p.each))
		b.add("module_memory", "base", 0, pointerType)
		b.add("module_memory", "size", p.size, uint32Type)
		b.add("module_memory", "end", p.each, opaque(0))
	}
	l.users(m, p, b)
	return nil
}

// progression is a run of numbers that are equally far apart.
type progression struct{ first, step int }

// progressions lists the runs of n numbers among sorted ones that are no further
// apart than far. A module full of its own address has all that there can be:
// numbers that are apart by 4 at least have far/4 times as many as there are numbers.
func progressions(all []int, n, far int) (out []progression) {
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b-a > far {
				break
			}
			k, there := 2, true
			for ; there && k < n; k++ {
				_, there = slices.BinarySearch(all, a+k*(b-a))
			}
			if there {
				out = append(out, progression{a, b - a})
			}
		}
	}
	return out
}

// lie reports whether modules lie where they would say so by p: each part is
// mapped from its first to its last page, no two share a page, the first holds
// code, and the struct module itself is in one of its own module's parts, which it
// is not if a part is made too small.
func (l *look) lie(m *modules, p parts) bool {
	var all []mem.Range
	pages := 0
	for i := range m.all {
		o := &m.all[i]
		home := false
		for j := range p.n {
			e := p.at + j*p.each
			base, size := o.word(e), uint64(o.u32(e+p.size))
			if base == 0 && size == 0 && j > 0 {
				continue
			}
			if !l.pointer(base) || base%4096 != 0 || size == 0 || size > maxSize {
				return false
			}
			if pages += int(size / 4096); pages > maxPages || !l.mapped(mem.VA(base), size, j == 0) {
				return false
			}
			home = home || o.at >= mem.VA(base) && uint64(o.at)-base < size
			all = append(all, mem.Range{Start: mem.PA(base), Size: size})
		}
		if !home {
			return false
		}
	}
	slices.SortFunc(all, func(a, b mem.Range) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	for i := 1; i < len(all); i++ {
		if all[i-1].End() > all[i].Start {
			return false
		}
	}
	return true
}

// mapped reports whether size bytes are mapped from base on; the first of them for
// code, if that is asked.
func (l *look) mapped(base mem.VA, size uint64, code bool) bool {
	for at := uint64(0); at < size; {
		if l.spend(64) != nil {
			return false
		}
		t, err := l.k.Mem.Translate(base + mem.VA(at))
		if err != nil || at == 0 && code && t.Perm&mem.Exec == 0 {
			return false
		}
		at += t.Left()
	}
	return true
}

// users finds the modules that use a module, and the count of all its users, which
// a module has that can be unloaded:
//
//	source_list, target_list, exit, refcnt
//
// A use hangs in the first list of the one that is used and in the second of the one that
// uses it, and names both: source_list, target_list, source, target (struct module_use).
func (l *look) users(m *modules, p parts, b *book) {
	target, exit, refs, size := 2*l.w, 4*l.w, 5*l.w, 5*l.w+4
	source, used := 4*l.w, 5*l.w
	var found []int
	for off := l.moduleNamed() + l.nameLen(); off+size <= m.reach; off += l.w {
		uses, exits, fits := 0, 0, true
		for i := range m.all {
			o := &m.all[i]
			n, ok := l.uses(m, o, off, source, used)
			_, ok2 := l.uses(m, o, off+target, used-target, source-target)
			if fits = fits && ok && ok2; !fits {
				break
			}
			uses += n
			e := p.at
			switch at := o.word(off + exit); {
			case at != 0 && at-o.word(e) < uint64(o.u32(e+p.size)):
				exits++
			case at != 0:
				fits = false
			}
			// The count begins at 1; it is 0 while the module is being unloaded.
			if refs := o.u32(off + refs); refs > 1<<24 || o.u32(0) == 0 && int(refs) < 1+n {
				fits = false
			}
		}
		if fits && uses > 0 && exits > 0 {
			found = append(found, off)
		}
	}
	off, err := only("module.source_list", found)
	if err != nil {
		l.gaps = append(l.gaps, err)
		return
	}
	b.add("module", "source_list", off, b.listHead)
	b.add("module", "exit", off+exit, pointerType)
	b.add("module", "refcnt", off+refs, int32Type)
	b.add("module_use", "source_list", 0, b.listHead)
	b.add("module_use", "source", source, pointerType)
}

// uses counts the nodes of a list of uses in a module. Each names the module itself
// at mine and another at other.
func (l *look) uses(m *modules, o *object, off, other, mine int) (int, bool) {
	if !l.pointer(o.word(off)) || !l.pointer(o.word(off+l.w)) {
		return 0, false
	}
	if o.ptr(off) == o.at+mem.VA(off) {
		return 0, o.ptr(off+l.w) == o.at+mem.VA(off)
	}
	nodes, err := l.ring(o.at+mem.VA(off), maxUses)
	if err != nil {
		return 0, false
	}
	for _, n := range nodes {
		self, err := l.word(n + mem.VA(mine))
		if err != nil || mem.VA(self) != o.at {
			return 0, false
		}
		peer, err := l.word(n + mem.VA(other))
		if err != nil || !l.module(m, mem.VA(peer)) {
			return 0, false
		}
	}
	return len(nodes), true
}

// module reports whether a module lies at an address, one that was copied or not.
func (l *look) module(m *modules, at mem.VA) bool {
	if _, ok := m.at[at]; ok {
		return true
	}
	self, err := l.word(at + mem.VA(m.self[0]))
	return err == nil && mem.VA(self) == at
}
