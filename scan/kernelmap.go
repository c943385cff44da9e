package scan

import (
	"vmscope/arch/x86"
	"vmscope/kernel"
	"vmscope/mem"
)

// imageStart is where the kernel's image and its modules lie, whatever KASLR did
// (__START_KERNEL_map).
const imageStart mem.VA = 0xffffffff80000000

// Where the kernel maps all RAM, and what it allocates by pages, if it does not
// choose the places when it boots (arch/x86/include/asm/page_64_types.h,
// pgtable_64_types.h).
var (
	directMaps = map[x86.Mode]mem.VA{x86.Level4: 0xffff888000000000, x86.Level5: 0xff11000000000000}
	vmallocs   = map[x86.Mode]mem.VA{x86.Level4: 0xffffc90000000000, x86.Level5: 0xffa0000000000000}
)

// addresses are those from start up to end.
type addresses struct{ start, end mem.VA }

func (a addresses) holds(r x86.Region) bool { return r.VA >= a.start && r.VA < a.end }

// base is where a part of the kernel's half begins.
func (s *search) base(symbol string, fixed map[x86.Mode]mem.VA) mem.VA {
	if at, err := s.Symbol(symbol); err == nil {
		if v, err := s.Mem.Pointer(at); err == nil {
			return v
		}
	}
	return fixed[s.Mode]
}

// directMap is where the kernel maps all RAM: up to what it allocates by pages.
func (s *search) directMap() addresses {
	return addresses{s.base("page_offset_base", directMaps), s.base("vmalloc_base", vmallocs)}
}

// kernelPart names the part of the kernel's half that an address is in.
func (s *search) kernelPart(va mem.VA) kernel.Text {
	d := s.directMap()
	switch {
	case va >= imageStart:
		return "[image]"
	case va >= d.start && va < d.end:
		return "[direct map]"
	case va >= d.end && va < d.end+32<<40:
		return "[vmalloc]"
	}
	return ""
}
