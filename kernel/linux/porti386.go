package linux

import (
	"errors"
	"fmt"
	"sort"

	"vmscope/arch"
	"vmscope/arch/x86"
	"vmscope/ksym"
	"vmscope/mem"
)

// i386 is the port of x86 kernels of 32 bits (Documentation/mm/highmem.rst). It
// knows those that leave 3 GiB to processes (CONFIG_VMSPLIT_3G), as the kernels
// of distributions do.
type i386 struct{}

func (i386) arch() string      { return "i686" }
func (i386) tableArch() string { return "" }
func (i386) align64() uint64   { return 4 }

// linkedText386 is where _stext lies without KASLR, which only moves it up:
// CONFIG_PHYSICAL_START, 16 MiB.
const linkedText386 = lowMap + 16<<20

// The last GiB of addresses begins with a map of the first RAM, the low memory,
// in which the image lies too. What is behind it (VMALLOC_START) has at least 128
// MiB, so that low memory has 896 MiB at most.
const (
	lowMap mem.VA = 0xc0000000 // CONFIG_PAGE_OFFSET
	lowMax mem.PA = 1<<30 - 128<<20
)

// claims goes by where the first page tables are, too: behind the code, which on
// 32-bit Arm they are before.
func (i386) claims(_ *finder, c claim) ([]*claim, bool) {
	if c.text < linkedText386 || c.root < c.text || c.text >= lowMap+mem.VA(lowMax) {
		return nil, false
	}
	c.delta, c.slide = uint64(lowMap), uint64(c.text-linkedText386)
	c.modes = []arch.Mode{x86.Bits32}
	if s, _ := c.info.Config("X86_PAE"); s == "y" {
		c.modes = []arch.Mode{x86.PAE}
	}
	return []*claim{&c}, true
}

// tableClaims takes the root from the table, so that the kernel must list its
// data there (CONFIG_KALLSYMS_ALL).
func (i386) tableClaims(_ *finder, t ksym.Found) ([]*claim, error) {
	text, _, root, err := imageIn(t, "swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	c := tableClaim(t.Table, text, root, uint64(lowMap), 0, x86.PAE, x86.Bits32)
	c.slide = uint64(c.text - linkedText386)
	return []*claim{c}, nil
}

func (i386) directMap(*View) (mem.VA, error) { return lowMap, nil }

// directEnd is where low memory ends. No symbol that every kernel lists tells it,
// its page tables do.
func (i386) directEnd(v *View) mem.PA {
	first := uint64(v.Kernel.Phys) / mem.PageSize
	n := sort.Search(int(uint64(lowMax)/mem.PageSize-first), func(i int) bool {
		pa := mem.PA(first+uint64(i)) * mem.PageSize
		return leads(v.Mem, lowMap+mem.VA(pa), pa) != nil
	})
	return mem.PA(first+uint64(n)) * mem.PageSize
}

// vmemmap: the array of struct page is none of virtual memory, and has gaps.
func (i386) vmemmap(*View) (mem.VA, error) {
	return 0, fmt.Errorf("the array of struct page of a kernel of 32 bits: %w", errors.ErrUnsupported)
}

// halves has the modules among what the kernel allocates by pages.
func (p i386) halves(v *View) Halves {
	end := lowMap + mem.VA(p.directEnd(v))
	return Halves{Direct: Span{lowMap, end}, Vmalloc: Span{end, 1<<32 - 1}}
}
