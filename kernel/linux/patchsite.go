package linux

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// PatchKind says for what a kernel rewrites a place in its text.
type PatchKind uint8

// The kinds.
const (
	JumpLabel  PatchKind = iota // a static key's branch: nothing, or a jump to Target
	StaticCall                  // a call of a function that seldom changes
	FtraceSite                  // where ftrace is called at the entry of a function
	LockPrefix                  // a prefix that one CPU alone does not need
	Kprobe                      // a breakpoint, or the jump of an optimized probe
	FtraceCall                  // where ftrace calls who listens; in no table, see View.FtraceCalls
)

func (k PatchKind) String() string {
	names := [...]string{"jump label", "static call", "ftrace site", "lock prefix", "kprobe", "call of ftrace"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("PatchKind(%d)", uint8(k))
}

// PatchSite is a place in text that the kernel's own tables list for rewriting.
type PatchSite struct {
	At     mem.VA
	Target mem.VA // of a JumpLabel
	// Key of a StaticCall is its static_call_key, 0 if it is not known; see
	// View.StaticCallee.
	Key mem.VA
	// Saved is what stood there before a Kprobe did, as the kernel keeps it:
	// the first byte, or five where the probe is optimized.
	Saved []byte
	Kind  PatchKind
}

// patchLayout is what is read of the tables of places.
type patchLayout struct {
	Jump     uint64      `c:"sizeof(jump_entry),optional"` // include/linux/jump_label.h
	JumpCode ctype.Field `c:"jump_entry.code,optional"`
	JumpTo   ctype.Field `c:"jump_entry.target,optional"`

	Call     uint64      `c:"sizeof(static_call_site),optional"` // include/linux/static_call_types.h
	CallAddr ctype.Field `c:"static_call_site.addr,optional"`
	CallKey  ctype.Field `c:"static_call_site.key,optional"`

	PageNext ctype.Field `c:"ftrace_page.next,optional"` // kernel/trace/ftrace.c
	PageRecs ctype.Field `c:"ftrace_page.records,optional"`
	PageUsed ctype.Field `c:"ftrace_page.index,optional"`
	Rec      uint64      `c:"sizeof(dyn_ftrace),optional"` // include/linux/ftrace.h
	RecIP    ctype.Field `c:"dyn_ftrace.ip,optional"`

	Locks    ctype.Field `c:"smp_alt_module.next,optional"` // arch/x86/kernel/alternative.c
	LockFrom ctype.Field `c:"smp_alt_module.locks,optional"`
	LockTo   ctype.Field `c:"smp_alt_module.locks_end,optional"`
	LockText ctype.Field `c:"smp_alt_module.text,optional"` // outside of it they are left alone
	LockEnd  ctype.Field `c:"smp_alt_module.text_end,optional"`

	Probe      ctype.Field `c:"kprobe.addr,optional"` // include/linux/kprobes.h
	ProbeFlags ctype.Field `c:"kprobe.flags,optional"`
	ProbeByte  ctype.Field `c:"kprobe.opcode,optional"`
	Optimized  ctype.Field `c:"optimized_kprobe.optinsn.copied_insn,optional"` // arch/x86/include/asm/kprobes.h

	ModJumps  ctype.Field `c:"module.jump_entries,optional"` // include/linux/module.h
	ModJumpsN ctype.Field `c:"module.num_jump_entries,optional"`
	ModCalls  ctype.Field `c:"module.static_call_sites,optional"`
	ModCallsN ctype.Field `c:"module.num_static_call_sites,optional"`
}

// Bounds: kernels list some 100,000 places in all, each group of ftrace's
// records fills a few pages.
const (
	maxPatchSites = 1 << 20
	maxFtracePage = 1 << 20
)

// kprobeBuckets is the size of kprobe_table (KPROBE_TABLE_SIZE, kernel/kprobes.c).
const kprobeBuckets = 64

// probeOptimized is KPROBE_FLAG_OPTIMIZED (include/linux/kprobes.h).
const probeOptimized = 4

// PatchSites lists, by address, the places of the kernel's and its modules'
// text that the kernel lists for rewriting while it runs: jump labels, static
// calls, ftrace's calls, kprobes, lock prefixes. A kernel that lacks one kind
// has none of it. Places in text that was freed after the boot are listed too;
// those in init code of modules that was freed are not.
//
// It is a list by the guest, of places where the guest says that it may change
// its own code.
func (v *View) PatchSites() ([]PatchSite, error) {
	l, err := layout64[patchLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	w := patchWalk{v: v, l: l}
	var errs []error
	for _, list := range []func() error{w.image, w.modules, w.locks, w.kprobes, w.ftrace} {
		before := w.out
		w.out, w.before = nil, len(before)
		err := v.settle(func() error {
			w.out = w.out[:0]
			return list()
		})
		if errors.Is(err, ksym.ErrNoSymbol) {
			err = nil
		}
		errs = append(errs, err)
		slices.SortFunc(w.out, byPlace) // ftrace's are in order, and many
		w.out = merge(before, w.out)
	}
	return w.out, errors.Join(errs...)
}

func byPlace(a, b PatchSite) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Kind, b.Kind))
}

// merge joins two lists that are in order.
func merge(a, b []PatchSite) []PatchSite {
	if len(a) == 0 || len(b) == 0 {
		return append(a, b...)
	}
	out := make([]PatchSite, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if byPlace(a[0], b[0]) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

type patchWalk struct {
	v   *View
	l   *patchLayout
	out []PatchSite // of the list that is being read
	// before is how many those have that were read before.
	before int
	buf    []byte
}

// between is what lies between two symbols.
func (w *patchWalk) between(from, to string) (mem.VA, uint64, error) {
	start, err := w.v.Symbol(from)
	if err != nil {
		return 0, 0, err
	}
	end, err := w.v.Symbol(to)
	if err != nil {
		return 0, 0, err
	}
	if end < start {
		return 0, 0, errBroken(from, start, fmt.Sprintf("it ends at %#x", uint64(end)))
	}
	return start, uint64(end - start), nil
}

// table reads a table of n entries, of which each has what fields describe, and
// calls each with them and their places.
func (w *patchWalk) table(what string, at mem.VA, n, size uint64, each func(at mem.VA, entry []byte), fields ...ctype.Field) error {
	if need, err := span(fields...); err != nil || uint64(need) > size || size == 0 || n == 0 {
		return err
	}
	if size > maxObject || n > maxPatchSites || uint64(w.before+len(w.out))+n > maxPatchSites {
		return errBroken(what, at, fmt.Sprintf("%d entries of %d bytes", n, size))
	}
	var err error
	if w.buf, err = w.v.readBlock(at, n*size); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for i := range n {
		each(at+mem.VA(i*size), w.buf[i*size:(i+1)*size])
	}
	return nil
}

// away is where the place-relative 32-bit member at an offset leads.
func away(at mem.VA, entry []byte, off uint64) mem.VA {
	return at + mem.VA(off) + mem.VA(int64(int32(binary.LittleEndian.Uint32(entry[off:]))))
}

// jumps reads jump labels: relative on x86 since b34006c425af ("x86/jump_table:
// Use relative references") in v4.20.
func (w *patchWalk) jumps(at mem.VA, n uint64) error {
	l := w.l
	if l.JumpCode.Size() != 4 || l.JumpTo.Size() != 4 {
		return nil
	}
	return w.table("jump labels", at, n, l.Jump, func(at mem.VA, b []byte) {
		w.out = append(w.out, PatchSite{At: away(at, b, l.JumpCode.Offset), Target: away(at, b, l.JumpTo.Offset), Kind: JumpLabel})
	}, l.JumpCode, l.JumpTo)
}

func (w *patchWalk) calls(at mem.VA, n uint64) error {
	l := w.l
	if l.CallAddr.Size() != 4 || l.CallKey.Size() != 4 {
		return nil
	}
	const flags = 3 // STATIC_CALL_SITE_FLAGS
	return w.table("static calls", at, n, l.Call, func(at mem.VA, b []byte) {
		w.out = append(w.out, PatchSite{At: away(at, b, l.CallAddr.Offset), Key: away(at, b, l.CallKey.Offset) &^ flags, Kind: StaticCall})
	}, l.CallAddr, l.CallKey)
}

// image reads the tables that were linked into the kernel.
func (w *patchWalk) image() error {
	l := w.l
	at, size, err := w.between("__start___jump_table", "__stop___jump_table")
	if err == nil && l.Jump > 0 {
		err = w.jumps(at, size/l.Jump)
	}
	if err != nil && !errors.Is(err, ksym.ErrNoSymbol) {
		return err
	}
	at, size, err = w.between("__start_static_call_sites", "__stop_static_call_sites")
	if err == nil && l.Call > 0 {
		err = w.calls(at, size/l.Call)
	}
	return err
}

// modules reads the tables of each module.
func (w *patchWalk) modules() error {
	l := w.l
	n, err := span(l.ModJumps, l.ModJumpsN, l.ModCalls, l.ModCallsN)
	if err != nil || n == 0 {
		return err
	}
	modules, err := w.v.Modules()
	if err != nil {
		return err
	}
	o := object{b: make([]byte, n)}
	for _, m := range modules {
		if err := o.read(w.v, m.Addr); err != nil {
			return err
		}
		if m.State == "Unformed" {
			continue
		}
		before := len(w.out)
		if err := w.jumps(o.ptr(l.ModJumps), o.uint(l.ModJumpsN)); err != nil {
			return err
		}
		if err := w.calls(o.ptr(l.ModCalls), o.uint(l.ModCallsN)); err != nil {
			return err
		}
		// The tables keep what was in the module's init code, which is freed when it
		// has started: another module may lie there now.
		own := slices.DeleteFunc(w.out[before:], func(s PatchSite) bool {
			return !slices.ContainsFunc(m.Parts, func(p kernel.Region) bool { return s.At-p.Start < mem.VA(p.Size) })
		})
		w.out = w.out[:before+len(own)]
	}
	return nil
}

// ftrace reads the records of all functions that can be traced, of the kernel
// and of modules.
func (w *patchWalk) ftrace() error {
	l := w.l
	if !l.PageNext.Valid() || !l.PageRecs.Valid() || !l.PageUsed.Valid() || l.RecIP.Size() != 8 {
		return nil
	}
	head, err := w.v.Symbol("ftrace_pages_start")
	if err != nil {
		return err
	}
	n, err := span(l.PageNext, l.PageRecs, l.PageUsed)
	if err != nil {
		return err
	}
	o := object{b: make([]byte, n)}
	page, err := w.v.Mem.Pointer(head)
	for pages := 0; err == nil && page != 0; pages++ {
		if pages >= maxFtracePage {
			return errBroken("ftrace_pages_start", page, fmt.Sprintf("more than %d", maxFtracePage))
		}
		if err := o.read(w.v, page); err != nil {
			return err
		}
		next := o.ptr(l.PageNext)
		err = w.table("ftrace records", o.ptr(l.PageRecs), o.uint(l.PageUsed), l.Rec, func(_ mem.VA, b []byte) {
			w.out = append(w.out, PatchSite{At: mem.VA(binary.LittleEndian.Uint64(b[l.RecIP.Offset:])), Kind: FtraceSite})
		}, l.RecIP)
		page = next
	}
	return err
}

// locks reads the lock prefixes that the kernel may drop and put back.
func (w *patchWalk) locks() error {
	l := w.l
	n, err := span(l.Locks, l.LockFrom, l.LockTo, l.LockText, l.LockEnd)
	if err != nil || !l.Locks.Valid() || !l.LockFrom.Valid() || !l.LockTo.Valid() || !l.LockText.Valid() || !l.LockEnd.Valid() {
		return err
	}
	head, err := w.v.Symbol("smp_alt_modules")
	if err != nil {
		return err
	}
	o := object{b: make([]byte, n)}
	return w.v.List(head, func(node mem.VA) error {
		alt := node - mem.VA(l.Locks.Offset)
		if err := o.read(w.v, alt); err != nil {
			return err
		}
		from, to := o.ptr(l.LockFrom), o.ptr(l.LockTo)
		text, end := o.ptr(l.LockText), o.ptr(l.LockEnd)
		if to < from {
			return errBroken("smp_alt_module", alt, fmt.Sprintf("from %#x to %#x", uint64(from), uint64(to)))
		}
		return w.table("lock prefixes", from, uint64(to-from)/4, 4, func(at mem.VA, b []byte) {
			if at := away(at, b, 0); at >= text && at < end {
				w.out = append(w.out, PatchSite{At: at, Kind: LockPrefix})
			}
		})
	})
}

func (w *patchWalk) kprobes() error {
	l := w.l
	if !l.Probe.Valid() {
		return nil
	}
	table, err := w.v.Symbol("kprobe_table")
	if err != nil {
		return err
	}
	for i := range mem.VA(kprobeBuckets) {
		err := w.v.HList(table+8*i, func(at mem.VA) error {
			if w.before+len(w.out) >= maxPatchSites {
				return errBroken("kprobe_table", at, fmt.Sprintf("more than %d places", maxPatchSites))
			}
			return w.kprobe(at)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// kprobe reads the probe at an address.
func (w *patchWalk) kprobe(at mem.VA) error {
	l := w.l
	on, err := w.v.Mem.Pointer(l.Probe.At(at))
	if err != nil {
		return err
	}
	site := PatchSite{At: on, Kind: Kprobe}
	if l.ProbeByte.Size() == 1 && l.ProbeFlags.Size() == 4 {
		site.Saved = make([]byte, 1, 5)
		if _, err := w.v.Mem.Read(site.Saved, l.ProbeByte.At(at)); err != nil {
			return err
		}
		flags, err := w.v.Mem.Uint32(l.ProbeFlags.At(at))
		if err != nil {
			return err
		}
		if flags&probeOptimized != 0 && l.Optimized.Size() == 4 {
			site.Saved = site.Saved[:5]
			if _, err := w.v.Mem.Read(site.Saved[1:], l.Optimized.At(at)); err != nil {
				return err
			}
		}
	}
	w.out = append(w.out, site)
	return nil
}
