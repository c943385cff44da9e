package xen

import (
	"fmt"
	"slices"

	"vmscope/mem"
)

// nested is the frames of an HVM or PVH guest: it numbers them as Xen does for it.
type nested struct {
	host   *host
	domain uint16
	ram    []mem.Range
}

// frameRun turns page numbers into frames.
func (s *nested) frameRun(first uint64, n int) ([]uint64, []error, error) {
	frames, faults := make([]uint64, n), make([]error, n)
	for i := range frames {
		frames[i] = first + uint64(i)
	}
	return frames, faults, nil
}

// fault tells of a page that Xen does not map: memory to the guest all the same, it is another domain's; where there was
// RAM when the machine was opened, the guest has given it back since.
func (s *nested) fault(page uint64, err error) error {
	switch {
	case err != mem.ErrNoRAM:
		return err
	case s.host.isMemory(s.domain, page):
		return ErrGrant
	case within(s.ram, mem.PA(page*mem.PageSize)):
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

// maxGFN bounds how far up frames are looked for: 16 TiB.
const maxGFN = 1 << 32

// findRAM finds which frames an HVM or PVH domain has, by asking Xen for their types: there is no list of them, and
// between them are holes of gigabytes. The highest frame that Xen tells of is no bound for us: it is wherever the guest
// ever had a page put, of its own or of Xen's. Toolstacks lay RAM out from 0 on, with a hole of at most 4 GiB. There each
// frame is asked for if samples miss some, as of a guest that gave most of its memory back in small pieces. What is still
// missing then is looked for farther up, by samples.
func (x *host) findRAM(d Domain) ([]mem.Range, error) {
	arg := le.AppendUint16(nil, d.ID)
	highest, _, err := x.memory(memoryMaximumGFN, arg, nil)
	if err != nil {
		return nil, err
	}
	if err := x.checkPoD(d); err != nil {
		return nil, err
	}
	end := min(highest, maxGFN-1)/blockPages + 1
	near := min(end, (min(d.maxPages, maxGFN)+maxHole)/blockPages+1)
	// A few special pages (the store's, the console's) lie alone, near the top.
	const special = 64
	s := &scan{host: x, domain: d.ID, enough: d.RAM/mem.PageSize - min(d.RAM/mem.PageSize, special)}
	if err := s.blocks(0, near, true); err != nil {
		return nil, err
	}
	if s.found < s.enough {
		s.found, s.ram = 0, nil
		if err := s.blocks(0, near, false); err != nil {
			return nil, err
		}
	}
	const group = pageInfoMax / blockSamples
	for at := near; at < end && s.found < s.enough; at += group {
		if err := s.blocks(at, min(at+group, end), true); err != nil {
			return nil, err
		}
	}
	return s.ram, nil
}

// scan collects the frames that a domain has.
type scan struct {
	host   *host
	domain uint16
	enough uint64 // frames
	found  uint64 // frames
	ram    runs
	asked  []uint64 // frames whose types are to be asked for
}

// blocks looks into those from one on up to another: into all, or only into those of which a sample is there.
func (s *scan) blocks(from, to uint64, sample bool) error {
	const group = pageInfoMax / blockSamples
	for at := from; at < to; at += group {
		n := min(group, to-at)
		there := func(uint64) bool { return true }
		if sample {
			frames := make([]uint64, 0, pageInfoMax)
			for i := range n * blockSamples {
				frames = append(frames, at*blockPages+i*(blockPages/blockSamples))
			}
			types, err := s.host.types(s.domain, frames)
			if err != nil {
				return err
			}
			there = func(i uint64) bool { return slices.ContainsFunc(types[i*blockSamples:(i+1)*blockSamples], present) }
		}
		for i := range n {
			if !there(i) {
				continue
			}
			for k := range uint64(blockPages) {
				s.asked = append(s.asked, (at+i)*blockPages+k)
			}
			if len(s.asked) >= pageInfoMax {
				if err := s.ask(); err != nil {
					return err
				}
			}
		}
	}
	return s.ask()
}

// ask takes those of the frames asked for that are there.
func (s *scan) ask() error {
	types, err := s.host.types(s.domain, s.asked)
	if err != nil {
		return err
	}
	if err := s.host.xenPages(s.domain, s.asked, types); err != nil {
		return err
	}
	for i, t := range types {
		if present(t) {
			s.found++
			s.ram.add(s.asked[i])
		}
	}
	s.asked = s.asked[:0]
	return nil
}

func present(t uint32) bool { return t < typeBroken }

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
