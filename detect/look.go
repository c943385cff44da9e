package detect

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"vmscope"
	"vmscope/arch/x86"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Look is one look at a guest, with what several detectors need, worked out
// once.
type Look struct {
	*vmscope.View

	code    func() (Code, error)
	allCode func() (Code, error)
	pages   func() ([]x86.Region, error)
	symbols func() (*linux.Resolver, error)
}

func newLook(v *vmscope.View) *Look {
	return &Look{
		View: v,
		allCode: sync.OnceValues(func() (Code, error) {
			list, err := v.Code()
			more, merr := v.ClassicBPF()
			return flatten(append(list, more...)), errors.Join(err, merr)
		}),
		code: sync.OnceValues(func() (Code, error) {
			list, err := v.Code()
			return flatten(list), err
		}),
		pages:   sync.OnceValues(func() ([]x86.Region, error) { return executable(v) }),
		symbols: sync.OnceValues(v.Resolver),
	}
}

// Code is the memory whose code the kernel accounts for. It may come with an
// error, and then lacks some.
func (l *Look) Code() (Code, error) { return l.code() }

// AllCode is Code with that of classic BPF programs, which the kernel lists
// nowhere.
func (l *Look) AllCode() (Code, error) { return l.allCode() }

// Code is a list of runs of code that do not overlap, by address.
type Code []kernel.Code

// flatten cuts what overlaps: the run that begins first keeps its bytes.
func flatten(list []kernel.Code) Code {
	slices.SortStableFunc(list, func(a, b kernel.Code) int { return cmp.Compare(a.Start, b.Start) })
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

// Owner is the run that va lies in.
func (c Code) Owner(va mem.VA) (kernel.Code, bool) {
	i := sort.Search(len(c), func(i int) bool { return c[i].Start > va })
	if i == 0 || uint64(va-c[i-1].Start) >= c[i-1].Size {
		return kernel.Code{}, false
	}
	return c[i-1], true
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

// kernelHalf is where the kernel's half of the address space begins, at most
// (5-level paging; arch/x86: Documentation/arch/x86/x86_64/mm.rst).
const kernelHalf mem.VA = 0xff00000000000000

// executable lists what the kernel's page tables let it execute in its half.
func executable(v *vmscope.View) ([]x86.Region, error) {
	var out []x86.Region
	for r, err := range x86.NewPaging(v.Phys, v.Root, v.Mode).Mappings(kernelHalf, ^mem.VA(0)) {
		if err != nil {
			return out, err
		}
		if r.Perm&mem.Exec == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].VA+mem.VA(out[n-1].Size) == r.VA && out[n-1].Perm == r.Perm {
			out[n-1].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out, nil
}
