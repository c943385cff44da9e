package proc

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"vmscope/internal/procram"
	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// Option changes how Open works.
type Option func(*options)

type options struct {
	way      procram.Way
	writable bool
}

// Mmap maps the file that holds the RAM, or fails.
func Mmap() Option { return func(o *options) { o.way = procram.Map } }

// VMRead copies by process_vm_readv, also where the RAM could be mapped.
func VMRead() Option { return func(o *options) { o.way = procram.Copy } }

// Writable makes the machine a mem.PhysWriter. Writing changes the guest under
// its feet.
func Writable() Option { return func(o *options) { o.writable = true } }

// Open attaches to a VM: see Find for vmm and target. It neither stops nor changes
// the guest.
//
// The machine is a mem.Ranger, a mem.Extenter, a vm.Describer, a vm.Ender, and
// vm.Ambiguous. Where the VMM holds RAM in a file that it shares, it is mem.Mapped,
// else a mem.VecReader.
func Open(vmm, target string, opts ...Option) (vm.Machine, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	p, err := Find(vmm, target)
	if err != nil {
		return nil, err
	}
	if p.Encrypted != "" {
		return nil, fmt.Errorf("%s: %w against this host (%s): look into it from within, or start it without", p, vm.ErrEncrypted, p.Encrypted)
	}
	g := &guest{proc: p, opts: o}
	m, err := g.attach()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", p, err), g.close())
	}
	return m, nil
}

// guest is what the machine and its views have in common.
type guest struct {
	proc  Process
	opts  options
	alive *os.File // pidfd
	ways  []arrangement

	mu  sync.Mutex
	ram []connected // of the arrangements that were looked at
}

// connected are blocks that were connected to.
type connected struct {
	blocks []procram.Block
	ram    *procram.RAM
}

func (g *guest) attach() (vm.Machine, error) {
	pid := g.proc.PID
	var err error
	if g.alive, err = procram.Alive(pid); err != nil {
		return nil, fmt.Errorf("%w: it has just ended", vm.ErrNoVM)
	}
	// From here on the PID cannot become another process unseen; was it the right
	// one until now?
	if _, start, err := procram.Stat(pid); err != nil || start != g.proc.start {
		return nil, fmt.Errorf("%w: it has just ended", vm.ErrNoVM)
	}
	maps, err := procram.Mappings(pid)
	if err == nil && len(maps) == 0 {
		err = os.ErrPermission
	}
	if err != nil {
		return nil, procram.Denied(pid, err)
	}
	if g.ways = arrangements(g.proc, maps); len(g.ways) == 0 {
		return nil, fmt.Errorf("%w: it has none of %d MiB or more: is its guest not started?", errNoRAM, minRAM/mib)
	}
	return g.in(g.ways[0], true)
}

// connect gives the RAM of blocks.
func (g *guest) connect(blocks []procram.Block) (*procram.RAM, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.ram {
		if sameBlocks(c.blocks, blocks) {
			return c.ram, nil
		}
	}
	ram, err := procram.Connect(g.proc.PID, g.alive, blocks, g.opts.way, g.opts.writable)
	if err == nil {
		g.ram = append(g.ram, connected{blocks, ram})
	}
	return ram, err
}

// Ended is an error once the process that runs the guest is gone.
func (g *guest) Ended() error { return procram.Ended(g.alive, g.proc.PID) }

// Layouts lists where the RAM may lie, and which mappings it may be.
func (g *guest) Layouts() []vm.Layout {
	var out []vm.Layout
	for _, a := range g.ways {
		out = append(out, a.layout)
	}
	return out
}

// In looks at the guest in the given layout. One that is not among Layouts is laid
// over the likeliest mappings.
func (g *guest) In(l vm.Layout) (vm.Machine, error) {
	a := arrangement{g.ways[0].blocks, l}
	for _, w := range g.ways {
		if w.layout.Name == l.Name && slices.Equal(w.layout.Ranges, l.Ranges) {
			a = w
		}
	}
	return g.in(a, false)
}

func (g *guest) in(a arrangement, owner bool) (vm.Machine, error) {
	places, err := procram.Lay(a.blocks, a.layout.Ranges)
	if err != nil {
		return nil, err
	}
	ram, err := g.connect(a.blocks)
	if err != nil {
		return nil, err
	}
	v := view{g, a, ram.How, owner}
	if ram.Mapped() {
		m, err := ram.Memory(places)
		if err != nil {
			return nil, err
		}
		if g.opts.writable {
			return &mappedRW{mapped{v, m}}, nil
		}
		return &mapped{v, m}, nil
	}
	slices.SortFunc(places, func(a, b procram.Place) int { return cmp.Compare(a.PA, b.PA) })
	m := ram.Copier(places)
	if g.opts.writable {
		return &copiedRW{copied{v, m}}, nil
	}
	return &copied{v, m}, nil
}

func (g *guest) close() error {
	for _, c := range g.ram {
		c.ram.Close()
	}
	g.ram = nil
	if g.alive != nil {
		return g.alive.Close()
	}
	return nil
}

// view is a guest seen in one arrangement.
type view struct {
	*guest
	arrangement arrangement
	how         string
	owner       bool // the machine that Open returned, which owns the rest
}

// Info describes the guest as seen in this arrangement.
func (v *view) Info() vm.Info {
	known := "as documented"
	if len(v.ways) > 1 {
		known = fmt.Sprintf("one of %d, to be proved", len(v.ways))
	}
	return vm.Info{
		Name: v.proc.Name, PID: v.proc.PID, VMM: v.proc.VMM, RAM: v.arrangement.size(), Live: true, Route: v.how,
		Layout: fmt.Sprintf("%s (%s)", v.arrangement.layout.Name, known),
	}
}

// Close lets go of the guest.
func (v *view) Close() error {
	if !v.owner {
		return nil
	}
	return v.close()
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
)

// Close closes the view: the embedded memory has a Close of its own.
func (m *mapped) Close() error { return errors.Join(m.Memory.Close(), m.view.Close()) }

// WritePhys changes the guest's memory.
func (m *mappedRW) WritePhys(p []byte, pa mem.PA) (int, error) { return m.Write(p, pa) }

// WritePhys changes the guest's memory.
func (m *copiedRW) WritePhys(p []byte, pa mem.PA) (int, error) { return m.Copier.Write(p, pa) }
