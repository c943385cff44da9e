package detect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"vmscope"
	"vmscope/kernel"
	"vmscope/mem"
	"vmscope/vm/dump"
)

// A bundle has the memory of a guest already. Of a reference it needs only the
// pages that are not what they were: this is what a bundle has beside the memory,
// as JSON.
type referenceDifferences struct {
	Format int          `json:"format"`
	Runs   []runChanges `json:"runs"`
}

type runChanges struct {
	runHeader
	Was map[int][]byte `json:"was,omitempty"` // pages that differ, by number
}

// clone is a Reference with the same knowledge, which grows on its own.
func (r *Reference) clone() *Reference {
	c := &Reference{Vendor: r.Vendor, boot: r.boot}
	if r.runs != nil {
		c.runs = make(map[runKey]*run, len(r.runs))
	}
	for k, m := range r.runs {
		c.runs[k] = &run{runKey: k, was: m.was, odd: maps.Clone(m.odd)}
	}
	return c
}

// differences tells what r knew, beside memory that was compared with looked,
// which was a clone of r. Nil: it knew nothing.
func (r *Reference) differences(looked *Reference) ([]byte, error) {
	if len(r.runs) == 0 {
		return nil, nil
	}
	d := referenceDifferences{Format: referenceFormat}
	for k, m := range r.runs {
		now := looked.runs[k]
		if now == nil {
			continue // a module that is gone
		}
		c := runChanges{runHeader: m.header(), Was: make(map[int][]byte)}
		for page := range now.now {
			c.Was[page] = m.was[page*mem.PageSize : min((page+1)*mem.PageSize, len(m.was))]
		}
		d.Runs = append(d.Runs, c)
	}
	slices.SortFunc(d.Runs, func(a, b runChanges) int { return bytes.Compare(a.order(), b.order()) })
	return json.Marshal(d)
}

// restore takes up what a bundle that is looked at knew of the guest. The bundle
// may be anybody's.
func (r *Reference) restore(v *vmscope.View) error {
	b, ok := v.Machine.(dump.Bundle)
	if !ok || b.Extra() == nil {
		return nil
	}
	var d referenceDifferences
	if err := json.Unmarshal(b.Extra(), &d); err != nil {
		return fmt.Errorf("the bundle's reference: %w", err)
	}
	if d.Format != referenceFormat {
		return fmt.Errorf("the bundle's reference: format %d, which is not known", d.Format)
	}
	s := uncached(&Look{View: v})
	total := uint64(0)
	for _, c := range d.Runs {
		m, err := c.run()
		if err != nil {
			return fmt.Errorf("the bundle's reference: %w", err)
		}
		if total += m.Size; total > 2*maxReference || r.runs[m.runKey] != nil {
			return fmt.Errorf("the bundle's reference: more than %d MiB, or the same twice", 2*maxReference>>20)
		}
		if err := m.read(s); err != nil {
			return fmt.Errorf("the bundle's reference: %w", err)
		}
		for page, was := range c.Was {
			if page < 0 || page > len(m.was)/mem.PageSize || len(m.was)-page*mem.PageSize < len(was) || len(was) > mem.PageSize {
				return fmt.Errorf("the bundle's reference: %d bytes of page %d at %#x", len(was), page, uint64(m.Start))
			}
			copy(m.was[page*mem.PageSize:], was)
		}
		r.runs[m.runKey] = m
	}
	return nil
}

// header is what a file tells of a run beside its bytes.
func (m *run) header() runHeader {
	return runHeader{runKey: m.runKey, Bytes: []byte(m.Name), Odd: slices.Sorted(maps.Keys(m.odd))}
}

// run is the run that a header, which may be anybody's, tells of, without its
// bytes.
func (h runHeader) run() (*run, error) {
	h.Name = kernel.Text(h.Bytes)
	if h.Size == 0 || h.Size > 2*maxReference || uint64(h.Start) > math.MaxUint64-h.Size {
		return nil, fmt.Errorf("%d bytes at %#x of %q: a run that cannot be", h.Size, uint64(h.Start), h.Name)
	}
	m := &run{runKey: h.runKey}
	for _, page := range h.Odd {
		if page < 0 || uint64(page) > h.Size/mem.PageSize {
			return nil, fmt.Errorf("page %d of %d bytes", page, h.Size)
		}
		m.found(page * mem.PageSize)
	}
	return m, nil
}
