// Package vmscope sees into a running virtual machine, or a dump of one, from
// outside: it needs a target and nothing else.
//
//	err := vmscope.Look(ctx, "qemu:web1", func(v *vmscope.View) error {
//		modules, err := v.Modules()
//		…
//	})
//
// Look is for one look; a monitor that looks again and again keeps the Guest that
// Open returns.
// A View is one consistent look: what it caches dies with it. Writing needs
// another door, Update, which is shut unless the guest was opened Writable.
package vmscope

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// Look opens the guest that target names, looks at it once, and closes it.
func Look(ctx context.Context, target string, f func(*View) error, opts ...Option) error {
	g, err := Open(ctx, target, opts...)
	if err != nil {
		return err
	}
	defer g.Close()
	return g.View(ctx, f)
}

// Guest is a machine that was opened and, once somebody looked, the kernel found
// in it. It is safe for concurrent use.
type Guest struct {
	target  string
	machine vm.Machine // as opened
	opt     options
	files   linux.Files

	mu     sync.Mutex
	phys   vm.Machine // machine in the layout that was proved; nil until then
	kernel *linux.Kernel
	beat   linux.Beat // of kernel, when last looked at
}

// Machine is the machine behind the guest, for what only it can tell.
func (g *Guest) Machine() vm.Machine { return g.machine }

// Close releases the machine. No View may be open.
func (g *Guest) Close() error { return g.machine.Close() }

// View is one look at a guest. It is valid until the function it was given to
// returns. Of what it embeds, Phys and Mem read memory; Symbol, Var and At find
// variables; Objects and ObjectsIn walk lists; Processes, Modules, Sockets and
// the like list what is known. docs/tutorial.md introduces them.
//
// Reads must come from the goroutine of that function, or run inside
// mem.Guard.
type View struct {
	*linux.View
	// Machine is where the memory comes from, in the layout that was proved.
	Machine vm.Machine
	// still says that the guest does not run meanwhile.
	still bool
	// asks says that the registers of the vCPUs may be asked for.
	asks bool
}

// Still reports whether the guest does not run meanwhile: it is a dump, or was
// paused. What one look finds a second finds as well.
func (v *View) Still() bool { return v.still }

// Registers are those of the vCPUs at the moment, in the machine's order. A dump
// gives those that it holds; a running guest is asked only if it was opened with
// Registers, for that disturbs it. Else, and from a source that does not tell them,
// it is an errors.ErrUnsupported.
func (v *View) Registers(ctx context.Context) ([]vm.Registers, error) {
	c, ok := v.Machine.(vm.CPUs)
	if !ok || !v.asks {
		return nil, fmt.Errorf("registers of the vCPUs: %w", errors.ErrUnsupported)
	}
	return c.CPUs(ctx)
}

// cachePages bounds the View's cache of a machine whose memory is not mapped:
// 16 MiB.
const cachePages = 4096

// View looks at the guest once and returns the error of f. Nothing that f reads
// is kept for the next View, but for where the kernel lies, which is checked
// anew: a guest that rebooted, also into another kernel, is no error once the
// kernel is up. The guest runs on unless it was opened with Paused.
//
// An ErrUnreachable says that the guest, or the way to it, is gone: open it
// anew. Any other error may pass, such as that of a guest that just boots.
func (g *Guest) View(ctx context.Context, f func(*View) error) (err error) {
	if e, ok := g.machine.(vm.Ender); ok {
		if err := e.Ended(); err != nil {
			return fmt.Errorf("%s: %w", g.target, err)
		}
	}
	if r, ok := g.machine.(vm.Releaser); ok {
		defer r.Release() // nothing is lost if it fails: Close does it again
	}
	if g.opt.paused {
		p, ok := g.machine.(vm.Pauser)
		if !ok {
			why := "a dump does not run"
			if infoOf(g.machine).Live {
				why = "its VMM has no monitor that vmscope could ask"
			}
			return fmt.Errorf("pause %s: %w: %s", g.target, errors.ErrUnsupported, why)
		}
		if err := p.Pause(ctx); err != nil {
			return err
		}
		defer func() {
			// Not ctx: the guest must run again even after Ctrl-C.
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, p.Resume(rctx))
		}()
	}
	return mem.Guard(func() error {
		v, err := g.look(ctx)
		if err != nil {
			return err
		}
		return f(v)
	})
}

// look finds the kernel, or checks that the one found earlier still runs, and
// opens a View of it.
func (g *Guest) look(ctx context.Context) (*View, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kernel != nil {
		v := g.kernel.View(fresh(g.phys))
		if beat, ok := v.StillRuns(g.beat); ok {
			g.beat = beat
			return g.see(v), nil
		}
		g.kernel, g.phys = nil, nil // rebooted, perhaps into another kernel
	}
	if err := g.find(ctx); err != nil {
		return nil, err
	}
	v := g.kernel.View(fresh(g.phys))
	if err := g.ended(ctx, v); err != nil {
		g.kernel, g.phys = nil, nil
		return nil, err
	}
	g.beat, _ = v.StillRuns(linux.Beat{})
	return g.see(v), nil
}

func (g *Guest) see(v *linux.View) *View {
	live := infoOf(g.machine).Live
	return &View{View: v, Machine: g.phys, still: g.opt.paused || !live, asks: g.opt.registers || !live}
}

// fresh gives a View its own cache where reading the machine is expensive.
func fresh(m vm.Machine) mem.PhysReader {
	if mem.RAMOf(m) != nil {
		return m
	}
	return mem.NewCache(m, cachePages)
}

// find looks for the kernel in each layout that the machine may have. The
// layout is right in which a kernel proves itself and uses as memory what the
// layout has as RAM.
func (g *Guest) find(ctx context.Context) error {
	layouts, err := g.layouts()
	if err != nil {
		return fmt.Errorf("%s: %w", g.target, err)
	}
	hints := linux.Hints{Files: g.files, Slow: infoOf(g.machine).Slow}
	var asked []linux.Step
	if i := infoOf(g.machine); g.opt.registers || !i.Live || i.Slow {
		if step := g.registers(ctx, &hints); g.opt.registers || i.Slow {
			asked = append(asked, step)
		}
	}
	var errs []error
	var second *Guest // a kernel proved itself, its layout of RAM not
	secondFit := contradicted
	var empty []int // sets of layouts in whose bytes no kernel lies
	for _, l := range layouts {
		if slices.Contains(empty, l.Set) {
			continue
		}
		m, err := g.in(l)
		if err == nil {
			var k *linux.Kernel
			if k, err = linux.Find(ctx, m, hints); err == nil {
				k.Report.Steps = slices.Concat(asked, k.Report.Steps)
				fit := checkLayout(k, m, len(layouts) > 1)
				if fit == proved {
					g.kernel, g.phys = k, m
					return nil
				}
				if second == nil || fit > secondFit {
					second, secondFit = &Guest{kernel: k, phys: m}, fit
				}
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Most layouts fail alike: one that says something new is named.
		if n := len(errs); n == 0 || errs[n-1].Error() != err.Error() {
			errs = append(errs, err)
		}
		if errors.Is(err, linux.ErrNoClaim) {
			empty = append(empty, l.Set) // each layout takes a search of all its RAM
		}
	}
	if second != nil {
		// No layout fits what the kernel says of its RAM, or it does not say:
		// the report tells.
		g.kernel, g.phys = second.kernel, second.phys
		return nil
	}
	if s := infoOf(g.machine).System; s != "" {
		return fmt.Errorf("%s: it is of %s, and vmscope reads Linux: %w", g.target, s, errors.Join(errs...))
	}
	return g.explain(ctx, layouts[0], errors.Join(errs...))
}

// registers reads those of the vCPUs. They only confirm: a kernel is found
// without, so the report tells of a failure.
func (g *Guest) registers(ctx context.Context, h *linux.Hints) linux.Step {
	err := fmt.Errorf("read the registers: %w by this source", errors.ErrUnsupported)
	start := time.Now()
	if c, ok := g.machine.(vm.CPUs); ok {
		h.CPUs, err = c.CPUs(ctx)
	}
	s := linux.Step{Name: "read registers", Took: time.Since(start), Note: fmt.Sprintf("%d vCPUs", len(h.CPUs))}
	if err != nil {
		s.Note = err.Error()
	}
	return s
}

// fit says how a layout agrees with what the kernel says of its RAM.
type fit int

const (
	contradicted fit = iota
	unknown          // the kernel does not say, or what says it cannot be read
	proved
)

// checkLayout compares the layout with the kernel's own list of its RAM and
// reports the outcome. In a wrong layout much of the kernel may still be found:
// that its list cannot be read is a sign of that, too. tried: it is one of several.
func checkLayout(k *linux.Kernel, m vm.Machine, tried bool) fit {
	r, ok := m.(mem.Ranger)
	if !ok {
		return unknown
	}
	err := mem.Guard(func() error { return k.View(fresh(m)).CheckLayout(r.Ranges(), tried) })
	switch {
	case errors.Is(err, mem.ErrInconsistent):
		k.Report.Contradictions = append(k.Report.Contradictions, "layout of RAM: "+err.Error())
		return contradicted
	case err != nil:
		return unknown
	}
	k.Report.Findings = append(k.Report.Findings, linux.Finding{
		What: "RAM layout", Value: infoOf(m).Layout, Source: "iomem_resource of the kernel", Confidence: "proved"})
	return proved
}

// layouts lists the layouts to try, the likeliest first. One layout without a
// name is the machine as it is.
func (g *Guest) layouts() ([]vm.Layout, error) {
	a, ok := g.machine.(vm.Ambiguous)
	if !ok {
		return []vm.Layout{{}}, nil
	}
	if g.opt.layout != "" && infoOf(g.machine).Live {
		return vm.Layouts(g.opt.layout, infoOf(g.machine).RAM)
	}
	if ls := a.Layouts(); len(ls) > 0 {
		return ls, nil
	}
	return []vm.Layout{{}}, nil
}

func (g *Guest) in(l vm.Layout) (vm.Machine, error) {
	if l.Name == "" {
		return g.machine, nil
	}
	return g.machine.(vm.Ambiguous).In(l)
}

func infoOf(m vm.Machine) vm.Info {
	if d, ok := m.(vm.Describer); ok {
		return d.Info()
	}
	return vm.Info{}
}
