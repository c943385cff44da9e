package ksym

import (
	"fmt"

	"vmscope/mem"
)

// Layout is an arrangement of the blocks of kallsyms. All blocks lie in one run
// of the kernel's read-only data, in the order that scripts/kallsyms.c writes
// them:
//
//	BaseFirst      offsets, relative_base, num_syms, names, markers, [seqs],
//	               token_table, token_index
//	BaseLast       num_syms, names, markers, token_table, token_index, offsets,
//	               relative_base, seqs
//	PlaceRelative  as BaseLast, but without relative_base: an offset counts
//	               from its own place
//
// BaseFirst is found up to Linux 6.3; the stable kernels 6.1 have got seqs in
// it, 5.10 not. BaseLast follows from 6.4, PlaceRelative in 7.x.
type Layout uint8

// The layouts, see Layout.
const (
	BaseFirst Layout = iota + 1
	BaseLast
	PlaceRelative
)

func (l Layout) String() string {
	switch l {
	case BaseFirst:
		return "offsets before names"
	case BaseLast:
		return "offsets behind names"
	case PlaceRelative:
		return "place-relative offsets"
	}
	return fmt.Sprintf("layout %d", uint8(l))
}

// Scheme is how an offset becomes an address.
type Scheme uint8

// The schemes. AbsolutePerCPU is CONFIG_KALLSYMS_ABSOLUTE_PERCPU: an offset
// that is not negative is the symbol's value itself, the others count down from
// the base.
const (
	Plain          Scheme = iota + 1 // relative_base + u32
	AbsolutePerCPU                   // v >= 0: v; else relative_base - 1 - v
	OwnPlace                         // address of the offset + s32
)

func (s Scheme) String() string {
	switch s {
	case Plain:
		return "base-relative"
	case AbsolutePerCPU:
		return "base-relative, per-CPU absolute"
	case OwnPlace:
		return "place-relative"
	}
	return fmt.Sprintf("scheme %d", uint8(s))
}

// word is what differs between word sizes.
type word struct {
	size uint64 // of a pointer, bytes
	min  uint64 // lowest address that a kernel can have
	mask uint64 // of an address
}

// wordSizes are tried in this order. The 32-bit minimum is that of the 1:3
// split; the usual 3:1 split has 0xc0000000.
var wordSizes = []word{
	{8, 0xffff_8000_0000_0000, ^uint64(0)},
	{4, 0x4000_0000, 0xffff_ffff},
}

// Places says where the blocks of a table are. Whoever reads them decides
// whether the addresses are virtual (At) or physical (Find).
type Places struct {
	NumSyms      mem.VA
	Names        mem.VA
	TokenTable   mem.VA
	TokenIndex   mem.VA
	Offsets      mem.VA
	RelativeBase mem.VA // 0: the kernel has none
}

// layout tells the layout from the order of the blocks and bounds every
// distance between them, so that what is read is bounded.
func (p Places) layout() (Layout, error) {
	bad := func(what string) (Layout, error) {
		return 0, fmt.Errorf("kallsyms blocks %s (%#x): %w", what, p, mem.ErrInconsistent)
	}
	switch {
	case p.Names <= p.NumSyms || p.Names-p.NumSyms > 16:
		return bad("num_syms and names are not adjacent")
	case p.TokenTable <= p.Names || p.TokenTable-p.Names > maxNames:
		return bad("names and token_table are not in order")
	case p.TokenIndex <= p.TokenTable || p.TokenIndex-p.TokenTable > maxTokens:
		return bad("token_table and token_index are not adjacent")
	case p.TokenIndex+indexSize < p.TokenIndex:
		return bad("wrap around")
	}
	const far = 4*maxSyms + 64
	switch {
	case p.Offsets < p.NumSyms && p.NumSyms-p.Offsets <= far:
		if p.RelativeBase <= p.Offsets || p.RelativeBase >= p.NumSyms {
			return bad("offsets and relative_base are not in order")
		}
		return BaseFirst, nil
	case p.Offsets < p.TokenIndex+indexSize || p.Offsets-p.TokenIndex > indexSize+64 || p.Offsets+far+3*maxSyms < p.Offsets:
		return bad("token_index and offsets are not adjacent")
	case p.RelativeBase == 0:
		return PlaceRelative, nil
	case p.RelativeBase <= p.Offsets || p.RelativeBase-p.Offsets > far:
		return bad("offsets and relative_base are not in order")
	}
	return BaseLast, nil
}
