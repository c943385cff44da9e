package proc

import (
	"cmp"
	"slices"

	"vmscope/internal/procram"
	"vmscope/mem"
	"vmscope/vm"
)

// plugged lists what an arrangement becomes if other mappings of the process were
// added to it as RAM while the guest ran: all of them, or one.
func (k *kind) plugged(a arrangement, pools []*pool) (out []arrangement) {
	if k.added == nil {
		return nil
	}
	var free []procram.Block
	add := func(b procram.Block) {
		taken := slices.ContainsFunc(slices.Concat(free, a.blocks), func(o procram.Block) bool { return b.HVA < o.HVA+o.Size && o.HVA < b.HVA+b.Size })
		if b.Size > 0 && b.Size%plugUnit == 0 && !taken {
			free = append(free, b)
		}
	}
	for _, p := range pools {
		for _, b := range p.blocks {
			if b.Mapping.Anonymous() != a.blocks[0].Mapping.Anonymous() {
				continue
			}
			// The kernel may have joined it with what was there: what is left of that.
			for _, used := range a.blocks {
				if used.HVA >= b.HVA && used.HVA+used.Size <= b.HVA+b.Size {
					front, back := b, b
					front.Size = used.HVA - b.HVA
					back.HVA = used.HVA + used.Size
					back.Size -= front.Size + used.Size
					add(front)
					add(back)
				}
			}
			add(b)
		}
	}
	free = free[:min(len(free), maxPools)]
	down := func(a, b procram.Block) int { return cmp.Compare(b.HVA, a.HVA) }
	up := func(a, b procram.Block) int { return cmp.Compare(a.HVA, b.HVA) }
	all := [][]procram.Block{slices.SortedFunc(slices.Values(free), down), slices.SortedFunc(slices.Values(free), up)}
	for _, b := range free {
		all = append(all, []procram.Block{b})
	}
	for _, more := range all {
		if x, ok := k.with(a, more); ok {
			out = append(out, x)
		}
	}
	return out
}

// with adds blocks to an arrangement, each where the VMM puts it; ok is false if
// they do not lie one behind the other then.
func (k *kind) with(a arrangement, more []procram.Block) (arrangement, bool) {
	ranges := slices.Clone(a.layout.Ranges)
	for _, b := range more {
		end := ranges[len(ranges)-1].End()
		at := k.added(end, more[0], b)
		if at < end || at > maxRAM || b.Size > maxRAM-uint64(at) {
			return arrangement{}, false
		}
		ranges = append(ranges, mem.Range{Start: at, Size: b.Size})
	}
	// A kernel lies in what the guest was started with.
	l := vm.Layout{Name: a.layout.Name + ", and more added", Ranges: ranges, Set: a.layout.Set}
	return arrangement{slices.Concat(a.blocks, more), l}, len(more) > 0
}
