package linux

import (
	"vmscope/arch/x86"
	"vmscope/mem"
)

// amd64 is the port of x86-64 (Documentation/arch/x86/x86_64/mm.rst).
type amd64 struct{}

func (amd64) arch() string  { return "x86_64" }
func (amd64) wordSize() int { return 8 }

// linkedText is __START_KERNEL_map + CONFIG_PHYSICAL_START, 16 MiB on every
// distribution's kernel.
func (amd64) linkedText() mem.VA { return kernelMap + 16<<20 }

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
