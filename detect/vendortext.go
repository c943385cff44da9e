package detect

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"vmscope/kernel/linux"
	"vmscope/kernel/linux/vendorfile"
	"vmscope/mem"
)

// vet compares a run of text with the vendor's file, as far as that was not done
// and nothing changed since.
type vet struct {
	*textLook
	m      *run
	by     *vendored
	vendor *Vendor
	match  vendorfile.Matcher
	later  vendorfile.Matcher // for what may yet become valid
	probes []linux.PatchSite  // the kprobes in the run

	section  *vendorfile.Section // that is compared
	from, to int                 // what differs and nothing explains, by offset in the run; from < 0: nothing
	slow     bool                // all of it may yet become valid
	strays   int
}

// maxStrays bounds how much of a run that is nothing like its file is looked
// into, in bytes.
const maxStrays = 1 << 16

func (t *textLook) vet(m *run, v *Vendor) {
	by := v.of(m, t.modules)
	if by.why != "" {
		return
	}
	w := &vet{textLook: t, m: m, by: by, vendor: v, from: -1}
	w.match = vendorfile.Matcher{Kernel: v.kernel,
		Read:  func(b []byte, va mem.VA) bool { _, err := t.Mem.Read(b, va); return err == nil },
		Leads: func(s vendorfile.Site, to mem.VA) bool { return w.leads(s, to, t.callees.may) }}
	w.later = w.match
	w.later.Leads = func(s vendorfile.Site, to mem.VA) bool { return w.leads(s, to, t.callees.might) }
	for _, s := range t.in(m.Start, m.Start+mem.VA(m.Size)) {
		if s.Kind == linux.Kprobe && len(s.Saved) > 0 {
			w.probes = append(w.probes, s)
		}
	}
	at := 0
	for _, s := range codeOf(by.Image, m) {
		w.gap(at, int(s.Addr-m.Start))
		w.compare(s)
		at = int(s.End() - m.Start)
	}
	w.gap(at, len(m.was))
	m.vetted = true
}

// leads reports whether a place that the file lists may lead to an address: by
// may, or what is like it, and by the file itself.
func (w *vet) leads(s vendorfile.Site, to mem.VA, may func(linux.PatchSite, mem.VA) bool) bool {
	o, _ := w.code.Owner(to)
	switch s.Kind {
	case vendorfile.StaticCall:
		switch o.Kind {
		case "kernel":
			if !w.vendor.kernel.Callable(w.by.Image, s.Target, to) {
				return false
			}
		case "module":
			if w.vendor.amid(o.Name, to) {
				return false
			}
		}
		return may(linux.PatchSite{At: s.At, Key: s.Target, Kind: linux.StaticCall}, to)
	case vendorfile.FtraceCall:
		return may(linux.PatchSite{At: s.At, Kind: linux.FtraceCall}, to)
	}
	if o.Kind == "kernel" {
		return w.vendor.kernel.Named(to, ftraceEntries...) || w.callees.directly(s.At, to, o.Kind)
	}
	return may(linux.PatchSite{At: s.At, Kind: linux.FtraceSite}, to)
}

// codeOf are the sections of code in a run, by address, which do not overlap.
func codeOf(im *vendorfile.Image, m *run) []*vendorfile.Section {
	var out []*vendorfile.Section
	for _, s := range im.Sections {
		if s.Exec && len(s.Data) > 0 && s.Addr >= m.Start && s.Addr-m.Start < mem.VA(m.Size) && s.Size <= m.Size-uint64(s.Addr-m.Start) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *vendorfile.Section) int { return int(int64(a.Addr - b.Addr)) })
	end := mem.VA(0)
	return slices.DeleteFunc(out, func(s *vendorfile.Section) bool {
		if s.Addr < end {
			return true
		}
		end = s.End()
		return false
	})
}

// deserves reports whether a page of the run deserves a look.
func (m *run) deserves(page int) bool {
	return !m.vetted || m.now[page] != nil || m.odd[page]
}

// gap looks at what lies between sections, which must be empty.
func (w *vet) gap(from, to int) {
	b := make([]byte, mem.PageSize)
	for at := from; at < to; {
		end := min(to, (at/mem.PageSize+1)*mem.PageSize)
		if w.m.deserves(at / mem.PageSize) {
			b := b[:w.m.at(b[:end-at], at)]
			if !filler(b) && !vendorfile.Idle(b) {
				w.differs(nil, at, at+len(b))
			}
		}
		at = end
	}
}

// compare compares a section.
func (w *vet) compare(s *vendorfile.Section) {
	w.section = s
	base := int(s.Addr - w.m.Start)
	var buf [mem.PageSize]byte
	next := base // what is before is accounted for
	for at := base; at < base+len(s.Data); {
		page := at / mem.PageSize
		end := min(base+len(s.Data), (page+1)*mem.PageSize)
		if !w.m.deserves(page) {
			at = end
			continue
		}
		now := buf[:w.bytes(buf[:end-at], at)]
		want := s.Data[at-base:][:len(now)]
		if bytes.Equal(now, want) {
			at = end
			continue
		}
		for i := max(at, next); i < at+len(now) && w.strays < maxStrays; {
			if now[i-at] == want[i-at] {
				i++
				continue
			}
			if next = w.explain(i); next > i {
				i = next
				continue
			}
			w.stray(i)
			i++
		}
		at = end
	}
	w.flush()
}

// bytes copies what stands at an offset into b, without the kprobes there.
func (w *vet) bytes(b []byte, off int) int {
	n := w.m.at(b, off)
	for _, p := range w.probes {
		at := int(p.At - w.m.Start)
		if at+len(p.Saved) <= off || at >= off+n {
			continue
		}
		var there [siteSize]byte
		if form(p, there[:w.m.at(there[:], at)], w.callees.may) == 0 {
			continue // another one stands there, such as ftrace's
		}
		for i, c := range p.Saved {
			if k := at + i - off; k >= 0 && k < n {
				b[k] = c
			}
		}
	}
	return n
}

// passes reports whether a byte that differs belongs to a place that may yet
// become valid: the kernel says first where it shall lead.
func (w *vet) passes(off int) (ok bool) {
	var buf [256]byte
	w.by.sites.Around(w.m.Start+mem.VA(off), func(s vendorfile.Site) bool {
		first := int(s.At - w.m.Start)
		if s.At >= w.m.Start {
			ok = first+w.later.Match(w.by.Image, w.by.sites, s, buf[:w.bytes(buf[:max(int(s.Len), 8)], first)]) > off
		}
		return !ok
	})
	return ok
}

// explain finds the place that a byte which differs belongs to, and returns where
// it ends if it is in a form that is valid there; else 0.
func (w *vet) explain(off int) int {
	var buf [256]byte
	at, end := w.m.Start+mem.VA(off), 0
	w.by.sites.Around(at, func(s vendorfile.Site) bool {
		first := int(s.At - w.m.Start)
		if s.At < w.m.Start {
			return true
		}
		got := buf[:w.bytes(buf[:max(int(s.Len), 8)], first)]
		n := w.match.Match(w.by.Image, w.by.sites, s, got)
		if n == 0 && len(got) > 0 && got[0] == opInt3 && (s.Kind == vendorfile.Ftrace || s.Kind == vendorfile.JumpLabel || s.Kind == vendorfile.StaticCall) {
			n = w.rewriting(s.At, got, func(b []byte) int { return w.match.Match(w.by.Image, w.by.sites, s, b) })
		}
		if first+n > off {
			end = first + n
		}
		return end == 0
	})
	if end == 0 {
		if n := cmp.Or(w.match.Padding(w.by.Image, at), w.by.Image.Untold(at)); n > 0 {
			end = off + n
		}
	}
	return end
}

// stray takes up a byte that nothing explains; those that are near each other
// are told together.
func (w *vet) stray(off int) {
	w.strays++
	passes := w.passes(off)
	if w.from >= 0 && off < w.to+near {
		w.to, w.slow = off+1, w.slow && passes
		return
	}
	w.flush()
	w.from, w.to, w.slow = off, off+1, passes
}

func (w *vet) flush() {
	if w.from >= 0 {
		w.differs(w.section, w.from, w.to)
	}
	w.from, w.slow = -1, false
}

// differs reports bytes, by offset, that are not the file's; of no section if
// they lie between two.
func (w *vet) differs(s *vendorfile.Section, from, to int) {
	for page := from / mem.PageSize; page <= (to-1)/mem.PageSize; page++ {
		w.m.found(page * mem.PageSize)
	}
	at := w.m.Start + mem.VA(from)
	name := w.Name(at)
	first, last := from, to
	var was []byte
	if s != nil {
		base := int(s.Addr - w.m.Start)
		first, last = w.whole(s.Addr, s.Data, from-base, to-base)
		was = s.Data[first:last]
		first, last = first+base, last+base
	}
	now := make([]byte, min(last-first, shown))
	now = now[:w.m.at(now, first)]
	start := w.m.Start + mem.VA(first)
	e := w.textLook.bytes(fmt.Sprintf("code, %d bytes; shown from %#x on; expected by %s", to-from, uint64(start), w.by), start, was, now)
	e.Addr, e.Symbol = at, name
	f := Finding{Check: "text", Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("%d bytes of code at %s (%s) are not those of the vendor's file, which lists no place there that may hold them", to-from, name, w.code.OwnerName(at)),
		Evidence: []Evidence{e}}
	if s == nil {
		f.Summary = fmt.Sprintf("%d bytes of code at %s (%s) lie in no section of the vendor's file", to-from, name, w.code.OwnerName(at))
		f.Evidence[0].Expected = "nothing"
	}
	f.slow = w.slow
	f.identify("vendor", name)
	w.report(f)
}
