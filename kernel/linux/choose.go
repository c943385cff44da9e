package linux

import (
	"fmt"
	"slices"
	"time"

	"vmscope/arch/x86"
	"vmscope/mem"
	"vmscope/vm"
)

// patience is how long the clocks of several candidates are watched. A guest
// that is wholly idle may not tick for that long; then the time of day decides.
const patience = 2 * time.Second

// choose picks the running kernel among candidates that all hold together: a
// kernel of an earlier boot whose memory nobody has overwritten yet looks just
// like it. What decides is said in the report, and the others with it.
func (f *finder) choose(found []*Kernel) (*Kernel, error) {
	found = distinct(found)
	if len(found) == 1 {
		k := found[0]
		switch n, of := f.onCPU(k); {
		case n > 0:
			k.Report.Findings = append(k.Report.Findings, Finding{"running", fmt.Sprintf("page tables of %d of %d vCPUs map it", n, of), "registers", "proved"})
		case of > 0:
			k.Report.Contradictions = append(k.Report.Contradictions, fmt.Sprintf("none of %d vCPUs runs on page tables that map this kernel", of))
		}
		return k, nil
	}
	k, why := f.byRegisters(found)
	if k == nil {
		k, why = f.byBeat(found)
	}
	if k == nil {
		k, why = byDoubt(found)
	}
	if k == nil {
		k, why = f.byTime(found)
	}
	if k == nil {
		return nil, fmt.Errorf("%d kernels hold together in this memory and nothing tells which one runs: %w", len(found), mem.ErrInconsistent)
	}
	for _, o := range found {
		if o != k {
			f.reject(fmt.Errorf("kernel %s with _stext at physical %#x does not run: %s", o.Release, uint64(o.Phys), why))
		}
	}
	k.Report.Findings = append(k.Report.Findings, Finding{"running", why, fmt.Sprintf("choice among %d kernels", len(found)), "proved"})
	f.step("choose the running kernel", "%s", why)
	return k, nil
}

// distinct drops candidates that are the same kernel, found twice: VMCOREINFO
// stands in RAM in two copies.
func distinct(found []*Kernel) []*Kernel {
	var out []*Kernel
	for _, k := range found {
		same := slices.IndexFunc(out, func(o *Kernel) bool { return o.Root == k.Root && o.Phys == k.Phys && o.Text == k.Text })
		switch {
		case same < 0:
			out = append(out, k)
		case len(k.Report.Contradictions) < len(out[same].Report.Contradictions):
			out[same] = k // a forged text beside the true one
		}
	}
	return out
}

// byDoubt picks the only one without contradictions.
func byDoubt(found []*Kernel) (*Kernel, string) {
	k := only(found, func(k *Kernel) bool { return len(k.Report.Contradictions) == 0 })
	return k, "what it says of itself agrees"
}

// onCPU counts the vCPUs that run k.
func (f *finder) onCPU(k *Kernel) (n, of int) {
	v := k.View(f.phys)
	for _, c := range f.hints.CPUs {
		if !c.Valid {
			continue
		}
		of++
		if v.RunsOn(c) {
			n++
		}
	}
	return n, of
}

// RunsOn reports whether the page tables of a vCPU map the kernel where it lies.
// With page-table isolation a vCPU in user mode has a root that lacks the kernel;
// its other half has it.
func (v *View) RunsOn(c vm.Registers) bool {
	mode := x86.ModeOf(c.CR0, c.CR4, c.EFER)
	for _, root := range []mem.PA{mem.PA(c.CR3), x86.KernelRoot(mem.PA(c.CR3))} {
		if leads(mem.NewSpace("vCPU", v.Phys, x86.NewPaging(v.Phys, root, mode)), v.Text, v.Kernel.Phys) == nil {
			return true
		}
	}
	return false
}

// only returns the one kernel for which is holds, or nil.
func only(found []*Kernel, is func(*Kernel) bool) (one *Kernel) {
	for _, k := range found {
		if is(k) {
			if one != nil {
				return nil
			}
			one = k
		}
	}
	return one
}

func (f *finder) byRegisters(found []*Kernel) (*Kernel, string) {
	k := only(found, func(k *Kernel) bool { n, _ := f.onCPU(k); return n > 0 })
	return k, "the vCPUs run on its page tables"
}

// byBeat watches which clock goes on. Only a running kernel's does.
func (f *finder) byBeat(found []*Kernel) (*Kernel, string) {
	// Not only where the source is known to be live: a file may be the RAM of a
	// guest that runs.
	first := make(map[*Kernel]uint64)
	for _, k := range found {
		first[k], _ = k.View(f.phys).Jiffies()
	}
	for end := time.Now().Add(patience); time.Now().Before(end) && f.ctx.Err() == nil; {
		time.Sleep(10 * time.Millisecond)
		k := only(found, func(k *Kernel) bool {
			j, err := k.View(f.phys).Jiffies()
			return err == nil && j != first[k]
		})
		if k != nil {
			return k, "its clock goes on, the others stand still"
		}
	}
	return nil, ""
}

// byTime picks the latest time of day: an earlier boot stopped earlier.
func (f *finder) byTime(found []*Kernel) (*Kernel, string) {
	var best *Kernel
	var latest time.Time
	for _, k := range found {
		v := k.View(f.phys)
		if k.Types == nil {
			k.Types, k.TypesErr = k.btf(v)
		}
		t, err := v.WallClock()
		if err != nil {
			continue
		}
		switch {
		case t.After(latest):
			best, latest = k, t
		case t.Equal(latest):
			best = nil
		}
	}
	return best, "its time of day is the latest: " + latest.Format(time.RFC3339)
}
