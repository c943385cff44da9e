// Package detect says whether a guest's kernel is still what it should be, and
// shows the evidence where it is not.
//
// A Detector looks at one thing: whose code is in the kernel's pages, where
// system calls lead, which processes and modules are hidden. Sweep runs
// detectors over one look at a guest. Each is in a file of its own; All lists
// them.
//
// All that detectors read was written by the guest. A structure that
// contradicts itself is a finding as well.
package detect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vmscope"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Detector finds one kind of tampering.
type Detector interface {
	// Name is the check's name, one word: "syscalls".
	Name() string
	// Inspect looks at the guest and reports what it finds. An error says that
	// it could not tell; what it has reported stands. It must be safe to call
	// for looks at different guests one after the other.
	Inspect(ctx context.Context, l *Look, report func(Finding)) error
}

// All are the detectors of this package, in the order in which they run, with an
// empty Reference of their own.
func All() []Detector { return Against(NewReference()) }

// Against is All with a Reference to compare with and to fill.
func Against(ref *Reference) []Detector {
	return []Detector{Text{ref}, Rodata{ref}, Pages{}, Frames{}, Syscalls{}, Interrupts{}, Ftrace{}, Kprobes{}, Tracepoints{}, Modules{}, Processes{}, Hooks{}, Creds{}, BPF{}, Injection{}}
}

// Result is what a sweep came to.
type Result struct {
	Findings []Finding `json:"findings"`
	Checks   []Check   `json:"checks"`
	// Gone says that the kernel just boots, or is not there any more, or does not
	// run: what was found may be what a reboot left, and another look will tell.
	Gone bool `json:"gone,omitempty"`
}

// Check is how one detector fared.
type Check struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
	// Err is why it could not tell, or not all; nil when it could.
	Err error `json:"-"`
	// Broken says that it met a contradiction, which is among the findings, and
	// may not have seen what lies behind it.
	Broken bool `json:"broken,omitempty"`
	// Lacks is what it could have looked at, and the source of the memory does not
	// tell: registers.
	Lacks []string `json:"lacks,omitempty"`
}

// Tampered are the findings that speak of tampering: all but inventory.
func (r Result) Tampered() []Finding {
	return slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool { return f.Severity == Info })
}

// Err joins what the checks could not do.
func (r Result) Err() error {
	var errs []error
	if r.Gone && len(r.Checks) == 0 {
		errs = append(errs, ErrGone)
	}
	errs = append(errs, errProcessor(r.Checks))
	of := make(map[string][]string) // checks that cannot tell for the same reason, by that
	for _, c := range r.Checks {
		if c.Err != nil {
			of[c.Err.Error()] = append(of[c.Err.Error()], c.Name)
		}
	}
	for _, c := range r.Checks {
		if c.Err == nil || errors.Is(c.Err, ErrProcessor) {
			continue
		}
		if names := of[c.Err.Error()]; names[0] == c.Name {
			errs = append(errs, fmt.Errorf("check %s: %w", strings.Join(names, ", "), c.Err))
		}
	}
	return errors.Join(errs...)
}

// maxFindings bounds what one detector reports in a sweep, of inventory and of
// all else; the guest must not choose how much memory a list of findings takes.
const maxFindings = 1000

// Sweep runs detectors over one look. That the guest's structures contradict
// themselves (mem.ErrInconsistent), or lead where nothing is mapped, is a finding
// of its own; any other error of a detector is in its Check, also ErrProcessor of
// one that does not know the guest's processor. A guest that boots, or
// goes meanwhile, makes it Gone.
func Sweep(ctx context.Context, v *vmscope.View, detectors []Detector) Result {
	l := newLook(v)
	if booting(l) {
		return Result{Gone: true}
	}
	began, _ := v.StillRuns(linux.Beat{})
	r := sweep(ctx, l, detectors)
	r.Gone = !v.Still() && len(r.Tampered()) > 0 && gone(ctx, l, began)
	return r
}

// sweep is Sweep of a kernel that is up and goes on to be.
func sweep(ctx context.Context, l *Look, detectors []Detector) (r Result) {
	ids := make(map[string]bool)
	for _, d := range detectors {
		if ctx.Err() != nil {
			break
		}
		c := Check{Name: d.Name(), Err: fits(d.Name(), l.Arch)}
		if c.Err == nil {
			c.Err = l.NeedData()
		}
		if c.Err != nil {
			r.Checks = append(r.Checks, c)
			continue
		}
		start, shown, more := time.Now(), make(map[bool]int), 0
		*l.lacks = nil
		c.Err = d.Inspect(ctx, l, func(f Finding) {
			inventory := f.Severity == Info // must not push out anything else
			switch {
			case ids[f.key()]:
			case shown[inventory] >= maxFindings:
				more++
			default:
				ids[f.key()] = true
				shown[inventory]++
				r.Findings = append(r.Findings, f)
			}
		})
		if contradicts(c.Err) {
			r.Findings = append(r.Findings, contradiction(d.Name(), c.Err))
			c.Broken, c.Err = true, nil
		}
		if more > 0 {
			c.Err = errors.Join(c.Err, fmt.Errorf("more than %d findings, not all of which are shown", maxFindings))
		}
		c.Took, c.Lacks = time.Since(start), *l.lacks
		r.Checks = append(r.Checks, c)
	}
	return r
}

// lowest is below all addresses at which anything lies: what leads below is a
// pointer that was not set, as of a kernel that just boots (mmap_min_addr).
const lowest = 1 << 16

// contradicts reports whether an error is a contradiction of the guest's
// structures. A pointer to memory that is not mapped is one, as long as it is
// set.
func contradicts(err error) bool {
	if errors.Is(err, mem.ErrInconsistent) {
		return true
	}
	fault := (*mem.FaultError)(nil)
	return errors.Is(err, mem.ErrNotMapped) && errors.As(err, &fault) && fault.Addr >= lowest
}

// contradiction is the finding that a structure of the guest does not hold
// together, also when it was read again.
func contradiction(check string, err error) Finding {
	text := clip(err.Error())
	f := Finding{
		Check: check, Severity: Medium, Confidence: Possible,
		Summary:  "the kernel's structures contradict themselves: " + text,
		Evidence: []Evidence{{What: text}},
	}
	if fault := (*mem.FaultError)(nil); errors.As(err, &fault) {
		f.Evidence[0].Addr = mem.VA(fault.Addr)
	}
	f.identify("contradiction")
	return f
}

// maxTold bounds what is told of errors, bytes: many may be joined.
const maxTold = 2 << 10

func clip(s string) string {
	if len(s) > maxTold {
		return s[:maxTold] + "…"
	}
	return s
}
