package scan

import (
	"errors"
	"time"

	"vmscope/arch"
	"vmscope/mem"
	"vmscope/pattern"
)

// page is a page of the memory that is searched now.
type page struct {
	va   mem.VA
	pa   mem.PA
	live bool // to be searched: it is fresh, or what follows it is
	// fresh says that it was not searched before, border that what follows it is
	// another page than last time, again that what was found in it is to be told
	// again.
	fresh, border, again bool
	bad                  bool // it cannot be read
}

func (p page) frame() uint64 { return uint64(p.pa) / mem.PageSize }

// chunkPages is how many pages are searched at a time: what the processor's
// caches hold.
const chunkPages = 64

// walk searches what a space maps from first to last, where want says so.
func (s *search) walk(space *mem.Space, first, last mem.VA, want func(arch.Region) bool, fresh bool) error {
	paging, ok := space.Tr.(arch.Paging)
	if !ok {
		return errors.ErrUnsupported
	}
	end := mem.VA(0)
	for r, err := range paging.Mappings(first, last) {
		if errors.Is(err, mem.ErrUnreachable) {
			return err
		}
		if err != nil || !want(r) || r.VA != end {
			if err := s.flush(fresh); err != nil {
				return err
			}
		}
		if err != nil || !want(r) {
			continue // a table of a process that ends
		}
		if err := s.feed(r, fresh); err != nil {
			return err
		}
		end = r.VA + mem.VA(r.Size)
	}
	return s.flush(fresh)
}

// feed adds the pages of a region behind those that are there.
func (s *search) feed(r arch.Region, fresh bool) error {
	for at := uint64(0); at < r.Size; at += mem.PageSize {
		s.pages = append(s.pages, page{va: r.VA + mem.VA(at), pa: r.PA + mem.PA(at)})
		if len(s.pages) < chunkPages+2 {
			continue
		}
		if err := s.chunk(len(s.pages)-1, fresh); err != nil {
			return err
		}
		s.pages = append(s.pages[:0], s.pages[len(s.pages)-2:]...)
		s.lead = true
	}
	return nil
}

// flush searches the pages that are left: what comes next is not next to them.
func (s *search) flush(fresh bool) error {
	err := s.chunk(len(s.pages), fresh)
	s.pages, s.lead = s.pages[:0], false
	return err
}

// chunk searches the pages up to number end, but for the first if that has been.
// One page behind them is there if they go on. Fresh says that only pages count
// that were not met before, and are nobody's.
func (s *search) chunk(end int, fresh bool) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	first := 0
	if s.lead {
		first = 1
	}
	for i := first; i < end; i++ {
		s.decide(i, fresh)
	}
	for i := first; i < end; {
		if !s.pages[i].live {
			i++
			continue
		}
		n := i
		for n < end && s.pages[n].live {
			n++
		}
		if err := s.span(i, n); err != nil {
			return err
		}
		i = n
	}
	for i := first; i < end; i++ {
		if s.pages[i].again {
			s.retell(i)
		}
	}
	s.progress()
	return nil
}

// decide says what is to be done with page i, and remembers that it was.
func (s *search) decide(i int, fresh bool) {
	p := &s.pages[i]
	*p = page{va: p.va, pa: p.pa}
	slot := s.frames.slot(p.pa)
	if slot == nil {
		if len(s.frames.ranges) > 0 {
			p.bad = true // no RAM: a device
			return
		}
		p.fresh, p.live = true, true
		return
	}
	now := uint32(alone)
	if i+1 < len(s.pages) {
		now = follow + uint32(s.pages[i+1].frame())
	}
	switch was := *slot; {
	case was == owned && fresh:
		return
	case was == unseen, was == owned:
		p.fresh = true
	case fresh:
		return
	default:
		p.again = true
		p.border = now != alone && now != was
	}
	if p.live = p.fresh || p.border; p.live {
		*slot = now
	}
}

// span searches the pages from i up to n.
func (s *search) span(i, n int) error {
	from, to := i, n
	if i > 0 {
		from--
	}
	if n < len(s.pages) {
		to++
	}
	if err := s.read(from, to); err != nil {
		return err
	}
	// What stands before and behind the pages is there for as much as a match can
	// have of it.
	buf := s.buf[:(to-from)*mem.PageSize]
	start, end := (i-from)*mem.PageSize, (n-from)*mem.PageSize
	head := max(0, start-pattern.Overlap)
	buf = buf[head:min(len(buf), end+pattern.Overlap)]
	s.scanner.Scan(buf, start-head, end-head, func(m pattern.Match) {
		at := m.Start + head
		k := from + at/mem.PageSize
		p := &s.pages[k]
		h := hit{rule: uint32(m.Rule), str: uint32(m.String), offset: uint16(at % mem.PageSize), len: uint16(m.End - m.Start)}
		crosses := int(h.offset)+int(h.len) > mem.PageSize
		if p.bad || crosses && s.pages[k+1].bad || !p.fresh && !(crosses && p.border) {
			return
		}
		if crosses {
			h.next = s.pages[k+1].frame() + 1
		}
		s.frames.remember(p.frame(), h)
		s.unit.add(s.o.Max, h, p, buf[m.Start:m.End])
	})
	for _, p := range s.pages[i:n] {
		if p.fresh && !p.bad {
			s.report.Searched += mem.PageSize
		}
	}
	return nil
}

// read reads the pages from i up to n into s.buf; of those that cannot be read it
// makes zeros.
func (s *search) read(i, n int) error {
	if need := (n - i) * mem.PageSize; len(s.buf) < need {
		s.buf = make([]byte, (chunkPages+2)*mem.PageSize)
	}
	s.vecs = s.vecs[:0]
	for k, p := range s.pages[i:n] {
		at := k * mem.PageSize
		if v := len(s.vecs) - 1; v >= 0 && s.vecs[v].PA+mem.PA(len(s.vecs[v].P)) == p.pa {
			s.vecs[v].P = s.vecs[v].P[:len(s.vecs[v].P)+mem.PageSize]
			continue
		}
		s.vecs = append(s.vecs, mem.Vec{P: s.buf[at : at+mem.PageSize], PA: p.pa})
	}
	if _, err := mem.ReadVec(s.phys, s.vecs); err == nil {
		return nil
	}
	for k := range s.pages[i:n] {
		p, b := &s.pages[i+k], s.buf[k*mem.PageSize:(k+1)*mem.PageSize]
		if _, err := s.phys.ReadPhys(b, p.pa); err != nil {
			if errors.Is(err, mem.ErrUnreachable) {
				return err
			}
			clear(b)
			p.bad = true
		}
	}
	return nil
}

// retell tells of page i what was found when it was searched.
func (s *search) retell(i int) {
	p := &s.pages[i]
	for _, h := range s.frames.hits[p.frame()] {
		if h.next != 0 && (p.border || i+1 >= len(s.pages) || s.pages[i+1].frame()+1 != h.next) {
			continue
		}
		s.unit.add(s.o.Max, h, p, nil)
	}
}

// tellEvery is how often progress is told.
const tellEvery = 100 * time.Millisecond

func (s *search) progress() {
	if s.o.Progress == nil || time.Since(s.told) < tellEvery {
		return
	}
	s.told = time.Now()
	var ram uint64
	for _, r := range s.frames.ranges {
		ram += r.Size
	}
	s.o.Progress(Progress{Done: s.report.Searched, RAM: ram, Matches: s.report.Matches + s.unit.kept, What: s.unit.what})
}
