package xen

import (
	"fmt"
	"slices"

	"vmscope/mem"
)

// nested is the frames of an HVM or PVH guest: it numbers them as Xen does for it.
type nested struct {
	ram []mem.Range
}

// frameRun turns page numbers into frames.
func (s *nested) frameRun(first uint64, n int) ([]uint64, []error, error) {
	frames, faults := make([]uint64, n), make([]error, n)
	for i := range frames {
		frames[i] = first + uint64(i)
	}
	return frames, faults, nil
}

// fault tells of a page that Xen does not map: where there was RAM when the machine was opened, the guest has given it
// back since.
func (s *nested) fault(page uint64, err error) error {
	if err == mem.ErrNoRAM && within(s.ram, mem.PA(page*mem.PageSize)) {
		return ErrBallooned
	}
	return err
}

func within(l []mem.Range, pa mem.PA) bool {
	i, found := slices.BinarySearchFunc(l, pa, func(r mem.Range, pa mem.PA) int {
		switch {
		case r.End() <= pa:
			return -1
		case r.Start > pa:
			return 1
		}
		return 0
	})
	return found && i < len(l)
}

// Blocks of 2 MiB are what a guest's RAM mostly consists of. A block is looked at more closely if one of some pages of it
// is there.
const (
	blockPages   = 512
	blockSamples = 8
)

// maxGFN bounds what Xen says is the highest frame: 16 TiB.
const maxGFN = 1 << 32

// findRAM finds which frames an HVM or PVH domain has, by asking Xen for their types: there is no list of them, and
// between them are holes of gigabytes. If samples miss some (a guest that gave most of its memory back in small pieces),
// every frame is asked for.
func (x *host) findRAM(d Domain) ([]mem.Range, error) {
	arg := le.AppendUint16(nil, d.ID)
	highest, _, err := x.memory(memoryMaximumGFN, arg, nil)
	if err != nil {
		return nil, err
	}
	if highest >= maxGFN {
		return nil, fmt.Errorf("domain %d: highest frame %#x: %w", d.ID, highest, mem.ErrInconsistent)
	}
	if err := x.checkPoD(d); err != nil {
		return nil, err
	}
	blocks := highest/blockPages + 1
	var samples []uint64
	for b := range blocks {
		for s := uint64(0); s < blockSamples; s++ {
			samples = append(samples, b*blockPages+s*blockPages/blockSamples)
		}
	}
	types, err := x.types(d.ID, samples)
	if err != nil {
		return nil, err
	}
	there := func(b uint64) bool {
		return slices.ContainsFunc(types[b*blockSamples:(b+1)*blockSamples], present)
	}
	ram, err := x.presentFrames(d.ID, blocks, there)
	if err != nil {
		return nil, err
	}
	// A few special pages (the store's, the console's) lie alone, near the top.
	const special = 64
	if pages(ram)+special >= d.RAM/mem.PageSize {
		return ram, nil
	}
	return x.presentFrames(d.ID, blocks, func(uint64) bool { return true })
}

func present(t uint32) bool { return t < typeBroken }

func pages(l []mem.Range) (n uint64) {
	for _, r := range l {
		n += r.Size / mem.PageSize
	}
	return n
}

// presentFrames lists the frames that are there in those blocks that ask picks.
func (x *host) presentFrames(domain uint16, blocks uint64, ask func(block uint64) bool) ([]mem.Range, error) {
	var out runs
	frames := make([]uint64, 0, pageInfoMax)
	flush := func() error {
		types, err := x.types(domain, frames)
		if err != nil {
			return err
		}
		if err := x.xenPages(domain, frames, types); err != nil {
			return err
		}
		for i, t := range types {
			if present(t) {
				out.add(frames[i])
			}
		}
		frames = frames[:0]
		return nil
	}
	for b := range blocks {
		if !ask(b) {
			continue
		}
		for i := range uint64(blockPages) {
			frames = append(frames, b*blockPages+i)
		}
		if len(frames) == pageInfoMax {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// xenPages finds pages of Xen's own among the absent ones that lie between RAM: a guest may have Xen put its shared_info
// into a frame. Xen tells no type of it, but maps it.
func (x *host) xenPages(domain uint16, frames []uint64, types []uint32) error {
	var absent []int
	var ask []uint64
	any := false
	for i, t := range types {
		if present(t) {
			any = true
		} else {
			absent, ask = append(absent, i), append(ask, frames[i])
		}
	}
	if !any || len(ask) == 0 {
		return nil
	}
	m, err := x.mapFrames(domain, ask, false)
	if err != nil {
		return fmt.Errorf("%w: map %d frames of domain %d: %w", mem.ErrUnreachable, len(ask), domain, err)
	}
	for i, at := range absent {
		if m.errs[i] == 0 {
			types[at] = 0
		}
	}
	return m.unmap()
}

// runs joins page numbers, which come in order, to ranges.
type runs []mem.Range

func (r *runs) add(page uint64) {
	pa := mem.PA(page * mem.PageSize)
	if n := len(*r); n > 0 && (*r)[n-1].End() == pa {
		(*r)[n-1].Size += mem.PageSize
		return
	}
	*r = append(*r, mem.Range{Start: pa, Size: mem.PageSize})
}

// checkPoD refuses a guest whose frames are still to be filled on first use (populate on demand): to look at one would fill
// it, and more of them are promised than there is memory. Its balloon driver has not started yet.
func (x *host) checkPoD(d Domain) error {
	// struct xen_pod_target: target_pages, tot_pages, pod_cache_pages, pod_entries, domid.
	arg := make([]byte, 40)
	le.PutUint16(arg[32:], d.ID)
	_, r, err := x.memory(memoryPoDTarget, arg, nil)
	if err != nil {
		return nil // a domain, or a Xen, without
	}
	if n := le.Uint64(r.union[24:]); n > 0 {
		return fmt.Errorf("domain %d: %d frames are filled on first use, which a look would be: wait until the guest's balloon driver has started", d.ID, n)
	}
	return nil
}
