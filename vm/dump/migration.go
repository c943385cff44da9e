package dump

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"vmscope/mem"
	"vmscope/vm"
)

// migration is a migration stream. What it does not tell is where the RAM lies.
type migration struct {
	*lazy
	src     source
	block   *ramBlock
	deltas  []delta
	layouts []vm.Layout
	note    string // what it lacks
}

// openStream opens a migration stream, or one behind a header of libvirt. src is its
// own from then on.
func openStream(path string, src source, o options) (vm.Machine, error) {
	how := "QEMU migration stream:"
	snapshot := ""
	var magic [16]byte
	_, err := src.ReadAt(magic[:], 0)
	switch {
	case string(magic[:4]) == qcowMagic:
		how = "QEMU snapshot in a qcow2 image:"
		q, err := openQcow(src)
		if err != nil {
			src.Close()
			return nil, err
		}
		src = q
		snapshot = fmt.Sprintf("; snapshot %.64q", q.name)
		if q.others > 0 {
			snapshot += fmt.Sprintf(", the latest of %d with memory", q.others+1)
		}
	case string(magic[:]) == libvirtMagic:
		how = "libvirt save image:"
		if src, err = libvirtStream(src, o); err != nil {
			return nil, fmt.Errorf("libvirt save image: %w", err)
		}
	}
	s, err := parseStream(src, o.truncated)
	m := &migration{src: src}
	if err == nil {
		m.block, err = s.memory()
	}
	if err == nil && s.shared && len(m.block.pages) == 0 {
		err = fmt.Errorf("%w: migration stream without the memory, which stayed in the file that backs it (x-ignore-shared): open that", ErrFormat)
	}
	if err != nil {
		src.Close()
		return nil, err
	}
	if m.layouts, err = s.layouts(m.block.size); err != nil {
		src.Close()
		return nil, err
	}
	m.deltas = s.deltas
	m.note = "of " + s.machine + snapshot
	switch {
	case !s.whole:
		m.note += "; its end was not found, and so no registers"
	case s.noRegs != nil:
		m.note += "; registers cannot be read: " + s.noRegs.Error()
	}
	l := m.layouts[0]
	m.lazy = newLazy(path, how, l.Name+" ("+m.note+"; to be proved)", m.in(l), src.Close)
	m.regs = s.regs
	return m, nil
}

// layouts lists where the RAM may lie, that of the machine's type first.
func (s *stream) layouts(size uint64) ([]vm.Layout, error) {
	var out []vm.Layout
	for part, kind := range map[string]string{"q35": "q35", "i440fx": "pc", "microvm": "microvm", "virt-": "virt"} {
		if strings.Contains(s.machine, part) {
			l, err := vm.Layouts(kind, size)
			if err != nil {
				return nil, err
			}
			out = l
		}
	}
	all, err := vm.Layouts("", size)
	for _, l := range all {
		if !slices.ContainsFunc(out, func(o vm.Layout) bool { return slices.Equal(l.Ranges, o.Ranges) }) {
			out = append(out, l)
		}
	}
	return out, err
}

// Layouts lists where the RAM may lie.
func (m *migration) Layouts() []vm.Layout { return append([]vm.Layout(nil), m.layouts...) }

// In looks at the same RAM in another layout.
func (m *migration) In(l vm.Layout) (vm.Machine, error) {
	sum := uint64(0)
	for _, r := range l.Ranges {
		sum += r.Size
	}
	if sum != m.block.size {
		return nil, fmt.Errorf("layout %q of %d bytes for %d bytes of RAM", l.Name, sum, m.block.size)
	}
	v := newLazy(m.info.Name, "", l.Name+" ("+m.note+"; tried)", m.in(l), func() error { return nil })
	v.info.Name, v.info.Route, v.unpack, v.regs = m.info.Name, m.info.Route, m.unpack, m.regs
	return v, nil
}

func (m *migration) in(l vm.Layout) store { return &placedBlock{m.src, m.block, m.deltas, l.Ranges} }

// placedBlock is a block of RAM in a layout.
type placedBlock struct {
	src    source
	block  *ramBlock
	deltas []delta
	at     []mem.Range
}

func (p *placedBlock) find(pa mem.PA) (unit, error) {
	start := uint64(0)
	for _, r := range p.at {
		if pa >= r.Start && pa < r.End() {
			off := start + uint64(pa-r.Start)
			u, err := p.unit(p.block.at(off / streamPage))
			u.pa = pa - mem.PA(off%streamPage)
			return u, err
		}
		start += r.Size
	}
	return unit{}, mem.ErrNoRAM
}

// unit is a page as the stream has it.
func (p *placedBlock) unit(at pageAt) (unit, error) {
	u := unit{size: streamPage, src: p.src, len: streamPage, codec: blank}
	for at&atDelta != 0 {
		d := &p.deltas[at&^atDelta]
		u.deltas = append(u.deltas, d)
		at = d.before
	}
	switch {
	case at&atPacked != 0:
		var n [4]byte
		u.off = uint64(at &^ atPacked)
		if err := readFull(p.src, n[:], u.off); err != nil {
			return u, fmt.Errorf("%w: %q, size of a page at offset %#x: %w", mem.ErrUnreachable, p.src.Name(), u.off, err)
		}
		u.off, u.len, u.codec = u.off+4, uint64(binary.BigEndian.Uint32(n[:])), byZlib
	case at != 0:
		u.off, u.codec = uint64(at), stored
	}
	return u, nil
}

func (p *placedBlock) ranges() []mem.Range { return p.at }

func (p *placedBlock) extents() ([]mem.Range, error) {
	var out []mem.Range
	groups := make([]uint64, 0, len(p.block.pages))
	for g := range p.block.pages {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	start := uint64(0)
	for _, r := range p.at {
		for _, g := range groups {
			for i, off := range p.block.pages[g] {
				at := (g*pageGroup + uint64(i)) * streamPage
				if off == 0 || at < start || at >= start+r.Size {
					continue
				}
				out = addExtent(out, mem.Range{Start: r.Start + mem.PA(at-start), Size: streamPage}, maxExtents)
			}
		}
		start += r.Size
	}
	return out, nil
}
