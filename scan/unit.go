package scan

import (
	"cmp"
	"slices"
	"sort"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// unit is what rules are asked of: the memory of one process, or the kernel's, or
// all RAM.
type unit struct {
	kind  string
	what  string // for people
	task  linux.Task
	space *mem.Space
	rules []tally
	kept  int
}

// tally is what was found of one rule in a unit.
type tally struct {
	count []int // by pattern
	all   int
	first []place // at most Options.Max
}

type place struct {
	hit
	va   mem.VA
	pa   mem.PA
	data Data
}

// begin starts a unit.
func (s *search) begin(u *unit) {
	u.rules = make([]tally, len(s.set.Rules))
	for i, r := range s.set.Rules {
		u.rules[i].count = make([]int, len(r.Strings))
	}
	s.unit = u
	s.pages, s.lead = s.pages[:0], false
}

// add counts what was found in a page. Data is what stands there, if it has been
// read.
func (u *unit) add(most int, h hit, p *page, data []byte) {
	t := &u.rules[h.rule]
	t.count[h.str]++
	if t.all++; t.all > most {
		return
	}
	at := place{hit: h, va: p.va + mem.VA(h.offset), pa: p.pa + mem.PA(h.offset)}
	if data == nil {
		data = make([]byte, min(int(h.len), maxData))
		if _, err := u.space.Read(data, at.va); err != nil {
			data = nil // it has gone since
		}
	}
	at.data = slices.Clone(data[:min(len(data), maxData)])
	t.first = append(t.first, at)
	u.kept++
}

// end asks the rules and gives the matches of those that hold.
func (s *search) end() error {
	u := s.unit
	names := names{search: s, u: u}
	for i, r := range s.set.Rules {
		t := &u.rules[i]
		if !r.Holds(t.count) {
			continue
		}
		base := Match{Rule: r.Name, Kind: u.kind, PID: u.task.PID, Comm: u.task.Comm()}
		if t.all == 0 {
			s.report.Matches++
			if err := s.found(base); err != nil {
				return err
			}
		}
		if t.all > len(t.first) && !slices.Contains(s.report.Limited, r.Name) {
			s.report.Limited = append(s.report.Limited, r.Name)
		}
		slices.SortStableFunc(t.first, func(a, b place) int { return cmp.Or(cmp.Compare(a.va, b.va), cmp.Compare(a.str, b.str)) })
		for _, p := range t.first {
			m := base
			m.String, m.Len, m.Data = r.Strings[p.str].ID, int(p.len), p.data
			m.VA, m.PA = p.va, &p.pa
			names.name(&m)
			s.report.Matches++
			if err := s.found(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// names tells where in a unit an address is.
type names struct {
	*search
	u       *unit
	known   bool
	areas   []kernel.Area
	symbols *linux.Resolver
}

func (n *names) name(m *Match) {
	if !n.known {
		n.known = true
		switch n.u.kind {
		case "process":
			n.areas, _ = n.Areas(n.u.task) // of one that has ended there are none
		case "kernel":
			n.symbols, _ = n.Resolver()
		}
	}
	switch n.u.kind {
	case "process":
		i := sort.Search(len(n.areas), func(i int) bool { return n.areas[i].End > m.VA })
		if i == len(n.areas) || n.areas[i].Start > m.VA {
			return
		}
		a := n.areas[i]
		if m.Area = a.Path; m.Area == "" {
			m.Area = "[anon]"
		}
		off := uint64(m.VA-a.Start) + a.Offset
		m.Offset = &off
	case "kernel":
		m.Area = n.kernelPart(m.VA)
		if n.symbols != nil && m.Area == "[image]" {
			if sym, off, err := n.symbols.Nearest(m.VA); err == nil && off < mem.PageSize {
				m.Area, m.Offset = kernel.Text(sym.String()), &off
			}
		}
		if m.Area == "[direct map]" {
			n.cached(m)
		}
	case "physical":
		m.VA = 0
		n.cached(m)
	}
}

// cached names the file that a page of RAM holds a part of, if it is in the page
// cache. RAM may be searched without a kernel in it.
func (n *names) cached(m *Match) {
	if n.Kernel == nil {
		return
	}
	if path, off, ok, _ := n.CachedFile(*m.PA); ok {
		m.Area, m.Offset = "[page cache] "+path, &off
	}
}
