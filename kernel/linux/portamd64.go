package linux

import (
	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/ksym"
	"vmscope/mem"
)

// kernelMap is where x86-64 kernels map their image: __START_KERNEL_map, the
// last 2 GiB. KASLR moves the image within its first GiB in steps of imageAlign
// (CONFIG_PHYSICAL_ALIGN).
const (
	kernelMap  = 0xffffffff80000000
	imageAlign = 2 << 20
)

// amd64 is the port of x86-64 (Documentation/arch/x86/x86_64/mm.rst).
type amd64 struct{}

func (amd64) arch() string      { return "x86_64" }
func (amd64) tableArch() string { return "amd64" }
func (amd64) align64() uint64   { return 8 }

// linkedText is where _stext lies without KASLR: __START_KERNEL_map +
// CONFIG_PHYSICAL_START, 16 MiB on every distribution's kernel.
const linkedText = kernelMap + 16<<20

func (amd64) claims(_ *finder, c claim) ([]*claim, bool) {
	base, ok := c.info.Number("phys_base")
	if !ok {
		return nil, false
	}
	c.delta = kernelMap - uint64(base)
	c.slide = uint64(c.text) - linkedText
	if at, ok := c.info.Symbol("init_top_pgt"); ok {
		c.root = at
	}
	c.modes = []arch.Mode{x86.Level4, x86.Level5}
	if n, ok := c.info.Number("pgtable_l5_enabled"); ok && n != 0 {
		c.modes = []arch.Mode{x86.Level5, x86.Level4}
	}
	return []*claim{&c}, true
}

// tableClaims lists few: the image is physically contiguous and moves in steps
// of imageAlign, both physically and virtually.
func (amd64) tableClaims(_ *finder, t ksym.Found) ([]*claim, error) {
	text, end, root, err := imageIn(t, "init_top_pgt")
	if err != nil {
		return nil, err
	}
	var out []*claim
	add := func(table *ksym.Table, delta, virt uint64) {
		c := tableClaim(table, text, root, delta, virt, x86.Level4, x86.Level5)
		c.slide = uint64(c.text) - linkedText
		out = append(out, c)
	}
	if t.Proof().Physical {
		// The table tells where its symbols lie; they may be mapped in each
		// step of the kernel's first GiB.
		for base := uint64(kernelMap); base < kernelMap+1<<30; base += imageAlign {
			delta := base + text%imageAlign - text
			add(t.Rebase(delta), delta, delta)
		}
		return out, nil
	}
	for _, delta := range steps(t, text, end, imageAlign) {
		add(t.Table, delta, 0)
	}
	return out, nil
}

// steps lists how far the image may be mapped from where it lies, if both places
// are in steps of align: the table, which tells where its symbols are mapped,
// lies somewhere between _stext and _end itself.
func steps(t ksym.Found, text, end, align uint64) (deltas []uint64) {
	for va := text - text%align + uint64(t.TokenTable)%align; va < end; va += align {
		if va >= text {
			deltas = append(deltas, va-uint64(t.TokenTable))
		}
	}
	return deltas
}

// What the kernel places where, if it does not choose the places when it boots
// (arch/x86/include/asm/page_64_types.h, pgtable_64_types.h).
type amd64Bases struct{ direct, vmalloc, vmemmap mem.VA }

var (
	bases4 = amd64Bases{0xffff888000000000, 0xffffc90000000000, 0xffffea0000000000}
	bases5 = amd64Bases{0xff11000000000000, 0xffa0000000000000, 0xffd4000000000000}
)

// base is where a part begins: the value of a variable, which kernels have that
// choose when they boot, else where the part always is.
func (amd64) base(v *View, symbol string, fixed func(*amd64Bases) mem.VA) (mem.VA, error) {
	if at, err := v.Symbol(symbol); err == nil {
		return v.Mem.Pointer(at)
	}
	if v.Mode == x86.Level5 {
		return fixed(&bases5), nil
	}
	return fixed(&bases4), nil
}

func (p amd64) directMap(v *View) (mem.VA, error) {
	return p.base(v, "page_offset_base", func(b *amd64Bases) mem.VA { return b.direct })
}

func (amd64) directEnd(*View) mem.PA { return ^mem.PA(0) }

func (p amd64) vmalloc(v *View) (mem.VA, error) {
	return p.base(v, "vmalloc_base", func(b *amd64Bases) mem.VA { return b.vmalloc })
}

func (p amd64) vmemmap(v *View) (mem.VA, error) {
	return p.base(v, "vmemmap_base", func(b *amd64Bases) mem.VA { return b.vmemmap })
}

// vmallocSize is that of 4-level paging; that of 5-level is greater.
const vmallocSize = 32 << 40

func (p amd64) halves(v *View) Halves {
	h := Halves{Image: Span{kernelMap, ^mem.VA(0)}}
	direct, err := p.directMap(v)
	vmalloc, err2 := p.vmalloc(v)
	if err == nil && err2 == nil && vmalloc > direct {
		h.Direct, h.Vmalloc = Span{direct, vmalloc}, Span{vmalloc, vmalloc + vmallocSize}
	}
	return h
}
