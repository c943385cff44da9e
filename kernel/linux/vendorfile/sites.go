package vendorfile

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"sort"
	"strings"

	"vmscope/mem"
)

// Kind says for what a place is rewritten.
type Kind uint8

// The kinds of places that files list.
const (
	Alternative Kind = iota // other code, for some processors or hypervisors
	Lock                    // a prefix that one CPU alone does not need
	Return                  // a jump to the thunk of returns
	Retpoline               // a branch to the thunk of an indirect branch
	Call                    // a call that may count its depth
	Seal                    // where no indirect branch leads
	Ftrace                  // where ftrace is called at the entry of a function
	JumpLabel               // a static key's branch: nothing, or a jump to Target
	StaticCall              // a call of a function that seldom changes, by the key at Target if that is known
	FtraceCall              // where ftrace's own code calls what traces
	Paravirt                // a call by way of pv_ops
	Constant                // in the instruction, the value at Target: of a variable, or of another such place
)

func (k Kind) String() string {
	return [...]string{"alternative", "lock prefix", "return", "retpoline", "call", "endbr", "ftrace site", "jump label", "static call", "call of ftrace", "paravirt call", "runtime constant"}[k]
}

// Site is a place that a file lists for rewriting.
type Site struct {
	At     mem.VA
	Target mem.VA // of a JumpLabel, a StaticCall, a Constant
	Kind   Kind
	Len    uint8 // bytes at most

	first, n uint32 // of an Alternative: its replacements
}

// replacement is what may stand in the place of an alternative.
type replacement struct {
	at mem.VA
	n  uint8
}

// Sites are the places of a file, by address.
type Sites struct {
	list         []Site
	replacements []replacement
}

// maxLen is how many bytes a site has at most.
const maxLen = 255

// Around calls f with the sites that have the byte at an address, until it
// returns false.
func (s *Sites) Around(va mem.VA, f func(Site) bool) {
	i := sort.Search(len(s.list), func(i int) bool { return s.list[i].At > va })
	for i--; i >= 0 && va-s.list[i].At < maxLen; i-- {
		if va-s.list[i].At < mem.VA(s.list[i].Len) && !f(s.list[i]) {
			return
		}
	}
}

// at calls f with the sites that begin at an address, until it returns false.
func (s *Sites) at(va mem.VA, f func(Site) bool) {
	i := sort.Search(len(s.list), func(i int) bool { return s.list[i].At >= va })
	for ; i < len(s.list) && s.list[i].At == va && f(s.list[i]); i++ {
	}
}

// Len is how many places there are.
func (s *Sites) Len() int { return len(s.list) }

// Sites reads the tables of places from the file, for where it lies now.
func (im *Image) Sites() (*Sites, error) {
	r := siteReader{im: im, out: new(Sites)}
	for _, t := range []struct {
		section string
		kind    Kind
		n       uint8
	}{
		{".smp_locks", Lock, 1}, {".return_sites", Return, 5}, {".retpoline_sites", Retpoline, 6},
		{".call_sites", Call, 5}, {".ibt_endbr_seal", Seal, 4},
	} {
		if s := im.Section(t.section); s != nil {
			r.relative(s, func(at mem.VA) Site { return Site{At: at, Kind: t.kind, Len: t.n} })
		}
	}
	for _, s := range im.Sections {
		name, pointer := strings.CutPrefix(s.Name, "runtime_ptr_")
		n := uint8(8)
		if !pointer {
			var shift bool
			if name, shift = strings.CutPrefix(s.Name, "runtime_shift_"); !shift {
				continue
			}
			n = 1
		}
		before := len(r.out.list)
		of, ok := im.lookup(name)
		r.relative(s, func(at mem.VA) Site { return Site{At: at, Kind: Constant, Target: of, Len: n} })
		// Compilers drop variables that nothing but this uses: then all places
		// have to agree, each with the next.
		if list := r.out.list[before:]; !ok {
			for i := range list {
				list[i].Target = list[(i+1)%len(list)].At
			}
		}
	}
	r.alternatives()
	r.jumps()
	r.calls()
	r.ftrace()
	r.paravirt()
	for _, s := range im.unlisted {
		s.At += mem.VA(im.slide)
		if s.Target != 0 {
			s.Target += mem.VA(im.slide)
		}
		r.add(s)
	}
	slices.SortFunc(r.out.list, func(a, b Site) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Kind, b.Kind)) })
	return r.out, r.err
}

type siteReader struct {
	im  *Image
	out *Sites
	err error
}

func (r *siteReader) add(s Site) { r.out.list = append(r.out.list, s) }

// away is where the place-relative 32-bit member at an offset of an entry leads.
func away(at mem.VA, entry []byte, off uint64) mem.VA {
	return at + mem.VA(off) + mem.VA(int64(int32(binary.LittleEndian.Uint32(entry[off:]))))
}

// relative reads a section of place-relative addresses.
func (r *siteReader) relative(s *Section, site func(at mem.VA) Site) {
	if s.Addr == 0 {
		return
	}
	r.out.list = slices.Grow(r.out.list, len(s.Data)/4)
	for i := 0; i+4 <= len(s.Data); i += 4 {
		r.add(site(away(s.Addr+mem.VA(i), s.Data[i:], 0)))
	}
}

// table is what the file has of a table: a section of its own, as in modules,
// or a part of one between two symbols.
func (r *siteReader) table(section, from, to string) (mem.VA, []byte) {
	if s := r.im.Section(section); s != nil {
		if s.Addr == 0 {
			return 0, nil
		}
		return s.Addr, s.Data
	}
	return r.im.between(from, to)
}

// entries calls each with the entries of a table and their places.
func entries(at mem.VA, data []byte, size uint64, each func(at mem.VA, entry []byte)) {
	for n := uint64(0); size > 0 && n+size <= uint64(len(data)); n += size {
		each(at+mem.VA(n), data[n:n+size])
	}
}

// Widened reports whether n at an address is the length of an alternative that
// the kernel has made as long as another one for the same place: where one is
// nested in another, it does so in the table itself, which modules keep
// (arch/x86/kernel/alternative.c: apply_alternatives).
func (im *Image) Widened(at mem.VA, n uint8) bool {
	t, s := im.tables, im.Section(".altinstructions")
	if s == nil || s.Addr == 0 || at < s.Addr || at >= s.End() || !fits(t.Alt, t.AltInstr, t.AltLen) {
		return false
	}
	off := uint64(at - s.Addr)
	first := off / t.Alt * t.Alt
	entry := func(i uint64) (mem.VA, uint8, bool) {
		if i >= uint64(len(s.Data)) || uint64(len(s.Data))-i < t.Alt {
			return 0, 0, false
		}
		b := s.Data[i : i+t.Alt]
		return away(s.Addr+mem.VA(i), b, t.AltInstr.Offset), b[t.AltLen.Offset], true
	}
	code, was, ok := entry(first)
	if !ok || off-first != t.AltLen.Offset || n <= was {
		return false
	}
	for _, step := range []uint64{-t.Alt, t.Alt} {
		for i := first + step; ; i += step {
			other, size, ok := entry(i)
			if !ok || other != code {
				break
			}
			if size == n {
				return true
			}
		}
	}
	return false
}

func (r *siteReader) alternatives() {
	t, s := r.im.tables, r.im.Section(".altinstructions")
	if s == nil || s.Addr == 0 {
		return
	}
	if !fits(t.Alt, t.AltInstr, t.AltRepl, t.AltLen, t.AltRLen) {
		r.err = errFormat("its types do not tell how alternatives are listed")
		return
	}
	type one struct {
		at mem.VA
		n  uint8
		replacement
	}
	var all []one
	entries(s.Addr, s.Data, t.Alt, func(at mem.VA, b []byte) {
		all = append(all, one{at: away(at, b, t.AltInstr.Offset), n: b[t.AltLen.Offset],
			replacement: replacement{away(at, b, t.AltRepl.Offset), b[t.AltRLen.Offset]}})
	})
	slices.SortStableFunc(all, func(a, b one) int { return cmp.Compare(a.at, b.at) })
	for i := 0; i < len(all); {
		site := Site{At: all[i].at, Kind: Alternative, first: uint32(len(r.out.replacements))}
		for ; i < len(all) && all[i].at == site.At; i++ {
			site.Len = max(site.Len, all[i].n)
			r.out.replacements = append(r.out.replacements, all[i].replacement)
			site.n++
		}
		r.add(site)
	}
}

// jumps reads jump labels.
func (r *siteReader) jumps() {
	t := r.im.tables
	at, data := r.table("__jump_table", "__start___jump_table", "__stop___jump_table")
	if len(data) == 0 {
		return
	}
	if !fits(t.Jump, t.JumpCode, t.JumpTo) || t.JumpCode.Size() != 4 || t.JumpTo.Size() != 4 {
		r.err = errFormat("its types do not tell how jump labels are listed")
		return
	}
	entries(at, data, t.Jump, func(at mem.VA, b []byte) {
		r.add(Site{At: away(at, b, t.JumpCode.Offset), Target: away(at, b, t.JumpTo.Offset), Kind: JumpLabel, Len: 5})
	})
}

func (r *siteReader) calls() {
	t := r.im.tables
	at, data := r.table(".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites")
	if len(data) == 0 {
		return
	}
	if !fits(t.Call, t.CallAddr) || t.CallAddr.Size() != 4 {
		r.err = errFormat("its types do not tell how static calls are listed")
		return
	}
	keyed := fits(t.Call, t.CallKey) && t.CallKey.Size() == 4
	entries(at, data, t.Call, func(at mem.VA, b []byte) {
		s := Site{At: away(at, b, t.CallAddr.Offset), Kind: StaticCall, Len: 6}
		if keyed {
			s.Target = away(at, b, t.CallKey.Offset)
			if r.im.kernel != nil {
				s.Target = r.im.kernel.callKey(s.Target)
			}
			s.Target &^= keyFlags
		}
		r.add(s)
	})
}

// ftrace reads the addresses of ftrace's places.
func (r *siteReader) ftrace() {
	at, data := r.table("__mcount_loc", "__start_mcount_loc", "__stop_mcount_loc")
	entries(at, data, 8, func(_ mem.VA, b []byte) {
		if va := mem.VA(binary.LittleEndian.Uint64(b)); va != 0 {
			r.add(Site{At: va, Kind: Ftrace, Len: 5})
		}
	})
}

func (r *siteReader) paravirt() {
	t, s := r.im.tables, r.im.Section(".parainstructions")
	if s == nil || s.Addr == 0 {
		return
	}
	if !fits(t.Para, t.ParaInstr, t.ParaLen) || t.ParaInstr.Size() != 8 {
		r.err = errFormat("its types do not tell how calls by way of pv_ops are listed")
		return
	}
	data := s.Data
	if left := uint64(len(data)) % t.Para; left >= t.ParaLen.Offset+1 { // the last one without what fills it up
		data = append(bytes.Clone(data), make([]byte, t.Para-left)...)
	}
	entries(s.Addr, data, t.Para, func(_ mem.VA, b []byte) {
		r.add(Site{At: mem.VA(binary.LittleEndian.Uint64(b[t.ParaInstr.Offset:])), Kind: Paravirt, Len: b[t.ParaLen.Offset]})
	})
}
