package linux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmscope/arch"
	"vmscope/ksym"
	"vmscope/mem"
	"vmscope/vm"
)

// Hints are what the caller knows besides the memory. None is needed, and none
// is believed: registers only decide between kernels that all proved themselves,
// files must fit the one that did.
type Hints struct {
	CPUs []vm.Registers // of the vCPUs, where the source has them
	Files
	// Slow says that reading all memory takes minutes: a kernel is searched first where the vCPUs' page tables map one.
	Slow bool
}

// ErrNoKernel says that no running Linux kernel was found in a memory.
var ErrNoKernel = errors.New("no running Linux kernel found in this memory")

// ErrNoClaim is an ErrNoKernel that says that nothing in the memory claims to be one. That is so in whatever layout of RAM
// it is looked at.
var ErrNoClaim = fmt.Errorf("%w: neither a VMCOREINFO text nor a kallsyms table lies", ErrNoKernel)

// imageMax is more than any image has, bytes; it bounds searches near one.
const imageMax = 128 << 20

// Find looks for a running kernel in phys.
//
// It gathers every candidate: each VMCOREINFO text in RAM, and if none of them
// holds, each kallsyms table. A candidate counts only if it proves itself: a
// page-table root that leads from its symbols' virtual addresses to where its
// image lies, a symbol table that agrees, and the structures of a running
// kernel behind them. If more than one does (a kernel of an earlier boot that
// nothing has overwritten, a fake), what only a running kernel has decides:
// vCPU registers, a clock that goes on, the latest time of day.
func Find(ctx context.Context, phys mem.PhysReader, h Hints) (*Kernel, error) {
	var k *Kernel
	err := mem.Guard(func() (err error) {
		k, err = (&finder{ctx: ctx, phys: phys, hints: h, start: time.Now()}).find()
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

type finder struct {
	ctx    context.Context
	phys   mem.PhysReader
	hints  Hints
	start  time.Time
	report Report
	errs   []error // why candidates were rejected
}

// step records what was done since the last step.
func (f *finder) step(name, format string, args ...any) {
	now := time.Now()
	f.report.Steps = append(f.report.Steps, Step{name, now.Sub(f.start), fmt.Sprintf(format, args...)})
	f.start = now
}

func (f *finder) reject(err error) {
	f.errs = append(f.errs, err)
	f.report.Rejected = append(f.report.Rejected, err.Error())
}

func (f *finder) find() (*Kernel, error) {
	extents, err := mem.Extents(f.phys)
	if err != nil {
		return nil, err
	}
	var size uint64
	for _, e := range extents {
		size += e.Size
	}
	f.step("list data extents", "%d extents, %d MiB", len(extents), size>>20)

	var found []*Kernel
	if f.hints.Slow {
		if found, err = f.mapped(extents); err != nil {
			return nil, err
		}
	}
	var infos []*ksym.CoreInfo
	if len(found) == 0 {
		infos, err = ksym.FindVMCoreInfo(f.ctx, f.phys, extents)
		if err = f.planted(err); err != nil {
			return nil, fmt.Errorf("search VMCOREINFO: %w", err)
		}
		f.step("search VMCOREINFO", "%d candidates", len(infos))
	}
	for _, info := range infos {
		if err := f.ctx.Err(); err != nil {
			return nil, err
		}
		claims, err := f.fromCoreInfo(info)
		if err != nil {
			f.reject(err)
		}
		for _, c := range claims {
			if k, err := f.prove(c); err == nil {
				found = append(found, k)
			} else {
				f.reject(err)
			}
		}
	}
	if len(found) == 0 {
		if found, err = f.search(extents); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, f.none(size)
	}
	k, err := f.choose(found)
	if err != nil {
		return nil, err
	}
	if err := f.readTypes(k); err != nil {
		return nil, err
	}
	k.Report.Steps, k.Report.Rejected = f.report.Steps, f.report.Rejected
	k.Report.Findings = append(k.Report.Findings, f.report.Findings...)
	return k, nil
}

// planted keeps a search going that gave up because there are too many
// look-alikes: somebody in the guest plants them to be found first. What was
// gathered before is tried, then the other way to find a kernel.
func (f *finder) planted(err error) error {
	if errors.Is(err, mem.ErrInconsistent) {
		f.reject(err)
		return nil
	}
	return err
}

// none says why nothing was found, in one line.
func (f *finder) none(size uint64) error {
	switch {
	case size == 0:
		return fmt.Errorf("%w: it holds no data at all", ErrNoKernel)
	case len(f.errs) > 0:
		return fmt.Errorf("%w: %d candidates, none proved itself; the first: %w", ErrNoKernel, len(f.errs), f.errs[0])
	}
	return fmt.Errorf("%w in its %d MiB of data", ErrNoClaim, size>>20)
}

// claim is what a candidate says of itself, to be proved.
type claim struct {
	source  string
	release string // "" if it does not say
	text    mem.VA // _stext
	delta   uint64 // virtual minus physical address of the image
	slide   uint64 // of KASLR
	root    mem.VA // swapper_pg_dir, which x86-64 calls init_top_pgt
	skipped mem.PA // bytes of that table which the processor leaves out
	port    port
	modes   []arch.Mode
	info    *ksym.CoreInfo
	// symbols gives the symbol table, once page tables are known.
	symbols func(s *mem.Space) (*ksym.Table, string, error)
}

func (c *claim) phys(va mem.VA) mem.PA { return mem.PA(uint64(va) - c.delta) }

// fromCoreInfo lists the claims that a VMCOREINFO text makes (kernel/vmcore_info.c
// and arch/*/kernel/vmcore_info*.c).
func (f *finder) fromCoreInfo(info *ksym.CoreInfo) ([]*claim, error) {
	fail := func(what string) ([]*claim, error) {
		return nil, fmt.Errorf("VMCOREINFO at %#x: %s: %w", uint64(info.Places[0]), what, mem.ErrInconsistent)
	}
	text, ok := info.Symbol("_stext")
	if !ok {
		return fail("no SYMBOL(_stext)")
	}
	root, ok := info.Symbol("swapper_pg_dir")
	if !ok {
		return fail("no SYMBOL(swapper_pg_dir)")
	}
	for _, p := range ports {
		claims, ok := p.claims(f, claim{source: "VMCOREINFO", info: info, release: info.OSRelease(), text: text, root: root, port: p})
		if !ok {
			continue
		}
		if len(claims) == 0 {
			return fail("no page tables of this kernel map its image")
		}
		for _, c := range claims {
			c.symbols = func(s *mem.Space) (*ksym.Table, string, error) { return f.tableOf(c, s) }
		}
		return claims, nil
	}
	if text < 1<<32 {
		return nil, fmt.Errorf("VMCOREINFO, release %q: a kernel of 32 bits whose image is at %#x: only those of Arm, and of x86 with 3 GiB for processes, are known: %w",
			info.OSRelease(), uint64(text), errors.ErrUnsupported)
	}
	return fail("a kernel for no processor that is known")
}

// tableOf is the symbol table of the kernel that a VMCOREINFO text claims.
func (f *finder) tableOf(c *claim, s *mem.Space) (*ksym.Table, string, error) {
	if places, ok := c.info.Kallsyms(); ok {
		if t, err := ksym.At(s.Read, places); err == nil {
			return t, "kallsyms where VMCOREINFO says", nil
		}
	}
	// Kernels before v6.0 do not say where: look for it in the image.
	t, err := f.tableNear(c)
	return t, "kallsyms found in the image", err
}

// tableNear looks for the symbol table in the image that c claims.
func (f *finder) tableNear(c *claim) (*ksym.Table, error) {
	from := c.phys(c.text)
	image := []mem.Range{{Start: from, Size: imageMax}}
	if data, err := mem.Extents(f.phys); err == nil {
		image = clip(image[0], data)
	}
	tables, err := ksym.Find(f.ctx, f.phys, image)
	if err = f.planted(err); err != nil {
		return nil, err
	}
	for _, found := range tables {
		t := found.Table
		if t.Proof().Physical {
			t = t.Rebase(c.delta)
		}
		if s, err := t.Lookup("_stext"); err == nil && s.Addr == c.text {
			return t, nil
		}
	}
	return nil, fmt.Errorf("%d kallsyms tables in the %d MiB from physical %#x, none with _stext at %#x: %w",
		len(tables), imageMax>>20, uint64(from), uint64(c.text), mem.ErrInconsistent)
}

// clip cuts r to the given ranges.
func clip(r mem.Range, to []mem.Range) []mem.Range {
	var out []mem.Range
	for _, t := range to {
		lo, hi := max(r.Start, t.Start), min(r.End(), t.End())
		if lo < hi {
			out = append(out, mem.Range{Start: lo, Size: uint64(hi - lo)})
		}
	}
	return out
}

// search is the way without VMCOREINFO: find symbol tables, and for each the
// page-table root that proves it.
func (f *finder) search(extents []mem.Range) ([]*Kernel, error) {
	tables, err := ksym.Find(f.ctx, f.phys, extents)
	if err = f.planted(err); err != nil {
		return nil, fmt.Errorf("search kallsyms: %w", err)
	}
	f.step("search kallsyms", "%d candidates", len(tables))
	var found []*Kernel
	for _, t := range tables {
		if err := f.ctx.Err(); err != nil {
			return nil, err
		}
		claims, err := f.fromTable(t)
		var k *Kernel
		for _, c := range claims {
			if k, err = f.prove(c); err == nil {
				found = append(found, k)
				break
			}
		}
		if err != nil {
			f.reject(err)
		}
	}
	return found, nil
}

// fromTable lists the claims that fit a symbol table found in RAM.
func (f *finder) fromTable(t ksym.Found) ([]*claim, error) {
	for _, p := range ports {
		if p.tableArch() == t.Arch() {
			claims, err := p.tableClaims(f, t)
			if err != nil {
				return nil, fmt.Errorf("kallsyms at %#x: %w", uint64(t.TokenTable), err)
			}
			for _, c := range claims {
				c.source, c.port = "kallsyms", p
			}
			return claims, nil
		}
	}
	return nil, fmt.Errorf("kallsyms at %#x: symbols of %s: %w", uint64(t.TokenTable), t.Arch(), errors.ErrUnsupported)
}

// imageIn is where a symbol table has the kernel's image, and its root.
func imageIn(t ksym.Found, rootName string) (text, end, root uint64, err error) {
	for _, want := range []struct {
		name string
		to   *uint64
	}{{"_stext", &text}, {"_end", &end}, {rootName, &root}} {
		s, err := t.Lookup(want.name)
		if err != nil {
			return 0, 0, 0, err
		}
		*want.to = uint64(s.Addr)
	}
	if end <= text || end-text > imageMax {
		return 0, 0, 0, fmt.Errorf("%w: an image of %d bytes", mem.ErrInconsistent, end-text)
	}
	return text, end, root, nil
}

// tableClaim is the claim of a table at one distance of the image from where it
// lies; virt is what is added to the table's addresses.
func tableClaim(t *ksym.Table, text, root, delta, virt uint64, modes ...arch.Mode) *claim {
	return &claim{
		text: mem.VA(text + virt), root: mem.VA(root + virt), delta: delta, modes: modes,
		symbols: func(*mem.Space) (*ksym.Table, string, error) { return t, "kallsyms found in RAM", nil },
	}
}
