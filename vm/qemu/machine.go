package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"vmscope/internal/procram"
	"vmscope/internal/qmp"
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
	ram     *procram.RAM    // of mmap and vmread
	alive   *os.File        // pidfd
	asked   *monMem         // of qmp
	exact   []procram.Place // from the monitor; nil: layouts are candidates
	layouts []vm.Layout
	known   string // how the layout is known
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
	var err error
	if g.alive, err = procram.Alive(pid); err != nil {
		return fmt.Errorf("%w: it has just ended", ErrNoVM)
	}
	// From here on the PID cannot become another process unseen; was it the
	// right one until now?
	if now, _, ok := inspect(pid); !ok || now.start != g.proc.start {
		return fmt.Errorf("%w: it has just ended", ErrNoVM)
	}
	maps, err := procram.Mappings(pid)
	if err == nil && len(maps) == 0 {
		err = os.ErrPermission
	}
	if err != nil {
		return procram.Denied(pid, err)
	}
	blocks, sure, err := findBlocks(pid, &g.proc.conf, maps)
	g.layouts, g.known = g.candidates(blocks)
	ask := err != nil || !sure || g.proc.conf.dimms || len(g.layouts) != 1 && g.proc.traceless()
	if ask && !g.opts.noMonitor && g.mon != nil {
		if b, places, merr := g.ask(ctx, maps); merr == nil {
			g.blocks, g.exact = b, places
			l := vm.Layout{Name: "qemu"}
			for _, p := range places {
				l.Ranges = append(l.Ranges, mem.Range{Start: p.PA, Size: p.Size})
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
		ram += b.Size
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
	way := map[Route]procram.Way{"": procram.Best, Mmap: procram.Map, VMRead: procram.Copy}[g.opts.route]
	ram, err := procram.Connect(g.proc.PID, g.alive, g.runs(), way, g.opts.writable)
	if err != nil {
		return err
	}
	g.ram, g.how, g.route = ram, ram.How, VMRead
	if ram.Mapped() {
		g.route = Mmap
	}
	return nil
}

// runs are the blocks as the process has them.
func (g *guest) runs() []procram.Block {
	out := make([]procram.Block, len(g.blocks))
	for i, b := range g.blocks {
		out[i] = b.Block
	}
	return out
}

// Info describes the guest.
func (g *guest) Info() vm.Info {
	i := vm.Info{Name: g.proc.Name, PID: g.proc.PID, VMM: "qemu-" + g.proc.Accel, Live: true, Route: g.how}
	for _, b := range g.blocks {
		i.RAM += b.Size
	}
	return i
}

// Ended is an error once the process that runs the guest is gone.
func (g *guest) Ended() error { return procram.Ended(g.alive, g.proc.PID) }

// Layouts lists where the RAM may lie; a single one is known.
func (g *guest) Layouts() []vm.Layout { return slices.Clone(g.layouts) }

// places lays the blocks over the ranges of l.
func (g *guest) places(l vm.Layout) ([]procram.Place, error) {
	if g.exact != nil {
		return g.exact, nil
	}
	return procram.Lay(g.runs(), l.Ranges)
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
		m, err := g.ram.Memory(places)
		if err != nil {
			return nil, err
		}
		if g.opts.writable {
			return &mappedRW{mapped{v, m}}, nil
		}
		return &mapped{v, m}, nil
	case VMRead:
		m := g.ram.Copier(places)
		if g.opts.writable {
			return &copiedRW{copied{v, m}}, nil
		}
		return &copied{v, m}, nil
	}
	if g.asked == nil { // the owner's; there is one layout
		g.asked = &monMem{g: g}
		for _, p := range places {
			g.asked.ranges = append(g.asked.ranges, mem.Range{Start: p.PA, Size: p.Size})
		}
		g.asked.ranges = qmp.WithoutVGA(g.asked.ranges)
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
		*procram.Copier
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
func (m *copiedRW) WritePhys(p []byte, pa mem.PA) (int, error) { return m.Copier.Write(p, pa) }

func (g *guest) close() error {
	err := g.mon.close()
	if g.ram != nil {
		g.ram.Close()
	}
	if g.asked != nil {
		g.asked.close()
	}
	if g.alive != nil {
		g.alive.Close()
	}
	return err
}
