package dump

import (
	"context"
	"fmt"
	"slices"

	"vmscope/internal/ramfile"
	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
)

// xenPV is the core of a PV domain: memory by pseudo-physical address, as its
// kernel numbers it. In its page tables are frames of the machine: pages that are
// tables are shown with the domain's own numbers. vm/xen asks Xen which are;
// here they have to be found (xenTables).
type xenPV struct {
	raw     *machine // not embedded: who sees its mapping reads past us
	numbers []piece  // of frames of the machine, sorted and disjoint; off: the domain's address
	tables  *xenTables
	regs    []vm.Registers
	info    vm.Info
}

// roots are the top tables of all vCPUs, in frames of the machine.
func (x *xenCore) roots(file *ramfile.File) []uint64 {
	var out []uint64
	x.contexts(file, func(b []byte) {
		if r, err := xenguest.Registers(b, true); err == nil {
			out = append(out, r.CR3/mem.PageSize)
		}
		if u := xenguest.UserTable(b); u != 0 {
			out = append(out, u/mem.PageSize)
		}
	})
	return out
}

func newXenPV(m *machine, numbers []piece, roots []uint64) *xenPV {
	c := &xenPV{raw: m, numbers: numbers, info: m.info}
	c.tables = findTables(m, c.page, roots)
	c.info.Layout = "the p2m in the core of a Xen domain (PV)"
	var one uint64
	for _, p := range numbers {
		one += p.size
	}
	if one < c.info.RAM {
		c.info.Layout += fmt.Sprintf("; %d pages have a frame that another has, too", (c.info.RAM-one)/mem.PageSize)
	}
	for _, r := range m.regs {
		r.CR3 = c.number(r.CR3/mem.PageSize) * mem.PageSize
		c.regs = append(c.regs, r)
	}
	return c
}

// page tells which page of the domain a frame of the machine is.
func (c *xenPV) page(frame uint64) (uint64, bool) {
	at := frame * mem.PageSize
	i, _ := slices.BinarySearchFunc(c.numbers, at, func(p piece, at uint64) int {
		if p.end() <= at {
			return -1
		}
		return 1
	})
	if i == len(c.numbers) || c.numbers[i].pa > at {
		return 0, false
	}
	return (c.numbers[i].off + at - c.numbers[i].pa) / mem.PageSize, true
}

// number is the page that a frame of the machine is: the domain's number or, if it
// is none of its own, the machine's.
func (c *xenPV) number(frame uint64) uint64 {
	if page, ok := c.page(frame); ok {
		return page
	}
	return xenguest.MachinePage(frame)
}

// bulk is a read of more than a reader has need of who walks page tables.
const bulk = 4 * mem.PageSize

// ReadPhys reads by pseudo-physical address.
func (c *xenPV) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	if len(p) > bulk {
		c.tables.all()
	}
	for n < len(p) {
		at := pa + mem.PA(n)
		off := int(at % mem.PageSize)
		k := min(len(p)-n, mem.PageSize-off)
		if got, err := c.readPage(p[n:n+k], at); err != nil {
			return n + got, err
		}
		n += k
	}
	return n, nil
}

// readPage reads of one page.
func (c *xenPV) readPage(p []byte, pa mem.PA) (n int, err error) {
	page, off := uint64(pa)/mem.PageSize, int(pa%mem.PageSize)
	if xenguest.IsMachinePage(page) {
		return 0, &mem.FaultError{Op: "read", Addr: uint64(pa), Err: xenguest.ErrForeign}
	}
	level := c.tables.level(page)
	if level == 0 {
		return c.raw.ReadPhys(p, pa)
	}
	var b [mem.PageSize]byte
	words := b[off&^7 : (off+len(p)+7)&^7]
	if _, err := c.raw.ReadPhys(words, pa&^7); err != nil { // a page cannot be read in part
		return 0, &mem.FaultError{Op: "read", Addr: uint64(pa), Err: fmt.Errorf("%w: %w", mem.ErrUnreachable, err)}
	}
	// It fails only if number does.
	_ = xenguest.Turn(words, off&^7, level, func(frame uint64) (uint64, error) { return c.number(frame), nil })
	return copy(p, b[off:]), nil
}

// Ranges lists the memory.
func (c *xenPV) Ranges() []mem.Range { return c.raw.Ranges() }

// Extents lists what may hold anything but zeros.
func (c *xenPV) Extents() ([]mem.Range, error) { return c.raw.Extents() }

// Info describes the dump.
func (c *xenPV) Info() vm.Info { return c.info }

// CPUs gives the registers of the vCPUs. CR3 is in the domain's own numbers.
func (c *xenPV) CPUs(context.Context) ([]vm.Registers, error) { return registersOf(c.info, c.regs) }

// Close unmaps the dump. No reader may be at work.
func (c *xenPV) Close() error { return c.raw.Close() }
