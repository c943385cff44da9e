package vendorfile

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"vmscope/mem"
)

// Sorted is a table that the kernel puts into order when it starts, or loads the
// module, and marks some entries of: in memory it has the file's entries in
// another order. Entries that count from their own place are other bytes then.
type Sorted struct {
	Name string
	At   mem.VA
	Size uint64 // bytes of the table
	each uint64 // bytes of an entry
	// rel are the members that count from their own place, of 4 or 8 bytes, and
	// the bits of them that the kernel sets.
	rel []relative
	// With another table, entry by entry, that is put into the same order
	// (.orc_unwind of .orc_unwind_ip).
	with *Sorted
	// final is what the kernel makes of what a member of the file leads to.
	final func(mem.VA) mem.VA
}

type relative struct {
	off, size uint64
	marks     uint64
}

// Parts are the runs of memory that the table fills: it and the one with it.
func (s *Sorted) Parts() []*Sorted {
	if s.with != nil {
		return []*Sorted{s, s.with}
	}
	return []*Sorted{s}
}

// jumpMarked and callMarked are the bits by which a kernel marks entries of init
// code (include/linux/jump_label.h, kernel/static_call_inline.c).
const (
	jumpMarked = 2
	callMarked = 2
)

// SortedTables are the tables of the file that the kernel puts into order: jump
// labels, static calls; of modules, exceptions, ftrace's places and unwinding too
// (lib/extable.c, kernel/trace/ftrace.c, arch/x86/kernel/unwind_orc.c), which the
// kernel's own file has in order already, or of which nothing is left.
func (im *Image) SortedTables() []*Sorted {
	t := im.tables
	r := siteReader{im: im}
	var out []*Sorted
	add := func(name, from, to string, each uint64, rel ...relative) *Sorted {
		at, data := r.table(name, from, to)
		if len(data) == 0 || each == 0 {
			return nil
		}
		s := &Sorted{Name: name, At: at, Size: uint64(len(data)), each: each, rel: rel}
		out = append(out, s)
		return s
	}
	if fits(t.Jump, t.JumpCode, t.JumpTo, t.JumpKey) {
		add("__jump_table", "__start___jump_table", "__stop___jump_table", t.Jump,
			relative{t.JumpCode.Offset, 4, 0}, relative{t.JumpTo.Offset, 4, 0}, relative{t.JumpKey.Offset, 8, jumpMarked})
	}
	if fits(t.Call, t.CallAddr, t.CallKey) {
		s := add(".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites", t.Call,
			relative{t.CallAddr.Offset, 4, 0}, relative{t.CallKey.Offset, 4, callMarked})
		if s != nil && im.kernel != nil {
			s.final = im.kernel.callKey
		}
	}
	// Three numbers: the instruction, where it goes on, and, up to v5.15, the
	// handler, since then what it does and no address.
	if s := im.Section("__ex_table"); s != nil {
		rel := []relative{{0, 4, 0}, {4, 4, 0}}
		if t.ExHandler.Valid() {
			rel = append(rel, relative{8, 4, 0})
		}
		add("__ex_table", "", "", 12, rel...)
	}
	if im.Section("__mcount_loc") != nil {
		add("__mcount_loc", "", "", 8)
	}
	if ip := im.Section(".orc_unwind_ip"); ip != nil {
		if s := add(".orc_unwind_ip", "", "", 4, relative{0, 4, 0}); s != nil {
			if o := im.Section(".orc_unwind"); o != nil && o.Addr != 0 && len(o.Data)%6 == 0 && len(o.Data)/6 == len(ip.Data)/4 {
				s.with = &Sorted{Name: o.Name, At: o.Addr, Size: o.Size, each: 6}
			}
		}
	}
	return out
}

// entry is an entry of a table without its place, and where it is.
type entry struct {
	key []byte
	at  mem.VA
}

// entries reads the table as read gives its bytes, in the order of what entries
// say; nil if it cannot.
func (s *Sorted) entries(read func(va mem.VA, n uint64) []byte, final func(mem.VA) mem.VA) []entry {
	le := binary.LittleEndian
	data := read(s.At, s.Size)
	var with []byte
	if s.with != nil {
		with = read(s.with.At, s.with.Size)
	}
	if uint64(len(data)) != s.Size || s.with != nil && uint64(len(with)) != s.with.Size {
		return nil
	}
	n := s.Size / s.each
	out := make([]entry, 0, n)
	for i := range n {
		at := s.At + mem.VA(i*s.each)
		key := bytes.Clone(data[i*s.each : (i+1)*s.each])
		for _, f := range s.rel {
			switch f.size {
			case 4: // the table is far smaller than what 32 bits reach
				to := le.Uint32(key[f.off:]) + uint32(at) + uint32(f.off)
				if final != nil {
					to = uint32(final(mem.VA(int64(int32(to)))))
				}
				le.PutUint32(key[f.off:], to&^uint32(f.marks))
			case 8:
				le.PutUint64(key[f.off:], (le.Uint64(key[f.off:])+uint64(at)+f.off)&^f.marks)
			}
		}
		if s.with != nil {
			key = append(key, with[i*s.with.each:(i+1)*s.with.each]...)
		}
		out = append(out, entry{key, at})
	}
	slices.SortFunc(out, func(a, b entry) int { return bytes.Compare(a.key, b.key) })
	return out
}

// Foreign lists the entries of the table in memory, by their places, that the
// file does not have. read gives memory.
func (im *Image) Foreign(s *Sorted, read func(va mem.VA, n uint64) []byte) (at []mem.VA, each uint64, ok bool) {
	now := s.entries(read, nil)
	was := s.entries(func(va mem.VA, n uint64) []byte { b := im.At(va); return b[:min(n, uint64(len(b)))] }, s.final)
	if now == nil || was == nil {
		return nil, s.each, false
	}
	for _, e := range now {
		for len(was) > 0 && bytes.Compare(was[0].key, e.key) < 0 {
			was = was[1:]
		}
		if len(was) > 0 && bytes.Equal(was[0].key, e.key) {
			was = was[1:]
			continue
		}
		at = append(at, e.at)
	}
	return at, s.each, true
}

// keyFlags are the bits of the address of a key that say something else
// (include/linux/static_call_types.h).
const keyFlags = 3

// callKey is the key of a static call of which a module knows but the
// trampoline: the kernel puts it in the place of that when it loads the module
// (kernel/static_call_inline.c: static_call_add_module). Any other address is
// itself. The lowest bits are flags.
func (k *Kernel) callKey(va mem.VA) mem.VA {
	for name := range k.symbols.At(k.linked(va &^ keyFlags)) {
		if of, ok := strings.CutPrefix(name, trampoline); ok {
			if key, ok := k.Symbol("__SCK__" + of); ok {
				return key | va&keyFlags
			}
		}
	}
	return va
}
