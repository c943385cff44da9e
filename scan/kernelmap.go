package scan

import (
	"vmscope/kernel"
	"vmscope/mem"
)

// kernelPart names the part of the kernel's half that an address is in.
func (s *search) kernelPart(va mem.VA) kernel.Text {
	switch h := s.Halves(); {
	case h.Image.Holds(va) || h.Modules.Holds(va):
		return "[image]"
	case h.Direct.Holds(va):
		return "[direct map]"
	case h.Vmalloc.Holds(va):
		return "[vmalloc]"
	}
	return ""
}
