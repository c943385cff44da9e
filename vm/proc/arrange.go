package proc

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmscope/internal/procram"
	"vmscope/vm"
)

const (
	// maxRAM is what processors can address at most, bytes.
	maxRAM = 1 << 52
	// minRAM is what Linux needs to boot; less is the VMM's own memory.
	minRAM = 16 * mib
	// maxFirmware is what a BIOS has at most (crosvm x86_64/src/lib.rs
	// BIOS_MAX_SIZE).
	maxFirmware = 16 * mib
	// maxPools bounds what of a process is looked into, and maxTries the ways.
	maxPools = 8
	maxTries = 48
)

// arrangement is one way in which mappings of the process may be the guest's RAM:
// blocks in the order of its bytes, and a layout of those.
type arrangement struct {
	blocks []procram.Block
	layout vm.Layout
}

func (a arrangement) size() (n uint64) {
	for _, b := range a.blocks {
		n += b.Size
	}
	return n
}

// pool is memory that may be RAM: all mappings of a file in the file's order, or
// one anonymous mapping.
type pool struct {
	blocks []procram.Block
	size   uint64
	named  bool // as the VMM names its RAM
}

func (p *pool) anonymous() bool { return p.blocks[0].Mapping.Anonymous() }

// disk reports whether it is a file of the host's that others see change: rather
// persistent memory than RAM.
func (p *pool) disk() bool {
	m := p.blocks[0].Mapping
	return !m.Anonymous() && m.Shared() && !m.Memfd() && !strings.HasSuffix(m.Path, " (deleted)")
}

// arrangements lists the ways in which the mappings of a process may be RAM, the
// likeliest first, each only once.
func arrangements(p Process, maps []procram.Mapping) []arrangement {
	pools := pools(p, maps)
	var out []arrangement
	add := func(blocks []procram.Block, l vm.Layout) {
		same := func(a arrangement) bool {
			return sameBlocks(a.blocks, blocks) && slices.Equal(a.layout.Ranges, l.Ranges)
		}
		if l.Set == 0 {
			l.Set = len(out) + 1
			if i := slices.IndexFunc(out, func(a arrangement) bool { return slices.Equal(covered(a.blocks), covered(blocks)) }); i >= 0 {
				l.Set = out[i].layout.Set
			}
		}
		if len(out) < maxTries && !slices.ContainsFunc(out, same) {
			out = append(out, arrangement{blocks, l})
		}
	}
	for _, a := range pools {
		// A mapping for each side of the hole.
		for _, low := range p.kind.low {
			if a.size != low || len(a.blocks) != 1 {
				continue
			}
			for _, b := range pools {
				if b == a || b.anonymous() != a.anonymous() || b.named != a.named {
					continue
				}
				for _, l := range p.kind.layouts(a.size + b.size) {
					if l.Ranges[0].Size == low {
						add(slices.Concat(a.blocks, b.blocks), l)
					}
				}
			}
		}
		for _, blocks := range a.cut(p.RAM) {
			size := blocksSize(blocks)
			for _, l := range p.kind.layouts(size) {
				// Mappings come to lie one below the other, and the kernel joins them:
				// then what is above the hole lies first.
				if b := blocks[0]; a.anonymous() && len(blocks) == 1 && len(l.Ranges) == 2 {
					low, high := b, b
					low.Size, high.Size = l.Ranges[0].Size, l.Ranges[1].Size
					low.HVA += high.Size
					add([]procram.Block{low, high}, l)
				}
				add(blocks, l)
			}
		}
	}
	for _, a := range slices.Clone(out) {
		for _, more := range p.kind.plugged(a, pools) {
			add(more.blocks, more.layout)
		}
	}
	// What the command line says goes first.
	slices.SortStableFunc(out, func(a, b arrangement) int {
		return cmp.Compare(btoi(b.size() == p.RAM), btoi(a.size() == p.RAM))
	})
	for i := range out { // names tell them apart
		for n, name := 2, out[i].layout.Name; slices.ContainsFunc(out[:i], func(a arrangement) bool { return a.layout.Name == out[i].layout.Name }); n++ {
			out[i].layout.Name = fmt.Sprintf("%s (%d)", name, n)
		}
	}
	return out
}

// pools gathers the mappings, the likeliest to be RAM first.
func pools(p Process, maps []procram.Mapping) []*pool {
	type file struct {
		dev   string
		inode uint64
	}
	var out []*pool
	of := make(map[file]*pool) // a process may map many
	for _, m := range maps {
		b := procram.Block{HVA: m.Start, Size: m.Size(), Mapping: m}
		at := file{m.Dev, m.Inode}
		o := of[at]
		if o == nil || m.Anonymous() {
			o = &pool{named: m.Path == "/memfd:"+p.kind.memfd+" (deleted)"}
			out, of[at] = append(out, o), o
		}
		o.blocks = append(o.blocks, b)
		if !m.Anonymous() || len(m.Cuts) == 1 {
			continue
		}
		// The kernel kept these apart: RAM asks for no reserve of swap, the rest of
		// the VMM does not.
		for k, start := range m.Cuts {
			end := m.End
			if k+1 < len(m.Cuts) {
				end = m.Cuts[k+1]
			}
			part := m
			part.Start, part.End, part.Cuts = start, end, []uint64{start}
			out = append(out, &pool{blocks: []procram.Block{{HVA: start, Size: end - start, Mapping: part}}})
		}
	}
	out = withHoles(out, p.kind.low)
	for _, o := range out {
		slices.SortFunc(o.blocks, func(a, b procram.Block) int { return cmp.Compare(a.Mapping.Off, b.Mapping.Off) })
		// The same part of a file may be mapped twice.
		o.blocks = slices.CompactFunc(o.blocks, func(a, b procram.Block) bool { return !a.Mapping.Anonymous() && a.Off() == b.Off() })
		o.size = blocksSize(o.blocks)
	}
	out = slices.DeleteFunc(out, func(o *pool) bool { return o.size < minRAM || o.size > maxRAM })
	slices.SortStableFunc(out, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(btoi(b.named), btoi(a.named)), cmp.Compare(btoi(a.disk()), btoi(b.disk())),
			cmp.Compare(b.size/mib, a.size/mib), cmp.Compare(a.size, b.size))
	})
	out = out[:min(len(out), maxPools)]
	// What nobody uses goes last: a window for files of the host.
	unused := func(o *pool) bool {
		return !slices.ContainsFunc(o.blocks, func(b procram.Block) bool {
			spans, err := procram.Touched(p.PID, b.HVA, b.Size)
			return err != nil || len(spans) > 0
		})
	}
	slices.SortStableFunc(out, func(a, b *pool) int { return cmp.Compare(btoi(unused(a)), btoi(unused(b))) })
	return out
}

// withHoles joins anonymous mappings with an inaccessible hole of RAM's own
// between them: one mapping, as kvmtool makes it.
func withHoles(in []*pool, lows []uint64) []*pool {
	var out []*pool
	for _, p := range in {
		if n := len(out); n > 0 && p.anonymous() && out[n-1].anonymous() && len(out[n-1].blocks) == 1 {
			low, high := &out[n-1].blocks[0], p.blocks[0]
			hole := high.HVA - low.Mapping.End
			i := slices.IndexFunc(lows, func(l uint64) bool { return hole == 4*gib-l && low.Size >= l })
			if i >= 0 {
				// What the kernel joined to it lies before it, or behind.
				low.HVA, low.Size = low.Mapping.End-lows[i], lows[i]
				if high.Size &^= mib - 1; high.Size == 0 {
					high.Size = p.blocks[0].Size
				}
				out[n-1].blocks = append(out[n-1].blocks, high)
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

// cut gives the pool's memory in the sizes that RAM may have. The kernel joins
// neighbours, so that an anonymous mapping may have more behind RAM or before it;
// RAM comes in whole MiB.
func (p *pool) cut(told uint64) [][]procram.Block {
	if !p.anonymous() || len(p.blocks) > 1 {
		out := [][]procram.Block{p.blocks}
		for i, b := range p.blocks {
			// A BIOS lies in the file between RAM below 4 GiB and above (crosvm --bios).
			if i > 0 && b.Off() >= mib && b.Size <= maxFirmware {
				out = append(out, slices.Concat(p.blocks[:i], p.blocks[i+1:]))
			}
		}
		return out[:min(len(out), maxPools)]
	}
	var out [][]procram.Block
	add := func(n uint64) {
		front, back := p.blocks[0], p.blocks[0]
		front.Size, back.Size = n, n
		back.HVA += p.size - n
		out = append(out, []procram.Block{front})
		if n < p.size {
			out = append(out, []procram.Block{back})
		}
	}
	if told >= minRAM && told < p.size {
		add(told)
	}
	if whole := p.size &^ (mib - 1); whole >= minRAM {
		add(whole)
	}
	return out
}

func blocksSize(l []procram.Block) (n uint64) {
	for _, b := range l {
		n += b.Size
	}
	return n
}

// covered is what of the process's address space blocks are, in whatever order.
func covered(blocks []procram.Block) (out []procram.Span) {
	for _, b := range slices.SortedFunc(slices.Values(blocks), func(a, b procram.Block) int { return cmp.Compare(a.HVA, b.HVA) }) {
		if n := len(out); n > 0 && out[n-1].Start+out[n-1].Size == b.HVA {
			out[n-1].Size += b.Size
			continue
		}
		out = append(out, procram.Span{Start: b.HVA, Size: b.Size})
	}
	return out
}

func sameBlocks(a, b []procram.Block) bool {
	return slices.EqualFunc(a, b, func(a, b procram.Block) bool { return a.HVA == b.HVA && a.Size == b.Size })
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
