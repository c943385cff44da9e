package vmscope

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/dump"
)

// Recording keeps the pages of a guest that were looked at, so that the same
// can be seen again elsewhere, in a bundle. It is for one goroutine, and for the
// time of the View that it was made of.
type Recording struct {
	of      *View
	machine *recorded
	view    *View // of the recorded pages; nil until they were looked at
}

// recorded is a machine that is read through a recorder. It is searched for a
// kernel only where the kernel that is known was found.
type recorded struct {
	*mem.Recorder
	of     vm.Machine
	traces []mem.Range
	cpus   []vm.Registers // that were told last
}

func (m *recorded) Extents() ([]mem.Range, error) { return m.traces, nil }
func (m *recorded) Info() vm.Info                 { return infoOf(m.of) }
func (m *recorded) Close() error                  { return nil }

// CPUs gives the registers of the guest, which Write keeps.
func (m *recorded) CPUs(ctx context.Context) ([]vm.Registers, error) {
	c, ok := m.of.(vm.CPUs)
	if !ok {
		return nil, fmt.Errorf("registers of the vCPUs: %w", errors.ErrUnsupported)
	}
	cpus, err := c.CPUs(ctx)
	m.cpus = cpus
	return cpus, err
}

// NewRecording starts a recording of the guest.
func (v *View) NewRecording() (*Recording, error) {
	if _, ok := v.Machine.(mem.Ranger); !ok {
		return nil, fmt.Errorf("record: the RAM of this source is not known: %w", errors.ErrUnsupported)
	}
	traces, err := v.Traces()
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return &Recording{of: v, machine: &recorded{Recorder: mem.NewRecorder(v.Machine), of: v.Machine, traces: traces}}, nil
}

// Look finds the kernel and calls f, as Guest.View does, and keeps all pages
// that are read. In one look a page is what it was when it was first read,
// though the guest goes on: so the recording shows what f was shown. A second
// look begins with all pages read anew, at once, and is therefore more of one
// moment than the first.
func (r *Recording) Look(ctx context.Context, f func(*View) error) error {
	return mem.Guard(func() error {
		if r.view != nil {
			if err := r.machine.Refresh(); err != nil {
				return err
			}
			r.view = r.see(r.view.Kernel)
			return f(r.view)
		}
		k, err := linux.Find(ctx, r.machine, linux.Hints{})
		if err != nil {
			return err
		}
		checkLayout(k, r.machine, false)
		r.view = r.see(k)
		// What Guest.View and those who describe a guest ask for; that a kernel
		// lacks it is no failure.
		r.view.StillRuns(linux.Beat{})
		_, _ = r.view.WallClock()
		_, _ = r.view.BootTime()
		_, _ = r.view.Hostname()
		return f(r.view)
	})
}

// see looks at what does not change: pages are what they were when first read.
func (r *Recording) see(k *linux.Kernel) *View {
	return &View{View: k.View(fresh(r.machine)), Machine: r.machine, still: true, asks: r.of.asks}
}

// Write writes the recording as a bundle, which Open opens, with extra beside
// the memory. What about says of RAM is filled in. progress may be nil.
//
// Registers are in it as they are in a core (WriteCore), and else those that View
// was asked for, as they were then.
func (r *Recording) Write(ctx context.Context, out io.Writer, about dump.About, extra []byte, progress func(done, total uint64)) error {
	if r.view == nil {
		return errors.New("write a recording: nothing was looked at")
	}
	kept, err := r.machine.Kept()
	if err != nil {
		return fmt.Errorf("write a recording: %w", err)
	}
	about.RAM = r.machine.Ranges()
	base, err := r.view.DirectMap()
	if err != nil {
		base = 0 // only other programs need it
	}
	var segs []dump.Segment
	for _, x := range kept {
		segs = append(segs, dump.Segment{VA: base + mem.VA(x.Start), PA: x.Start, Size: x.Size, Flags: 7,
			Read: func(p []byte, off uint64) error {
				_, err := r.machine.ReadPhys(p, x.Start+mem.PA(off))
				return err
			},
		})
	}
	notes := r.of.cpuNotes(ctx)
	if notes == nil {
		notes = dump.CPUNotes(r.machine.cpus)
	}
	if text := r.view.CoreInfo(); text != "" {
		notes = append(notes, dump.CoreInfoNote(text))
	}
	return dump.WriteBundle(ctx, out, about, extra, notes, segs, progress)
}
