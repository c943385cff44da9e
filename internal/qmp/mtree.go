package qmp

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"vmscope/mem"
)

// Region is a run of guest-physical memory that a RAM block fills.
type Region struct {
	Name string // of the block
	PA   mem.PA
	Off  uint64 // in the block
	Size uint64
}

// maxRegions bounds the lines of a memory map that are used.
const maxRegions = 1 << 16

// ParseTree reads `info mtree -f` (QEMU softmmu/memory.c mtree_print_flatview):
// the flat view of the address space "memory", of which it keeps what the memory
// backends ids fill: main memory and memory devices, but no video RAM and no ROM.
// Lines are such as
//
//	0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000 KVM
//
// RAM of one block at one displacement is one region: what lies over it within
// (video memory, shadowed ROM) hides it from the guest but is not it.
func ParseTree(s string, ids []string) []Region {
	type key struct {
		name  string
		delta uint64
	}
	groups := map[key]*Region{}
	var order []key
	inView := false
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "FlatView #") {
			if len(groups) > 0 {
				break
			}
			inView = false
			continue
		}
		if strings.HasPrefix(line, ` AS "memory",`) {
			inView = true
			continue
		}
		if !inView || !strings.HasPrefix(line, "  ") || len(order) > maxRegions {
			continue
		}
		r, typ, ok := parseRegion(strings.TrimSpace(line))
		if !ok || typ != "ram" && typ != "rom" && typ != "nv" || !slices.Contains(ids, r.Name) {
			continue
		}
		k := key{r.Name, uint64(r.PA) - r.Off}
		g := groups[k]
		if g == nil {
			groups[k], order = &r, append(order, k)
			continue
		}
		if end := r.PA + mem.PA(r.Size); end > g.PA+mem.PA(g.Size) {
			g.Size = uint64(end - g.PA)
		}
	}
	var out []Region
	for _, k := range order {
		out = append(out, *groups[k])
	}
	slices.SortFunc(out, func(a, b Region) int { return cmp.Compare(a.PA, b.PA) })
	for i := 1; i < len(out); i++ {
		if out[i-1].PA+mem.PA(out[i-1].Size) > out[i].PA {
			return nil // two blocks interleave: not a map of RAM that we know
		}
	}
	return out
}

func parseRegion(line string) (r Region, typ string, ok bool) {
	span, rest, ok1 := strings.Cut(line, " (prio ")
	attrs, rest, ok2 := strings.Cut(rest, "): ")
	_, typ, ok3 := strings.Cut(attrs, ", ")
	from, to, ok4 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return r, "", false
	}
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || end <= start || end > 1<<56 {
		return r, "", false
	}
	r.PA, r.Size = mem.PA(start), end-start+1
	name, off, found := strings.Cut(strings.TrimSuffix(rest, " KVM"), " @")
	if found {
		v, err := strconv.ParseUint(off, 16, 64)
		if err != nil || v > 1<<56 {
			return r, "", false
		}
		r.Off = v
	}
	r.Name = strings.TrimPrefix(name, "/objects/")
	return r, typ, true
}

// WithoutVGA leaves out the video memory window: read by the machine's own
// eyes it is a device, which notices being read.
func WithoutVGA(in []mem.Range) []mem.Range {
	const from, to = 0xa0000, 0xc0000
	var out []mem.Range
	for _, r := range in {
		if r.Start > from || r.End() < to {
			out = append(out, r)
			continue
		}
		out = append(out, mem.Range{Start: r.Start, Size: from - uint64(r.Start)}, mem.Range{Start: to, Size: uint64(r.End()) - to})
	}
	return out
}
