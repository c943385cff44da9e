package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// guest is what the machines of all routes have in common.
type guest struct {
	proc    Process
	opts    options
	route   Route
	how     string // the route in words
	mon     *monitor
	blocks  []block
	files   []*os.File      // of vmread
	mapped  []*ramfile.File // of mmap, one a block
	alive   *os.File        // pidfd
	pages   *os.File        // pagemap, if blocks have files
	asked   *monMem         // of qmp
	exact   []place         // from the monitor; nil: layouts are candidates
	layouts []vm.Layout
	known   string // how the layout is known
}

// place says where a run of a block lies in guest-physical memory.
type place struct {
	pa    mem.PA
	block int
	off   uint64
	size  uint64
}

// attach finds the RAM of a process and the best route to it.
func attach(ctx context.Context, p Process, o options) (vm.Machine, error) {
	g := &guest{proc: p, opts: o, mon: newMonitor(p)}
	m, err := g.attach(ctx)
	if err != nil {
		g.close()
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return m, nil
}

func (g *guest) attach(ctx context.Context) (vm.Machine, error) {
	if g.opts.route == QMP {
		return g.attachQMP(ctx)
	}
	err := g.locate(ctx)
	if err == nil {
		err = g.connect()
	}
	if err == nil {
		return g.in(g.layouts[0], true)
	}
	if g.opts.route != "" || g.opts.noMonitor || g.mon == nil {
		return nil, err
	}
	m, qerr := g.attachQMP(ctx)
	if qerr != nil {
		return nil, fmt.Errorf("%w; the monitor did not help either: %w", err, qerr)
	}
	return m, nil
}

// locate finds the blocks of RAM in the process and where they lie in
// guest-physical memory.
func (g *guest) locate(ctx context.Context) error {
	pid := g.proc.PID
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == nil:
		g.alive = os.NewFile(uintptr(fd), "pidfd")
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w: it has just ended", ErrNoVM)
	}
	// From here on the PID cannot become another process unseen; was it the
	// right one until now?
	if now, _, ok := inspect(pid); !ok || now.start != g.proc.start {
		return fmt.Errorf("%w: it has just ended", ErrNoVM)
	}
	maps, err := readMaps(pid)
	if err == nil && len(maps) == 0 {
		err = os.ErrPermission
	}
	if err != nil {
		return denied(pid, err)
	}
	blocks, sure, err := findBlocks(pid, &g.proc.conf, maps)
	g.layouts, g.known = g.candidates(blocks)
	if (err != nil || !sure || len(g.layouts) != 1 || g.proc.conf.dimms) && !g.opts.noMonitor && g.mon != nil {
		if b, places, merr := g.ask(ctx, maps); merr == nil {
			g.blocks, g.exact = b, places
			l := vm.Layout{Name: "qemu"}
			for _, p := range places {
				l.Ranges = append(l.Ranges, mem.Range{Start: p.pa, Size: p.size})
			}
			g.layouts, g.known = []vm.Layout{l}, "told by QEMU's monitor"
			return nil
		} else if err != nil {
			return fmt.Errorf("%w; asking the monitor: %w", err, merr)
		}
	}
	g.blocks = blocks
	if err == nil && !sure {
		g.known += "; several mappings of this size, taken by the likeliest"
	}
	return err
}

// candidates lists the layouts that fit what the command line says.
func (g *guest) candidates(blocks []block) ([]vm.Layout, string) {
	var ram uint64
	for _, b := range blocks {
		ram += b.size
	}
	var out []vm.Layout
	for _, kind := range g.proc.conf.kinds() {
		l, err := vm.Layouts(kind, ram)
		if err != nil {
			continue
		}
		for _, x := range l {
			if !slices.ContainsFunc(out, func(y vm.Layout) bool { return slices.Equal(x.Ranges, y.Ranges) }) {
				out = append(out, x)
			}
		}
	}
	if len(out) == 1 {
		return out, "the only one for this machine"
	}
	return out, "likeliest of the command line's machine, to be proved"
}

// connect opens the best route to the blocks.
func (g *guest) connect() error {
	pid := g.proc.PID
	if g.opts.route != VMRead {
		err := g.mapFiles()
		if err == nil {
			g.route, g.how = Mmap, "mmap "+g.blocks[0].vma.path
			return nil
		}
		if g.opts.route == Mmap {
			return denied(pid, err)
		}
	}
	g.route, g.how = VMRead, "process_vm_readv"
	for _, b := range g.blocks {
		var f *os.File
		if !b.vma.anon() {
			// Untouched pages are read from the file, where we may.
			f, _ = b.open(pid, false)
		}
		g.files = append(g.files, f)
	}
	if slices.ContainsFunc(g.files, func(f *os.File) bool { return f != nil }) {
		g.pages, _ = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	}
	// Whether we may read at all shows at an address where nothing is: a page of
	// RAM might be allocated for the question.
	m := &procMem{pid: pid, alive: g.alive, segs: []seg{{size: mem.PageSize}}}
	if _, err := m.one(make([]byte, 1), 0); !errors.Is(err, unix.EFAULT) {
		return err
	}
	return nil
}

// mapFiles maps the files of all blocks. Private mappings do not count: what
// the guest writes is in the process, not in the file.
func (g *guest) mapFiles() error {
	for _, b := range g.blocks {
		if b.vma.anon() || !b.vma.shared() {
			return errors.New("guest RAM is private to QEMU: start it with a shared memory backend for the fastest route")
		}
	}
	for _, b := range g.blocks {
		f, err := b.open(g.proc.PID, g.opts.writable)
		if err != nil {
			return g.unmap(err)
		}
		m, err := ramfile.Map(f, g.opts.writable)
		if err != nil {
			return g.unmap(err)
		}
		g.mapped = append(g.mapped, m)
	}
	return nil
}

func (g *guest) unmap(err error) error {
	for _, m := range g.mapped {
		m.Close()
	}
	g.mapped = nil
	return err
}

// Info describes the guest.
func (g *guest) Info() vm.Info {
	i := vm.Info{Name: g.proc.Name, PID: g.proc.PID, VMM: "qemu-" + g.proc.Accel, Live: true, Route: g.how}
	for _, b := range g.blocks {
		i.RAM += b.size
	}
	return i
}

// Ended is an error once the process that runs the guest is gone.
func (g *guest) Ended() error { return ended(g.alive, g.proc.PID) }

// Layouts lists where the RAM may lie; a single one is known.
func (g *guest) Layouts() []vm.Layout { return slices.Clone(g.layouts) }

// places lays the blocks over the ranges of l.
func (g *guest) places(l vm.Layout) ([]place, error) {
	if g.exact != nil {
		return g.exact, nil
	}
	var out []place
	i, used := 0, uint64(0)
	for _, r := range l.Ranges {
		for r.Size > 0 {
			if i == len(g.blocks) {
				return nil, errors.New("the layout is larger than the guest's RAM")
			}
			n := min(r.Size, g.blocks[i].size-used)
			out = append(out, place{r.Start, i, used, n})
			r.Start, r.Size, used = r.Start+mem.PA(n), r.Size-n, used+n
			if used == g.blocks[i].size {
				i, used = i+1, 0
			}
		}
	}
	return out, nil
}

// In looks at the guest in the given layout.
func (g *guest) In(l vm.Layout) (vm.Machine, error) { return g.in(l, false) }

func (g *guest) in(l vm.Layout, owner bool) (vm.Machine, error) {
	places, err := g.places(l)
	if err != nil {
		return nil, err
	}
	v := view{guest: g, layout: fmt.Sprintf("%s (%s)", l.Name, g.known), owner: owner}
	switch g.route {
	case Mmap:
		var pl []ramfile.Place
		for _, p := range places {
			pl = append(pl, ramfile.Place{PA: p.pa, File: g.mapped[p.block], Off: g.blocks[p.block].off() + p.off, Size: p.size})
		}
		m, err := ramfile.New(pl)
		if err != nil {
			return nil, err
		}
		if g.opts.writable {
			return &mappedRW{mapped{v, m}}, nil
		}
		return &mapped{v, m}, nil
	case VMRead:
		m := &procMem{pid: g.proc.PID, alive: g.alive, pages: g.pages}
		for _, p := range places {
			b := g.blocks[p.block]
			s := seg{pa: p.pa, size: p.size, hva: b.hva + p.off, file: g.files[p.block], off: b.off() + p.off}
			if s.file != nil {
				s.seen = make([]atomic.Uint64, s.size/(64*mem.PageSize)+1)
			}
			m.segs = append(m.segs, s)
		}
		if g.opts.writable {
			return &copiedRW{copied{v, m}}, nil
		}
		return &copied{v, m}, nil
	}
	if g.asked == nil { // the owner's; there is one layout
		g.asked = &monMem{g: g}
		for _, p := range places {
			g.asked.ranges = append(g.asked.ranges, mem.Range{Start: p.pa, Size: p.size})
		}
		g.asked.ranges = withoutVGA(g.asked.ranges)
	}
	return &asked{v, g.asked}, nil
}

// view is a guest seen in one layout.
type view struct {
	*guest
	layout string
	owner  bool // the machine that Open returned, which owns the rest
}

// Info describes the guest as seen in this layout.
func (v *view) Info() vm.Info {
	i := v.guest.Info()
	i.Layout = v.layout
	return i
}

// Close lets go of the guest and makes it run again if we paused it.
func (v *view) Close() error {
	if !v.owner {
		return nil
	}
	return v.guest.close()
}

type (
	mapped struct {
		view
		*ramfile.Memory
	}
	mappedRW struct{ mapped }
	copied   struct {
		view
		*procMem
	}
	copiedRW struct{ copied }
	asked    struct {
		view
		*monMem
	}
)

// Close closes the view: the embedded memory has a Close of its own.
func (m *mapped) Close() error { return errors.Join(m.Memory.Close(), m.view.Close()) }

// WritePhys changes the guest's memory.
func (m *mappedRW) WritePhys(p []byte, pa mem.PA) (int, error) { return m.Memory.Write(p, pa) }

// WritePhys changes the guest's memory.
func (m *copiedRW) WritePhys(p []byte, pa mem.PA) (int, error) { return m.procMem.write(p, pa) }

func (g *guest) close() error {
	err := g.mon.close()
	g.unmap(nil)
	if g.asked != nil {
		g.asked.close()
	}
	for _, f := range g.files {
		if f != nil {
			f.Close()
		}
	}
	for _, f := range []*os.File{g.alive, g.pages} {
		if f != nil {
			f.Close()
		}
	}
	return err
}
