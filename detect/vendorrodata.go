package detect

import (
	"bytes"
	"fmt"
	"slices"

	"vmscope/kernel"
	"vmscope/kernel/linux/vendorfile"
	"vmscope/mem"
)

// vetRodata compares a run of read-only data with the vendor's file, as far as
// that was not done and nothing changed since. What is written until the kernel
// or the module has started (__ro_after_init) the file cannot tell; tables that
// are put into order are compared entry by entry.
func (d Rodata) vet(l *Look, m *run, v *Vendor, live map[kernel.Text]kernel.Module, report func(Finding)) {
	by := v.of(m, live)
	if by.why != "" {
		return
	}
	w := rodataVet{d: d, Look: l, m: m, by: by, report: report}
	w.open = append(w.open, openOf(by.Image)...)
	for _, t := range by.SortedTables() {
		w.sorted(t)
	}
	slices.SortFunc(w.open, func(a, b span) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for _, s := range by.Sections {
		if !s.Exec && len(s.Data) > 0 && s.Addr >= m.Start && s.Addr-m.Start < mem.VA(m.Size) {
			w.section(s)
		}
	}
	m.vetted = true
}

// openOf are the runs of a file of which it does not tell what memory holds once
// the kernel, or the module, has started.
func openOf(im *vendorfile.Image) []span {
	if s := im.Section(".data..ro_after_init"); s != nil && s.Addr != 0 && s.Size > 0 {
		return []span{{s.Addr, s.End() - 1}}
	}
	from, ok := im.Symbol("__start_ro_after_init")
	to, ok2 := im.Symbol("__end_ro_after_init")
	if ok && ok2 && from < to {
		return []span{{from, to - 1}}
	}
	return nil
}

type rodataVet struct {
	*Look
	d      Rodata
	m      *run
	by     *vendored
	open   []span // what is not compared byte by byte
	report func(Finding)
}

// deserves reports whether any page of a run of addresses deserves a look.
func (w *rodataVet) deserves(at mem.VA, n uint64) bool {
	for page := int(at-w.m.Start) / mem.PageSize; page <= (int(at-w.m.Start)+int(n)-1)/mem.PageSize; page++ {
		if w.m.deserves(page) {
			return true
		}
	}
	return false
}

// sorted compares a table that is put into order.
func (w *rodataVet) sorted(t *vendorfile.Sorted) {
	for _, part := range t.Parts() {
		if part.At < w.m.Start || part.At-w.m.Start >= mem.VA(w.m.Size) || part.Size > w.m.Size-uint64(part.At-w.m.Start) {
			return // not here
		}
	}
	look := false
	for _, part := range t.Parts() {
		w.open = append(w.open, span{part.At, part.At + mem.VA(part.Size) - 1})
		look = look || w.deserves(part.At, part.Size)
	}
	if !look {
		return
	}
	at, each, ok := w.by.Foreign(t, func(va mem.VA, n uint64) []byte {
		b := make([]byte, n)
		return b[:w.m.at(b, int(va-w.m.Start))]
	})
	if !ok {
		return
	}
	for _, va := range at {
		w.differs(va, int(each), nil, fmt.Sprintf("an entry of %s", t.Name))
	}
}

// section compares a section, but for what is open in it.
func (w *rodataVet) section(s *vendorfile.Section) {
	at, end := s.Addr, min(s.Addr+mem.VA(len(s.Data)), w.m.Start+mem.VA(w.m.Size))
	for _, o := range w.open {
		if o.last < at || o.first >= end {
			continue
		}
		if o.first > at {
			w.compare(s, at, o.first)
		}
		at = o.last + 1
	}
	if at < end {
		w.compare(s, at, end)
	}
}

// compare compares a part of a section, and reports the words that differ,
// neighbours together.
func (w *rodataVet) compare(s *vendorfile.Section, from, to mem.VA) {
	const word = 8
	var buf [mem.PageSize]byte
	first, last := mem.VA(0), mem.VA(0) // what differs
	flush := func() {
		if first != 0 {
			w.differs(first, int(last-first), s.Data[first-s.Addr:][:last-first], "read-only data")
		}
		first = 0
	}
	for at := from; at < to; {
		off := int(at - w.m.Start)
		end := min(to, w.m.Start+mem.VA((off/mem.PageSize+1)*mem.PageSize))
		if w.m.deserves(off / mem.PageSize) {
			now := buf[:w.m.at(buf[:end-at], off)]
			was := s.Data[at-s.Addr:][:len(now)]
			if !bytes.Equal(now, was) {
				for i := range now {
					if va := at + mem.VA(i); now[i] == was[i] || w.by.Image.Untold(va) > 0 || w.by.Image.Widened(va, now[i]) {
						continue
					}
					b := max(from, (at+mem.VA(i))&^(word-1))
					if first != 0 && b > last {
						flush()
					}
					if first == 0 {
						first = b
					}
					last = min(to, (at+mem.VA(i)+word)&^(word-1))
				}
			}
		}
		at = end
	}
	flush()
}

// differs reports read-only data that are not the file's.
func (w *rodataVet) differs(at mem.VA, n int, was []byte, what string) {
	from := int(at - w.m.Start)
	for page := from / mem.PageSize; page <= (from+n-1)/mem.PageSize; page++ {
		w.m.found(page * mem.PageSize)
	}
	now := make([]byte, min(n, shown))
	now = now[:w.m.at(now, from)]
	owner := "the kernel"
	if w.m.Kind == "module" {
		owner = "module " + w.m.Name.String()
	}
	name := w.Name(at)
	e := Evidence{What: fmt.Sprintf("%s, %d bytes; expected by %s", what, n, w.by), Addr: at, Symbol: name, Owner: owner, Found: w.d.show(w.Look, now)}
	if was != nil {
		e.Expected = w.d.show(w.Look, was[:min(len(was), shown)])
	} else {
		e.Expected = "one of the entries that the file has"
	}
	f := Finding{Check: w.d.Name(), Severity: High, Confidence: Proved,
		Summary:  fmt.Sprintf("%d bytes of read-only data at %s (%s) are not those of the vendor's file", n, name, owner),
		Evidence: []Evidence{e}}
	f.identify("vendor", w.m.Name.String(), name)
	w.report(f)
}
