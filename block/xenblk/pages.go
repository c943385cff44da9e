package xenblk

// maxPersistent bounds the pages of a queue that stay mapped: as many as a one-page ring can name in requests without
// indirect segments, and as many again. What is beyond is copied.
const maxPersistent = 2 * 32 * maxSegments

// pages are those of a front end that uses the same grants again and again (feature-persistent): they stay mapped. As long
// as one is, the front end cannot take it back. A nil *pages has none. It is for one goroutine.
type pages struct {
	grants Grants
	domain uint16
	mapped map[uint32][]byte // nil: it could not be mapped
}

func newPages(g Grants, domain uint16) *pages {
	return &pages{g, domain, map[uint32][]byte{}}
}

// of gives the page behind a grant; nil if it is to be copied.
func (p *pages) of(ref uint32) []byte {
	if p == nil {
		return nil
	}
	mem, known := p.mapped[ref]
	if known || len(p.mapped) == maxPersistent {
		return mem
	}
	mem, err := p.grants.Map(p.domain, []uint32{ref})
	if err != nil {
		mem = nil // one that we may only read, for instance: whether it can be copied will be seen
	}
	p.mapped[ref] = mem
	return mem
}

// close unmaps all.
func (p *pages) close() {
	if p == nil {
		return
	}
	for _, mem := range p.mapped {
		if mem != nil {
			p.grants.Unmap(mem)
		}
	}
	p.mapped = nil
}
