package linux

import (
	"errors"
	"fmt"
	"math/bits"

	"vmscope/arch"
	armv8 "vmscope/arch/arm64"
	"vmscope/ksym"
	"vmscope/mem"
)

// arm64 is the port of AArch64 (Documentation/arch/arm64/memory.rst).
type arm64 struct{}

func (arm64) arch() string      { return "aarch64" }
func (arm64) tableArch() string { return "arm64" }
func (arm64) align64() uint64   { return 8 }

// kernelMode is how Linux has addresses of so many bits translated: both halves
// alike, tags ignored in that of processes only; 52 bits need 52-bit descriptors.
// A page with DBM is one that the kernel calls writable (PTE_WRITE), whether or
// not it was written.
func (arm64) kernelMode(g armv8.Granule, bits uint8) arch.Mode {
	high := armv8.Half{Granule: g, Bits: bits, Wide: g == armv8.Granule64K || bits == 52, Dirty: true}
	low := high
	low.TopIgnored = true
	return armv8.Mode{Low: low, High: high}
}

var granules = []armv8.Granule{armv8.Granule4K, armv8.Granule16K, armv8.Granule64K}

// vaBits are the sizes of the address space that kernels are built for, or fall
// back to on processors that have no greater.
var vaBits = []uint8{48, 52, 47, 42, 39, 36}

func (p arm64) claims(_ *finder, c claim) ([]*claim, bool) {
	off, ok := c.info.Number("kimage_voffset")
	if !ok {
		return nil, false
	}
	c.delta = uint64(off)
	c.slide, _ = c.info.KernelOffset()
	size, _ := c.info.PageSize()
	g := armv8.Granule(bits.TrailingZeros64(uint64(size)))
	// What is in use, then what the kernel was built for.
	if n, ok := c.info.Number("TCR_EL1_T1SZ"); ok && n >= 0 && n < 64 {
		c.modes = append(c.modes, p.kernelMode(g, uint8(64-n)))
	}
	built, ok := c.info.Number("VA_BITS")
	if ok && built > 0 && built < 64 && len(c.modes) == 0 {
		c.modes = append(c.modes, p.kernelMode(g, uint8(built)))
	}
	if g == armv8.Granule64K && built == 52 && len(c.modes) > 0 && c.modes[0] == p.kernelMode(g, 48) {
		// The table has room for 52 bits, of which TTBR1 leaves out the lower part
		// (TTBR1_BADDR_4852_OFFSET).
		const entries52, entries48 = 1 << (52 - 42), 1 << (48 - 42)
		c.skipped = 8 * (entries52 - entries48)
	}
	return []*claim{&c}, true
}

// tableClaims lists what the kernel's own page tables say, where the table tells
// where they lie; else the steps in which the image may be mapped.
func (p arm64) tableClaims(f *finder, t ksym.Found) ([]*claim, error) {
	text, end, root, err := imageIn(t, "swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	var modes []arch.Mode
	for _, g := range granules {
		for _, n := range vaBits {
			modes = append(modes, p.kernelMode(g, n))
		}
	}
	var out []*claim
	if !t.Proof().Physical {
		for _, delta := range steps(t, text, end, imageAlign) {
			out = append(out, tableClaim(t.Table, text, root, delta, 0, modes...))
		}
		return out, nil
	}
	for _, m := range modes {
		tables := maxImageTables
		for r, err := range m.Kernel(f.phys, mem.PA(root)).MappingsWithin(&tables, imageLowest(m), ^mem.VA(0)) {
			if at := mem.PA(text); err == nil && at >= r.PA && at-r.PA < mem.PA(r.Size) {
				delta := uint64(r.VA) - uint64(r.PA)
				out = append(out, tableClaim(t.Rebase(delta), text, root, delta, delta, m))
				break
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: its page tables at %#x do not map it", mem.ErrInconsistent, root)
	}
	return out, nil
}

// imageLowest is where the upper half of what 48 bits address begins, less where
// fewer are in use: modules and the image are mapped from there up
// (_PAGE_END(VA_BITS_MIN), MODULES_VADDR). Below is the map of all RAM, which
// shows the image as well.
func imageLowest(m arch.Mode) mem.VA {
	return ^mem.VA(0) << (min(m.(armv8.Mode).High.Bits, 48) - 1)
}

// maxImageTables bounds the page tables that are read to find the image: little
// of what lies there has any.
const maxImageTables = 1 << 14

// number is a number that VMCOREINFO tells.
func (arm64) number(v *View, name string) (uint64, error) {
	if v.info == nil {
		return 0, fmt.Errorf("%s of a kernel without VMCOREINFO: %w", name, errors.ErrUnsupported)
	}
	n, ok := v.info.Number(name)
	if !ok {
		return 0, fmt.Errorf("%s: VMCOREINFO does not tell: %w", name, errors.ErrUnsupported)
	}
	return uint64(n), nil
}

// directMap is PAGE_OFFSET less PHYS_OFFSET (arch/arm64/include/asm/memory.h:
// __phys_to_virt). PHYS_OFFSET is no address of RAM, but such that the sum is
// right, where a kernel for 52 bits runs on 48.
func (p arm64) directMap(v *View) (mem.VA, error) {
	phys, err := p.number(v, "PHYS_OFFSET")
	width, err2 := p.number(v, "VA_BITS")
	if err = errors.Join(err, err2); err != nil {
		return 0, err
	}
	return mem.VA(-(uint64(1) << (width & 63)) - phys), nil
}

func (arm64) directEnd(*View) mem.PA { return ^mem.PA(0) }

// vmemmap counts from the frame of PHYS_OFFSET, as a signed number
// (arch/arm64/include/asm/pgtable.h).
func (p arm64) vmemmap(v *View) (mem.VA, error) {
	start, err := p.number(v, "VMEMMAP_START")
	phys, err2 := p.number(v, "PHYS_OFFSET")
	types, err3 := v.NeedTypes()
	if err = errors.Join(err, err2, err3); err != nil {
		return 0, err
	}
	page, err := types.Lookup("page")
	if err != nil {
		return 0, err
	}
	frame := int64(phys) / int64(v.Mode.PageSize()) // it is a multiple
	return mem.VA(start - uint64(frame)*page.Size()), nil
}

func (p arm64) halves(v *View) Halves {
	span := func(from, to string) Span {
		start, err := p.number(v, from)
		end, err2 := p.number(v, to)
		if err != nil || err2 != nil || end <= start {
			return Span{}
		}
		return Span{mem.VA(start), mem.VA(end)}
	}
	h := Halves{Modules: span("MODULES_VADDR", "MODULES_END"), Vmalloc: span("VMALLOC_START", "VMALLOC_END")}
	if start, _, size, err := v.Image(); err == nil { // within Vmalloc
		h.Image = Span{start, start + mem.VA(size)}
	}
	if base, err := p.directMap(v); err == nil {
		h.Direct = Span{base, imageLowest(v.Mode)}
		if r, ok := v.Phys.(mem.Ranger); ok && len(r.Ranges()) > 0 {
			h.Direct.Start = base + mem.VA(r.Ranges()[0].Start)
		}
	}
	return h
}
