package detect

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"vmscope"
	"vmscope/arch"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Look is one look at a guest, with what several detectors need, worked out
// once.
type Look struct {
	*vmscope.View

	list    func() ([]kernel.Code, error)
	code    func() (Code, error)
	allCode func() (Code, error)
	pages   func() ([]arch.Region, error)
	symbols func() (*linux.Resolver, error)

	lacks *[]string // what the check at hand cannot look at; see Check.Lacks
}

func newLook(v *vmscope.View) *Look {
	list := sync.OnceValues(v.Code)
	return &Look{
		View:  v,
		list:  list,
		lacks: new([]string),
		allCode: sync.OnceValues(func() (Code, error) {
			list, err := list()
			more, merr := v.ClassicBPF()
			return flatten(slices.Concat(list, more)), errors.Join(err, merr)
		}),
		code: sync.OnceValues(func() (Code, error) {
			list, err := list()
			if !slices.ContainsFunc(list, func(c kernel.Code) bool { return c.Kind == "kernel" }) {
				return nil, errors.Join(err, errors.New("where the kernel's own code lies is not known"))
			}
			return flatten(slices.Clone(list)), err
		}),
		pages:   sync.OnceValues(func() ([]arch.Region, error) { return executable(v) }),
		symbols: sync.OnceValues(v.Resolver),
	}
}

// renew works out everything anew.
func (l *Look) renew() {
	lacks := l.lacks
	*l = *newLook(l.View)
	l.lacks = lacks
}

// forget drops what the look has cached of memory.
func forget(l *Look) {
	if c, ok := l.Phys.(*mem.Cache); ok {
		c.Forget()
	}
}

// Code is the memory whose code the kernel accounts for. It may come with an
// error, and then lacks some, but never the kernel's own, or all.
func (l *Look) Code() (Code, error) { return l.code() }

// AllCode is Code with that of classic BPF programs, which the kernel lists
// nowhere.
func (l *Look) AllCode() (Code, error) { return l.allCode() }

// Code is a list of runs of code that do not overlap, by address.
type Code []kernel.Code

// flatten cuts what overlaps. The kernel's image keeps its bytes, then modules
// keep theirs, whatever else claims them; of the same rank the run does that
// begins first.
func flatten(list []kernel.Code) Code {
	rank := func(c kernel.Code) int {
		switch c.Kind {
		case "kernel", "init":
			return 0
		case "module":
			return 1
		}
		return 2
	}
	slices.SortStableFunc(list, func(a, b kernel.Code) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Start, b.Start))
	})
	var out Code
	for len(list) > 0 {
		n := 1
		for n < len(list) && rank(list[n]) == rank(list[0]) {
			n++
		}
		var more Code
		for _, c := range inOrder(list[:n]) {
			for _, free := range out.gaps(c.Start, c.Start+mem.VA(c.Size)-1) {
				c.Start, c.Size = free.first, uint64(free.last-free.first)+1
				more = append(more, c)
			}
		}
		out, list = append(out, more...), list[n:]
		slices.SortFunc(out, func(a, b kernel.Code) int { return cmp.Compare(a.Start, b.Start) })
	}
	return out
}

// inOrder are the runs of a list that is sorted, without what others had before.
func inOrder(list []kernel.Code) Code {
	var out Code
	end := mem.VA(0)
	for _, c := range list {
		last := c.Start + mem.VA(c.Size) - 1
		if c.Size == 0 || last < c.Start || last < end {
			continue
		}
		if c.Start < end {
			c.Start, c.Size = end, uint64(last-end)+1
		}
		out = append(out, c)
		if end = last + 1; end == 0 {
			break
		}
	}
	return out
}

// span is the run of addresses from first to last, both included.
type span struct{ first, last mem.VA }

// gaps are the parts of first to last that lie in no run of c.
func (c Code) gaps(first, last mem.VA) []span {
	var out []span
	i := sort.Search(len(c), func(i int) bool { return c[i].Start+mem.VA(c[i].Size)-1 >= first })
	for _, run := range c[i:] {
		end := run.Start + mem.VA(run.Size) - 1
		switch {
		case run.Start > last:
			return append(out, span{first, last})
		case run.Start > first:
			out = append(out, span{first, run.Start - 1})
		}
		if end >= last {
			return out
		}
		first = end + 1
	}
	return append(out, span{first, last})
}

// Owner is the run that va lies in.
func (c Code) Owner(va mem.VA) (kernel.Code, bool) {
	i := sort.Search(len(c), func(i int) bool { return c[i].Start > va })
	if i == 0 || uint64(va-c[i-1].Start) >= c[i-1].Size {
		return kernel.Code{}, false
	}
	return c[i-1], true
}

// callable reports whether the kernel calls code of a kind by pointers. Init text
// was freed; slots of kprobes and real-mode code are reached by other ways.
func callable(c kernel.Code) bool {
	return c.Kind != "init" && c.Kind != "kprobe" && c.Kind != "realmode"
}

// OwnerName says whose code va lies in, for evidence.
func (c Code) OwnerName(va mem.VA) string {
	o, ok := c.Owner(va)
	switch {
	case !ok:
		return "nobody"
	case o.Kind == "kernel":
		return "the kernel"
	}
	return fmt.Sprintf("%s %s", o.Kind, o.Name)
}

// Name names an address by the nearest symbol below it: "do_exit+0x10",
// "probe [bridge]+0x4"; "" if there is none within 1 MiB.
func (l *Look) Name(va mem.VA) string {
	r, _ := l.symbols() // with the modules that could be listed
	s, off, err := r.Nearest(va)
	if err != nil || off > 1<<20 {
		return ""
	}
	name := s.String()
	if off != 0 {
		name += fmt.Sprintf("+%#x", off)
	}
	return name
}

// kernelHalf is where the kernel's half of an address space of 64 bits begins, at
// most (Documentation/arch/x86/x86_64/mm.rst, 5-level paging).
const kernelHalf mem.VA = 0xff00000000000000

// maxRegions bounds what is kept of executable memory: a kernel with a page for
// each BPF program and module has some thousand. Tables that refer to each other
// can make millions out of three pages.
const maxRegions = 1 << 16

// executable lists what the kernel's page tables let it execute in its half. A
// table that lies outside of RAM is a contradiction, beside what else there is:
// nothing but a table leads there, and the CPU would fault.
func executable(v *vmscope.View) ([]arch.Region, error) {
	var out []arch.Region
	var bad error
	for r, err := range v.Mode.Kernel(v.Phys, v.Root).Mappings(kernelHalf, ^mem.VA(0)) {
		switch {
		case errors.Is(err, mem.ErrNoRAM):
			if bad == nil {
				bad = fmt.Errorf("%w: %w", mem.ErrInconsistent, err)
			}
			continue
		case err != nil:
			return out, errors.Join(err, bad)
		case r.Perm&mem.Exec == 0:
			continue
		}
		if n := len(out); n > 0 && out[n-1].VA+mem.VA(out[n-1].Size) == r.VA && out[n-1].Perm == r.Perm {
			out[n-1].Size += r.Size
			continue
		}
		if len(out) == maxRegions {
			return out, errors.Join(&mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(r.VA), Err: fmt.Errorf("%w: more than %d regions of executable memory", mem.ErrInconsistent, maxRegions)}, bad)
		}
		out = append(out, r)
	}
	return out, bad
}
