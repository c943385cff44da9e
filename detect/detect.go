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
	"time"

	"vmscope"
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
	return []Detector{Text{ref}, Rodata{ref}, Pages{}, Syscalls{}, Interrupts{}, Ftrace{}, Kprobes{}, Tracepoints{}, Modules{}, Processes{}, Hooks{}, Creds{}, BPF{}, Injection{}}
}

// Result is what a sweep came to.
type Result struct {
	Findings []Finding `json:"findings"`
	Checks   []Check   `json:"checks"`
}

// Check is how one detector fared.
type Check struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
	// Err is why it could not tell, or not all; nil when it could.
	Err error `json:"-"`
}

// Tampered are the findings that speak of tampering: all but inventory.
func (r Result) Tampered() []Finding {
	return slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool { return f.Severity == Info })
}

// Err joins what the checks could not do.
func (r Result) Err() error {
	var errs []error
	for _, c := range r.Checks {
		if c.Err != nil {
			errs = append(errs, fmt.Errorf("check %s: %w", c.Name, c.Err))
		}
	}
	return errors.Join(errs...)
}

// maxFindings bounds what one detector reports in a sweep; the guest must not
// choose how much memory a list of findings takes.
const maxFindings = 1000

// Sweep runs detectors over one look. That the guest's structures contradict
// themselves (mem.ErrInconsistent) is a finding of its own; any other error of a
// detector is in its Check.
func Sweep(ctx context.Context, v *vmscope.View, detectors []Detector) Result {
	l := newLook(v)
	var r Result
	for _, d := range detectors {
		if ctx.Err() != nil {
			break
		}
		start, seen := time.Now(), 0
		err := d.Inspect(ctx, l, func(f Finding) {
			if seen++; seen <= maxFindings && !slices.ContainsFunc(r.Findings, func(g Finding) bool { return g.ID == f.ID }) {
				r.Findings = append(r.Findings, f)
			}
		})
		if seen > maxFindings {
			err = errors.Join(err, fmt.Errorf("%d findings, of which %d are shown", seen, maxFindings))
		}
		if errors.Is(err, mem.ErrInconsistent) {
			r.Findings = append(r.Findings, contradiction(d.Name(), err))
			err = nil
		}
		r.Checks = append(r.Checks, Check{Name: d.Name(), Took: time.Since(start), Err: err})
	}
	return r
}

// contradiction is the finding that a structure of the guest does not hold
// together, also when it was read again.
func contradiction(check string, err error) Finding {
	f := Finding{
		Check: check, Severity: Medium, Confidence: Possible,
		Summary:  "the kernel's structures contradict themselves: " + err.Error(),
		Evidence: []Evidence{{What: err.Error()}},
	}
	if fault := (*mem.FaultError)(nil); errors.As(err, &fault) {
		f.Evidence[0].Addr = mem.VA(fault.Addr)
	}
	f.identify("contradiction")
	return f
}
