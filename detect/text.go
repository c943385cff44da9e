package detect

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/arch/x86/x86asm"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Text accounts for every byte of the kernel's and its modules' code. Against
// the Reference, each byte that is not as it was must lie at a place that the
// kernel lists for rewriting (linux.View.PatchSites). Every such place must be
// in a form that is valid there: a jump label does nothing or jumps where its
// table says, ftrace's places do nothing or call ftrace.
//
// Without anything to compare with, at the first look, it sees the usual hook:
// a function whose first instruction leads out of the kernel's code.
type Text struct{ Ref *Reference }

// Name implements Detector.
func (Text) Name() string { return "text" }

// Inspect implements Detector.
func (t Text) Inspect(ctx context.Context, l *Look, report func(Finding)) error {
	ref := t.Ref
	if ref == nil {
		ref = NewReference()
	}
	if err := ref.begin(l.View); err != nil {
		return err
	}
	if ref.again {
		report(bootedAgain(l, t.Name()))
	}
	return ref.withVendor(l, func(v *Vendor) error {
		return outlasts(ctx, l, report, func(report func(Finding)) error { return inspectText(ctx, l, ref, v, report) })
	})
}

// bootedAgain tells that there is nothing to compare with any more. A guest
// without KASLR has the same addresses in each boot; one whose clock was set back
// by who wants to be seen for the first time has, too.
func bootedAgain(l *Look, check string) Finding {
	f := Finding{Check: check, Severity: Info, Confidence: Possible,
		Summary:  "by its clock the guest was booted again, with all addresses as they were: what its code was before counts no more",
		Evidence: []Evidence{{What: "start of the kernel's text", Addr: l.Text, Symbol: l.Name(l.Text), Owner: "the kernel"}}}
	f.identify("booted")
	return f
}

// textLook is one comparison of text.
type textLook struct {
	*Look
	code    Code
	sites   []linux.PatchSite
	callees callees
	modules map[kernel.Text]kernel.Module
	report  func(Finding)
	waited  int // how often for places that were just being rewritten
	told    int // findings
}

// full reports whether there are more findings than are shown, and counts one:
// each costs a look at symbols and instructions.
func (t *textLook) full() bool {
	t.told++
	return t.told > maxFindings+1
}

func inspectText(ctx context.Context, l *Look, ref *Reference, vendor *Vendor, report func(Finding)) error {
	code, broken := l.Code()
	if len(code) == 0 {
		return broken
	}
	listed, _ := l.list() // uncut
	modules, ids, err := loads(l)
	if modules == nil {
		return errors.Join(broken, err)
	}
	runs, cerr := ref.compare(ctx, l, "text", ref.keysOf(listed, "text", modules, ids))
	broken = errors.Join(broken, err, cerr)
	if vendor != nil {
		if err := vendor.load(l, started(modules), ids); err != nil {
			return errors.Join(broken, err)
		}
		vendor.uncompared("text", report)
	}
	if !slices.ContainsFunc(runs, func(m *run) bool { return !m.asItWas() || vendor != nil && !m.vetted }) {
		return broken
	}
	t := textLook{Look: l, code: code, modules: modules, report: report}
	t.callees = callees{Look: l, code: code, modules: modules}
	// After the text was read: what was rewritten meanwhile is listed.
	if t.sites, err = l.PatchSites(); err != nil {
		return errors.Join(broken, err)
	}
	done := runs[:0]
	for _, m := range runs {
		if !m.asItWas() {
			if err := t.run(m); err != nil {
				broken = errors.Join(broken, err)
				continue
			}
		}
		if vendor != nil {
			t.vet(m, vendor)
		}
		done = append(done, m)
	}
	ref.keep(done)
	return broken
}

// in are the sites from first on, up to and not with end.
func (t *textLook) in(first, end mem.VA) []linux.PatchSite {
	i := sort.Search(len(t.sites), func(i int) bool { return t.sites[i].At >= first })
	j := sort.Search(len(t.sites), func(i int) bool { return t.sites[i].At >= end })
	return t.sites[i:j]
}

// run inspects one run of text.
func (t *textLook) run(m *run) error {
	own := t.in(m.Start, m.Start+mem.VA(m.Size))
	f, err := t.functions(m)
	if err != nil {
		return err
	}
	var valid []covered
	for _, sites := range [][]linux.PatchSite{own, t.unlisted(m, f)} {
		for _, site := range sites {
			off := int(site.At - m.Start)
			if !m.fresh(off-entrySize, 2*entrySize) { // an entry across pages has its place looked at
				continue
			}
			if m.first {
				m.restore(site)
			}
			probed := t.probed(own, site.At)
			if n := t.site(m, site, probed); n > 0 {
				valid = append(valid, covered{off, off + n})
			} else if !probed {
				if n := t.badSite(m, site); n > 0 {
					valid = append(valid, covered{off, off + n})
				}
			}
		}
	}
	slices.SortFunc(valid, func(a, b covered) int { return cmp.Compare(a.from, b.from) })
	t.anew(m, valid)
	strays(m, valid, func(from, to int) { t.changed(m, from, to) })
	t.entries(m, f, valid)
	return nil
}

// covered are the bytes of a run, by offset, that a place in a valid form has.
// Lists of them are sorted.
type covered struct{ from, to int }

// sizeAt is how many bytes the longest place at an offset has.
func sizeAt(valid []covered, off int) int {
	i := sort.Search(len(valid), func(i int) bool { return valid[i].from >= off })
	n := 0
	for ; i < len(valid) && valid[i].from == off; i++ {
		n = max(n, valid[i].to-off)
	}
	return n
}

// functions are where the functions of a run begin.
func (t *textLook) functions(m *run) (*linux.Functions, error) {
	if m.Kind == "kernel" {
		return t.Functions()
	}
	f, err := t.ModuleFunctions(t.modules[m.Name])
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil // it keeps no symbols
	}
	return f, m.gone(err)
}

// restore makes what was seen first what it was before a kprobe was put there.
func (m *run) restore(site linux.PatchSite) {
	off := int(site.At - m.Start)
	if site.Kind == linux.Kprobe && off+len(site.Saved) <= len(m.was) && (m.was[off] == opInt3 || m.was[off] == opJump) {
		if m.now == nil {
			m.now = make(map[int][]byte)
		}
		for i := off; i < off+len(site.Saved); i++ {
			page := i / mem.PageSize
			if _, ok := m.now[page]; !ok {
				m.now[page] = bytes.Clone(m.was[page*mem.PageSize : min((page+1)*mem.PageSize, len(m.was))])
			}
			m.was[i] = site.Saved[i-off]
		}
	}
}

// probed reports whether a kprobe stands at an address: what is there then is
// its, not the site's.
func (t *textLook) probed(sites []linux.PatchSite, at mem.VA) bool {
	i := sort.Search(len(sites), func(i int) bool { return sites[i].At >= at })
	for ; i < len(sites) && sites[i].At == at; i++ {
		if sites[i].Kind == linux.Kprobe {
			return true
		}
	}
	return false
}

// site is form for what stands at a place of a run. One that is in none is
// looked at again: it, or what says where it leads, may just be being rewritten.
func (t *textLook) site(m *run, site linux.PatchSite, probed bool) int {
	var buf [siteSize]byte
	b := buf[:m.at(buf[:], int(site.At-m.Start))]
	n := form(site, b, t.callees.may)
	if n > 0 || probed || site.Kind == linux.LockPrefix {
		return n
	}
	return t.rewriting(site.At, b, func(b []byte) int { return form(site, b, t.callees.may) })
}

// badSite reports a place that is in no form that is valid there. If it may yet
// become valid by what is wanted there, it returns how many bytes it has.
func (t *textLook) badSite(m *run, site linux.PatchSite) (slow int) {
	off := int(site.At - m.Start)
	m.found(off)
	was, now := m.was[off:min(off+siteSize, len(m.was))], make([]byte, siteSize)
	now = now[:m.at(now, off)]
	slow = form(site, now, t.callees.might)
	if t.full() {
		return slow
	}
	name := t.Name(site.At)
	f := Finding{Check: "text", Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("what stands at %s, a %s of %s, is in no form that is valid there", name, site.Kind, t.code.OwnerName(site.At)),
		Evidence: []Evidence{
			t.bytes(fmt.Sprintf("%s at %#x", site.Kind, uint64(site.At)), site.At, was, now),
		}}
	if site.Target != 0 {
		f.Evidence[0].Expected = fmt.Sprintf("nothing, or a jump to %#x (%s)", uint64(site.Target), t.Name(site.Target))
	} else if bytes.Equal(was, now) {
		f.Evidence[0].Expected = "a form that is valid for a " + site.Kind.String()
	}
	f.slow = slow > 0
	if site.Key != 0 {
		if is, err := t.StaticCallee(site.Key); err == nil {
			f.Evidence = append(f.Evidence, Evidence{What: fmt.Sprintf("the function of its static_call_key: %#x (%s)", uint64(is), t.Name(is)), Addr: site.Key, Symbol: t.Name(site.Key)})
		}
	}
	f.identify("site", name, m.where(off))
	t.report(f)
	return slow
}

// bytes is the evidence of bytes that differ, with what they do.
func (t *textLook) bytes(what string, at mem.VA, was, now []byte) Evidence {
	return Evidence{What: what, Addr: at, Symbol: t.Name(at), Owner: t.code.OwnerName(at),
		Expected: t.show(at, was), Found: t.show(at, now), differ: differ(at, was, now)}
}

// shown bounds the bytes of a difference that evidence shows.
const shown = 32

// show prints bytes and the instructions that they are.
func (t *textLook) show(at mem.VA, b []byte) string {
	b = b[:min(len(b), shown)]
	text := hex.EncodeToString(b)
	sep := " ("
	for i := 0; i < len(b); {
		inst, err := x86asm.Decode(b[i:], 64)
		if err != nil || inst.Op == 0 || inst.Len == 0 {
			break
		}
		text += sep + x86asm.IntelSyntax(inst, uint64(at)+uint64(i), func(a uint64) (string, uint64) {
			s, err := t.symbols()
			if err != nil {
				return "", 0
			}
			sym, off, err := s.Nearest(mem.VA(a))
			if err != nil || off != 0 {
				return "", 0
			}
			return sym.String(), a
		})
		sep = "; "
		i += inst.Len
	}
	if sep == "; " {
		text += ")"
	}
	return text
}

// anew tells of a module that was loaded again, by its number, to the place that
// it had, with other code. Updates do that; and so does who has changed the code
// and then the number, so as to be seen for the first time.
func (t *textLook) anew(m *run, valid []covered) {
	if len(m.before) != len(m.was) || len(m.before) == 0 {
		return
	}
	then := &run{runKey: m.runKey, was: m.before, now: make(map[int][]byte)}
	for off := 0; off < len(m.was); off += mem.PageSize {
		then.now[off/mem.PageSize] = m.was[off:min(off+mem.PageSize, len(m.was))]
	}
	bytes, first := 0, 0
	strays(then, valid, func(from, to int) {
		if bytes == 0 {
			first = from
		}
		bytes += to - from
	})
	if bytes == 0 {
		return
	}
	at := m.Start + mem.VA(first)
	f := Finding{Check: "text", Severity: Info, Confidence: Possible,
		Summary: fmt.Sprintf("module %s is where it was, but loaded anew, and %d bytes of its code are not what they were", m.Name, bytes),
		Evidence: []Evidence{
			t.bytes("the first that differs", at, m.before[first:min(first+shown, len(m.before))], m.was[first:min(first+shown, len(m.was))]),
		}}
	f.identify("anew", string(m.Name))
	t.report(f)
}

// near is how far apart bytes may be that differ and are told together.
const near = 16

// strays calls each with the runs of bytes, by offset, that are not as they were
// and that no place in a valid form has; those that are near each other together.
func strays(m *run, valid []covered, each func(from, to int)) {
	from, to := -1, -1
	m.differences(func(at, end int) {
		for at < end {
			for len(valid) > 0 && valid[0].to <= at {
				valid = valid[1:]
			}
			stop := end
			if len(valid) > 0 {
				if valid[0].from <= at {
					at = valid[0].to
					continue
				}
				stop = min(end, valid[0].from)
			}
			if from < 0 || at >= to+near {
				if from >= 0 {
					each(from, to)
				}
				from = at
			}
			to, at = stop, stop
		}
	})
	if from >= 0 {
		each(from, to)
	}
}

func (t *textLook) changed(m *run, from, to int) {
	if t.full() {
		return
	}
	at := m.Start + mem.VA(from)
	name := t.Name(at)
	first, last := t.whole(m.Start, m.was, from, to)
	now := make([]byte, min(last-first, shown))
	now = now[:m.at(now, first)]
	start := m.Start + mem.VA(first)
	e := t.bytes(fmt.Sprintf("code, %d bytes; shown from %#x on", to-from, uint64(start)), start, m.was[first:last], now)
	e.Addr, e.Symbol = at, name
	f := Finding{Check: "text", Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("%d bytes of code at %s (%s) are not what they were, and the kernel does not rewrite them", to-from, name, t.code.OwnerName(at)),
		Evidence: []Evidence{e}}
	f.identify("changed", name, m.where(from))
	t.report(f)
}

// maxFunction bounds how far from the start of a function instructions are
// counted.
const maxFunction = 16 << 10

// whole widens a run of bytes of code that begins at start, by offset, to the
// whole instructions that they were; it stays as it is where those cannot be
// told.
func (t *textLook) whole(start mem.VA, was []byte, from, to int) (first, last int) {
	r, _ := t.symbols()
	_, into, err := r.Nearest(start + mem.VA(from))
	if err != nil || into > maxFunction || into > uint64(from) {
		return from, to
	}
	first = from - int(into)
	for last = first; last < to; {
		inst, err := x86asm.Decode(was[last:min(last+maxInstruction, len(was))], 64)
		if err != nil || inst.Op == 0 || inst.Len == 0 {
			return from, to
		}
		if last+inst.Len <= from {
			first = last + inst.Len
		}
		if last += inst.Len; last-first > maxFunction {
			return from, to
		}
	}
	return first, last
}

// maxInstruction is the length of the longest instruction, in bytes.
const maxInstruction = 15

// entries looks at where the functions of a run begin.
func (t *textLook) entries(m *run, f *linux.Functions, valid []covered) {
	var buf [entrySize]byte
	for _, entry := range f.Entries {
		if entry-m.Start >= mem.VA(m.Size) {
			continue
		}
		if !m.fresh(int(entry-m.Start), entrySize) {
			continue
		}
		at := entry
		b := buf[:m.at(buf[:], int(at-m.Start))]
		for {
			if n := sizeAt(valid, int(at-m.Start)); n > 0 && n < len(b) {
				at, b = at+mem.VA(n), b[n:]
			} else if begins(b, branchMarks) {
				at, b = at+4, b[4:]
			} else {
				break
			}
		}
		to, ok := leap(at, b, t.Mem.Pointer)
		if !ok {
			continue
		}
		o, ok := t.code.Owner(to)
		if ok && (o.Kind == "kernel" || o.Kind == "init" || o.Kind == "module" && m.Kind == "module") || !ok && t.thunk(to) {
			continue
		}
		m.found(int(entry - m.Start))
		if t.full() {
			continue
		}
		name := t.Name(entry)
		f := Finding{Check: "text", Severity: High, Confidence: Proved,
			Summary: fmt.Sprintf("the function %s begins with a branch to %#x, code of %s", name, uint64(to), t.code.OwnerName(to)),
			Evidence: []Evidence{
				{What: "entry of the function", Addr: at, Symbol: t.Name(at), Owner: t.code.OwnerName(at), Expected: "code of the function, or a branch to code of the kernel", Found: t.show(at, b[:min(len(b), 16)])},
				{What: leadsThere, Addr: to, Symbol: t.Name(to), Owner: t.code.OwnerName(to), Found: peek(t.Look, to, 32)},
			}}
		f.identify("entry", name, m.where(int(entry-m.Start)))
		t.report(f)
	}
}

// thunk reports whether at an address there is but a jump through a register, as
// the kernel makes for itself where it must; see thunks.
func (l *Look) thunk(at mem.VA) bool {
	var b [4]byte
	_, err := l.Mem.Read(b[:], at)
	n := 3 // jmp reg; int3
	if b[0] == 0x41 {
		n = 4
	}
	return err == nil && thunks(b[:n])
}

// unlisted are places of a run that the kernel rewrites and lists nowhere.
func (t *textLook) unlisted(m *run, f *linux.Functions) []linux.PatchSite {
	var out []linux.PatchSite
	for _, site := range slices.Concat(f.Trampolines, t.FtraceCalls()) {
		if site.At-m.Start < mem.VA(m.Size) {
			out = append(out, site)
		}
	}
	return out
}
