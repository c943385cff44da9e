package detect

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"vmscope"
	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Reference is what memory of a guest that does not change by itself held when
// it was first seen: the text and the read-only data of the kernel and of each
// module, some 30 MiB. It fills as looks go on, and begins anew when the guest
// runs another kernel or was booted again; a module that is loaded anew is seen
// for the first time.
//
// What was tampered with before is in the reference as it was. A Reference is
// for one guest and one goroutine.
type Reference struct {
	// Vendor, if it is not nil, is what to compare with as well; it sees what was
	// tampered with before.
	Vendor *Vendor

	boot   boot
	kernel *linux.Kernel // of the last look; nil if it was another process's
	runs   map[runKey]*run
	grown  bool
	looks  int // how often something was gone
	// again says that the last look found another boot where it expected the
	// same: all addresses are the same, and the guest's clock began anew.
	again bool
}

// NewReference returns one that has seen nothing.
func NewReference() *Reference { return new(Reference) }

// Grown reports whether there is anything that was not there when it was loaded
// or last saved.
func (r *Reference) Grown() bool { return r.grown }

// boot names one boot of one kernel. The clock counts from then on.
type boot struct {
	Banner string        `json:"banner"`
	Text   mem.VA        `json:"text"`
	Phys   mem.PA        `json:"phys"`
	Root   mem.PA        `json:"root"`
	Up     time.Duration `json:"up_ns"` // the guest's time since boot, when last looked at
	At     time.Time     `json:"at"`    // of the host, then
}

// runKey names a run of memory for as long as it stays what it is.
type runKey struct {
	Part  string      `json:"part"` // "text", "rodata"
	Kind  string      `json:"kind"` // as of kernel.Code
	Name  kernel.Text `json:"-"`
	Start mem.VA      `json:"start"`
	Size  uint64      `json:"size"`
	// Load tells two loads of a module to the same place apart: the number of
	// its directory in sysfs, which is never used again.
	Load uint64 `json:"load,omitempty"`
}

// run is a run of memory as it was, and where it differs now.
type run struct {
	runKey
	was []byte
	now map[int][]byte // pages that differ, by their number
	// first says that it was seen for the first time in this look. Before is what
	// was there when a module of the same name had been loaded to the same place.
	first  bool
	before []byte
	missed int // the look that missed it first; 0: it is there
	// odd are the pages in which something was found already then.
	odd map[int]bool
	// vetted says that all of it was compared with the vendor's file.
	vetted bool
}

// fresh reports whether the n bytes at an offset, a page at most, deserve a
// look: what is in pages that are as they were, and were in order, is still in
// order.
func (m *run) fresh(off, n int) bool {
	if m.first {
		return true
	}
	if len(m.now)+len(m.odd) == 0 {
		return false
	}
	a, b := off/mem.PageSize, (off+n-1)/mem.PageSize
	return m.now[a] != nil || m.now[b] != nil || m.odd[a] || m.odd[b]
}

// found notes that something is not in order at an offset.
func (m *run) found(off int) {
	if m.odd == nil {
		m.odd = make(map[int]bool)
	}
	m.odd[off/mem.PageSize] = true
}

// where names an offset for good. Symbols of modules are the guest's to choose.
func (m *run) where(off int) string { return fmt.Sprintf("%s+%#x", string(m.Name), off) }

// asItWas reports whether nothing of the run deserves a look.
func (m *run) asItWas() bool { return !m.first && len(m.now)+len(m.odd) == 0 }

// How far the clocks of guest and host may disagree between two looks: the
// guest's is read to a second, and a kernel corrects its clock by a thousandth at
// most (MAXFREQ, include/linux/timex.h, is half of that).
const (
	slack = 5 * time.Second
	drift = 1000
)

// bootOf is the boot that is looked at, without its time.
func bootOf(v *vmscope.View) boot {
	return boot{Banner: v.Banner, Text: v.Text, Phys: v.Kernel.Phys, Root: v.Root}
}

// begin makes the reference one of the kernel that is looked at.
func (r *Reference) begin(v *vmscope.View) error {
	if r.kernel == v.Kernel && r.runs != nil {
		r.again = false
		return nil // a Guest keeps a Kernel only while it runs on
	}
	now := bootOf(v)
	now.At = time.Now()
	wall, err := v.WallClock()
	if err == nil {
		var since time.Time
		if since, err = v.BootTime(); err == nil {
			now.Up = wall.Sub(since)
		}
	}
	r.again = false
	if goes := now.continues(r.boot); !goes || r.runs == nil {
		r.again = !goes && len(r.runs) > 0 && now.name() == r.boot.name()
		r.runs = make(map[runKey]*run)
		if err := r.restore(v); err != nil {
			r.runs = nil
			return err
		}
	}
	r.boot, r.kernel = now, v.Kernel
	return nil
}

// continues reports whether b can be a later moment of the same boot as old: its
// clock went on, and not faster than the host's. A guest that was stopped
// meanwhile is behind.
func (b boot) continues(old boot) bool {
	if b.Banner != old.Banner || b.Text != old.Text || b.Phys != old.Phys || b.Root != old.Root {
		return false
	}
	went := b.Up - old.Up
	passed := b.At.Sub(old.At)
	return went > -slack && went < passed+passed/drift+slack
}

// compare reads the runs of memory anew and tells where they differ from what
// they were. Those seen for the first time do not. What cannot be read is an
// error, beside the others.
func (r *Reference) compare(ctx context.Context, l *Look, part string, keys []runKey) ([]*run, error) {
	s := uncached(l)
	places := make(map[runKey]*run) // by what names them, but for the load
	for k, m := range r.runs {
		k.Load = 0
		places[k] = m
	}
	var out []*run
	var errs []error
	total := uint64(0)
	there := make(map[runKey]bool, len(keys))
	// The kernel comes first: what modules say of their size takes nothing from it.
	keys = slices.SortedStableFunc(slices.Values(keys), func(a, b runKey) int { return cmp.Compare(a.Kind, b.Kind) })
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if there[k] {
			continue
		}
		there[k] = true
		m := r.runs[k]
		var err error
		switch {
		case k.Size > maxReference-total:
			err = &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(k.Start), Err: fmt.Errorf("%w: more than %d MiB of %s", mem.ErrInconsistent, maxReference>>20, part)}
		case m == nil:
			m = &run{runKey: k, first: true}
			old := k
			if old.Load = 0; places[old] != nil {
				m.before = places[old].was
			}
			err = m.read(s)
		default:
			err = m.differ(s)
		}
		if err != nil {
			if len(errs) < maxErrors {
				errs = append(errs, err)
			}
			continue
		}
		total += k.Size
		out = append(out, m)
	}
	r.forget(part, there)
	slices.SortFunc(out, func(a, b *run) int { return cmp.Compare(a.Start, b.Start) })
	return out, errors.Join(errs...)
}

// Bounds of what is kept of modules that are gone: one that comes back with the
// number that it had was never unloaded.
const (
	maxGone      = 64
	maxGoneBytes = 32 << 20
)

// forget drops the runs of a part that are gone.
func (r *Reference) forget(part string, there map[runKey]bool) {
	r.looks++
	var gone []*run
	for k, m := range r.runs {
		switch {
		case k.Part != part:
		case there[k]:
			m.missed = 0
		case k.Kind == "module": // the kernel itself stays
			if m.missed == 0 {
				m.missed = r.looks
			}
			gone = append(gone, m)
		}
	}
	slices.SortFunc(gone, func(a, b *run) int { return cmp.Compare(b.missed, a.missed) })
	bytes := 0
	for i, m := range gone {
		if bytes += len(m.was); i >= maxGone || bytes > maxGoneBytes {
			delete(r.runs, m.runKey)
		}
	}
}

// keep takes up runs that were seen for the first time.
func (r *Reference) keep(runs []*run) {
	for _, m := range runs {
		r.grown = r.grown || m.first
		m.first, m.before = false, nil
		r.runs[m.runKey] = m
	}
}

// uncached is the kernel's memory past the look's cache, which is smaller than
// a kernel's text.
func uncached(l *Look) *mem.Space {
	if c, ok := l.Phys.(*mem.Cache); ok {
		return mem.NewSpace(l.Mem.Name, c.Source(), l.Mem.Tr)
	}
	return l.Mem
}

// maxReference bounds the bytes of one part that are kept, and of a saved
// reference. What the guest says of its sizes is allocated as it is read.
const maxReference = 256 << 20

func (m *run) read(s *mem.Space) error {
	const piece = 1 << 20
	m.was = make([]byte, 0, min(m.Size, 32*piece))
	for left := m.Size; left > 0; {
		n := min(left, piece)
		at := len(m.was)
		m.was = append(m.was, make([]byte, n)...)
		if _, err := s.Read(m.was[at:], m.Start+mem.VA(at)); err != nil {
			return m.gone(err)
		}
		left -= n
	}
	m.was = slices.Clip(m.was)
	return nil
}

// gone says of memory of a module that is not there that the module went while
// it was looked at.
func (m *run) gone(err error) error {
	if m.Kind == "module" && errors.Is(err, mem.ErrNotMapped) {
		return fmt.Errorf("%w: memory of module %s: %w", mem.ErrInconsistent, m.Name, err)
	}
	return err
}

// differ finds the pages that differ from what they were.
func (m *run) differ(s *mem.Space) error {
	m.now = nil
	var page [mem.PageSize]byte
	for off := 0; off < len(m.was); off += mem.PageSize {
		was := m.was[off:min(off+mem.PageSize, len(m.was))]
		b := page[:len(was)]
		if _, err := s.Read(b, m.Start+mem.VA(off)); err != nil {
			return m.gone(err)
		}
		if !bytes.Equal(b, was) {
			if m.now == nil {
				m.now = make(map[int][]byte)
			}
			m.now[off/mem.PageSize] = bytes.Clone(b)
		}
	}
	return nil
}

// at copies what is at an offset now into b, and returns how much there is.
func (m *run) at(b []byte, off int) int {
	n := 0
	for n < len(b) && off < len(m.was) {
		page, in := off/mem.PageSize, off%mem.PageSize
		src, ok := m.now[page]
		if !ok {
			src = m.was[page*mem.PageSize : min((page+1)*mem.PageSize, len(m.was))]
		}
		k := copy(b[n:], src[in:])
		n, off = n+k, off+k
	}
	return n
}

// differences calls each with every run of bytes that differ, by offset.
func (m *run) differences(each func(from, to int)) {
	pages := make([]int, 0, len(m.now))
	for p := range m.now {
		pages = append(pages, p)
	}
	slices.Sort(pages)
	from, to := -1, -1
	for _, p := range pages {
		base := p * mem.PageSize
		for i, c := range m.now[p] {
			switch {
			case c == m.was[base+i]:
			case base+i == to:
				to++
			default:
				if from >= 0 {
					each(from, to)
				}
				from, to = base+i, base+i+1
			}
		}
	}
	if from >= 0 {
		each(from, to)
	}
}

type loadLayout struct {
	Dir ctype.Field `c:"module.mkobj.kobj.sd,optional"` // include/linux/kobject.h
	ID  ctype.Field `c:"kernfs_node.id,optional"`       // include/linux/kernfs.h
}

// loads are the modules that have a form, by name, with their numbers; beside an
// error the numbers of some are missing.
func loads(l *Look) (map[kernel.Text]kernel.Module, map[kernel.Text]uint64, error) {
	f, err := bind[loadLayout](l)
	if err != nil {
		return nil, nil, err
	}
	modules, err := l.Modules()
	if err != nil {
		return nil, nil, err
	}
	formed, ids := make(map[kernel.Text]kernel.Module), make(map[kernel.Text]uint64)
	var bad error
	for _, m := range modules {
		if m.State == "Unformed" {
			continue
		}
		formed[m.Name] = m
		if !f.Dir.Valid() || f.ID.Size() != 8 {
			continue
		}
		dir, err := l.Mem.Pointer(f.Dir.At(m.Addr))
		if err == nil && dir != 0 {
			ids[m.Name], err = l.Mem.Uint64(f.ID.At(dir))
		}
		bad = cmp.Or(bad, err)
	}
	return formed, ids, bad
}

// started are the modules that have started.
func started(modules map[kernel.Text]kernel.Module) map[kernel.Text]kernel.Module {
	out := maps.Clone(modules)
	maps.DeleteFunc(out, func(_ kernel.Text, m kernel.Module) bool { return m.State != "Live" })
	return out
}

// keysOf names the runs of memory in list that belong to the kernel's image and
// to modules that have started. Those that are known have, also if they say that
// they are just being loaded. Of those that are unloaded the kernel takes its
// tables of places away before their text.
func (r *Reference) keysOf(list []kernel.Code, part string, modules map[kernel.Text]kernel.Module, ids map[kernel.Text]uint64) []runKey {
	var out []runKey
	for _, c := range list {
		k := runKey{Part: part, Kind: c.Kind, Name: c.Name, Start: c.Start, Size: c.Size, Load: ids[c.Name]}
		if m, ok := modules[c.Name]; c.Kind == "kernel" || c.Kind == "module" && ok && (m.State == "Live" || m.State == "Loading" && r.runs[k] != nil) {
			out = append(out, k)
		}
	}
	return out
}
