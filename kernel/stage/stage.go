// Package stage says how far a machine is in whose memory no running Linux kernel was found: in its firmware, in a boot
// loader, in a Linux that boots, or in something else that runs.
//
// It goes by what these leave in memory, which proves nothing: a guest can put any of it there. So it serves to tell a
// user what to do, and decides nothing.
package stage

import (
	"context"
	"fmt"

	"vmscope/mem"
)

// Kind is what a trace is one of. Of several that are in one memory the least says how far the machine is: a system's
// boot loader, and the firmware, stay in memory behind it.
type Kind int

const (
	Hypervisor Kind = iota // what runs guests of its own, in which a kernel may lie
	Linux                  // a kernel's image, unpacked
	System                 // another operating system
	Memtest                // a test of memory
	Image                  // a Linux kernel as a boot loader loads it, packed
	Chainable              // a boot loader that can be loaded as a kernel of the Multiboot specification
	Multiboot              // a kernel that follows the Multiboot specification
	Loader
	Firmware
	nothing
)

// Trace is something found in memory. The zero Trace stands for nothing that is known.
type Trace struct {
	Kind Kind
	Name string // with the version where it stands beside; of Linux and Image the release. Written by the guest
	At   mem.PA
}

// Advice says what the trace means, and of a machine that lives what to do, for people.
func (t Trace) Advice(live bool) string {
	later := func(what string) string {
		if !live {
			return ""
		}
		return what
	}
	switch {
	case t.Name == "" && live:
		return "it was not started, waits to be migrated here, boots, is encrypted, or is not Linux"
	case t.Name == "":
		return "it is encrypted, or not Linux"
	case t.Kind == Hypervisor:
		return fmt.Sprintf("%.64q runs in it, and has the memory of guests of its own: look at those from within (xen:NAME, in its dom0)", t.Name)
	case t.Kind == Linux:
		return fmt.Sprintf("Linux %.64q lies in it, but has not come up, has ended, or is of a kind that vmscope does not read%s", t.Name, later("; try again in some seconds"))
	case t.Kind == Image:
		return fmt.Sprintf("Linux %.64q has been loaded into it and has not begun to run%s", t.Name, later("; try again in some seconds"))
	case t.Kind == System:
		return fmt.Sprintf("it is of %.64q, and vmscope reads Linux", t.Name)
	case t.Kind == Memtest:
		return fmt.Sprintf("%.64q tests it, and vmscope reads Linux", t.Name)
	case t.Kind == Multiboot:
		return fmt.Sprintf("a %s lies in it (header at %#x), and vmscope reads Linux", t.Name, uint64(t.At))
	case t.Kind == Loader, t.Kind == Chainable:
		return fmt.Sprintf("it is in the boot loader %s, which has started no system%s", t.Name, later("; try again when one runs"))
	}
	return fmt.Sprintf("it is in its firmware, %s, which has started no system%s", t.Name, later(": if that stays so, see whether it has a disk to boot from"))
}

const (
	chunk   = 1 << 20 // bytes that are read at once
	overlap = 4 << 10 // at the end of a chunk, of the next: more than any signature with what is checked around it
	// limit ends the search: all that is searched for lies in the first 4 GiB, where firmware can reach it without page
	// tables of its own.
	limit = 4 << 30
)

// Find looks for traces and returns the one that says most, or the zero Trace. What cannot be read is passed over; when
// ctx ends it returns the best of what was read until then.
func Find(ctx context.Context, r mem.PhysReader) Trace {
	best := Trace{Kind: nothing}
	extents, err := mem.Extents(r)
	if err != nil {
		return Trace{}
	}
	buf := make([]byte, chunk+overlap)
	for _, x := range extents {
		end := min(x.End(), limit)
		for pa := x.Start; pa < end && ctx.Err() == nil; pa += chunk {
			n, _ := r.ReadPhys(buf[:min(uint64(end-pa), uint64(len(buf)))], pa)
			for _, t := range traces(buf[:n], pa) {
				if t.Kind < best.Kind {
					best = t
				}
			}
		}
	}
	if best.Kind == nothing {
		return Trace{}
	}
	return best
}
