package vm

import (
	"fmt"
	"strconv"
	"strings"

	"vmscope/mem"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Layouts lists the ways in which ram bytes of RAM may lie in the physical
// space of a machine of the given kind, the likeliest first and each only once:
// the q35 and pc boards of QEMU agree as long as all RAM fits below their hole.
//
// Kinds are "q35", "pc", "microvm" (x86), "virt" (Arm), "riscv-virt", "flat",
// "low=SIZE" (x86 with SIZE bytes below the hole, e.g. low=3G), "x86" for
// whatever an x86 machine may be, and "" for all that is known. An unknown kind
// is an error that lists these.
//
// Sources: QEMU hw/i386/pc_q35.c pc_q35_init, hw/i386/pc_piix.c pc_init1,
// hw/i386/microvm.c, hw/arm/virt.c base_memmap, hw/riscv/virt.c virt_memmap;
// the x86 ones are checked against `info mtree -f` of QEMU 7.2.
func Layouts(kind string, ram uint64) ([]Layout, error) {
	if ram == 0 || ram > 1<<52 {
		return nil, fmt.Errorf("no layout for %d bytes of RAM", ram)
	}
	switch kind {
	case "q35":
		return tall(false, q35(ram)), nil
	case "pc":
		return tall(false, pc(ram)), nil
	case "microvm":
		return []Layout{split("microvm", ram, 3*gib)}, nil
	case "virt":
		return []Layout{at("virt", ram, gib)}, nil
	case "riscv-virt":
		return []Layout{at("riscv-virt", ram, 2*gib)}, nil
	case "flat":
		return []Layout{at("flat", ram, 0)}, nil
	case "x86":
		return tall(true, distinct(x86(ram))...), nil
	case "":
		// A file of 2.75 GiB and more was split if an x86 board made it; a
		// smaller one was not.
		l := append(x86(ram), at("virt", ram, gib), at("riscv-virt", ram, 2*gib))
		return tall(true, distinct(l)...), nil
	}
	if s, ok := strings.CutPrefix(kind, "low="); ok {
		if low, err := parseSize(s); err == nil && low > 0 && low <= 4*gib && low%mem.PageSize == 0 {
			return tall(false, split(kind, ram, low)), nil
		}
	}
	return nil, fmt.Errorf("unknown layout %q: use q35, pc, microvm, virt, riscv-virt, flat or low=SIZE (e.g. low=3G)", kind)
}

// x86 lists the splits that are in use, QEMU's defaults first. The others are
// those of old machine types, other monitors, and max-ram-below-4g.
func x86(ram uint64) []Layout {
	l := []Layout{q35(ram), pc(ram)}
	for _, low := range []uint64{3 * gib, 3328 * mib, 3584 * mib, 2 * gib, 2816 * mib, 3840 * mib, gib} {
		l = append(l, split(fmt.Sprintf("low=%dM", low/mib), ram, low))
	}
	return append(l, at("flat", ram, 0))
}

func q35(ram uint64) Layout {
	if ram >= 0xb0000000 {
		return split("q35", ram, 2*gib)
	}
	return at("q35", ram, 0)
}

func pc(ram uint64) Layout {
	if ram >= 0xe0000000 {
		return split("pc", ram, 3*gib)
	}
	return at("pc", ram, 0)
}

// tall adds to layouts those in which what lies above 4 GiB lies above 1 TiB instead: so it does, from QEMU 7.1 on, in a
// machine with a processor of AMD's whose memory and PCI devices would else reach into the 12 GiB below 1 TiB, which are
// those of its interconnect (QEMU hw/i386/pc.c pc_memory_init, pc_max_used_gpa, AMD_HT_START). What counts besides RAM
// (maxmem, pci-hole64-size) is not known. So little: with less RAM than makes it likely, too, of the splits of today's
// machine types, for a guest that contradicts all others.
func tall(little bool, l ...Layout) []Layout {
	const much = 512 * gib
	for _, x := range l {
		if len(x.Ranges) != 2 || x.Ranges[1].Start != 4*gib {
			continue
		}
		if low, high := x.Ranges[0].Size, x.Ranges[1].Size; high >= much || little && (low == 2*gib || low == 3*gib) {
			l = append(l, Layout{Name: x.Name + ", above 1 TiB", Ranges: []mem.Range{x.Ranges[0], {Start: 1024 * gib, Size: high}}})
		}
	}
	return l
}

// split puts the first low bytes at 0 and the rest at 4 GiB.
func split(name string, ram, low uint64) Layout {
	if ram <= low {
		return at(name, ram, 0)
	}
	return Layout{Name: name, Ranges: []mem.Range{{Start: 0, Size: low}, {Start: 4 * gib, Size: ram - low}}}
}

func at(name string, ram uint64, base mem.PA) Layout {
	return Layout{Name: name, Ranges: []mem.Range{{Start: base, Size: ram}}}
}

// distinct drops layouts whose ranges an earlier one has.
func distinct(l []Layout) []Layout {
	var out []Layout
next:
	for _, x := range l {
		for _, y := range out {
			if sameRanges(x.Ranges, y.Ranges) {
				continue next
			}
		}
		out = append(out, x)
	}
	return out
}

func sameRanges(a, b []mem.Range) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func parseSize(s string) (uint64, error) {
	shift := 0
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'K', 'k':
			shift = 10
		case 'M', 'm':
			shift = 20
		case 'G', 'g':
			shift = 30
		}
		if shift > 0 {
			s = s[:n-1]
		}
	}
	v, err := strconv.ParseUint(s, 10, 64-30)
	return v << shift, err
}
