package detect

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrProcessor is why a check does not look at a guest: what it goes by is
// another processor's. It is an errors.ErrUnsupported.
var ErrProcessor = errors.New("not on this processor")

// processorError is ErrProcessor for an architecture.
type processorError string

func (e processorError) Error() string { return fmt.Sprintf("%v (%s)", ErrProcessor, string(e)) }

func (processorError) Is(err error) bool { return err == ErrProcessor || err == errors.ErrUnsupported }

// anywhere are the checks that go by lists, tables and pointers which are the same
// on all processors of 64 bits; each is proved on AArch64 (TestTampering). The
// others know instructions, page permissions, entries or conventions of x86-64.
var anywhere = []string{"rodata", "ftrace", "kprobes", "tracepoints", "modules", "processes", "hooks", "creds", "bpf"}

// fits says with an error that a check of this package does not hold on a kernel
// of an architecture, as uname -m prints that.
func fits(check, arch string) error {
	switch {
	case arch == "x86_64",
		arch == "aarch64" && slices.Contains(anywhere, check),
		!slices.ContainsFunc(All(), func(d Detector) bool { return d.Name() == check }):
		return nil
	}
	return processorError(arch)
}

// errProcessor says in one line which checks were not made, and which were.
func errProcessor(checks []Check) error {
	var not, made []string
	var why error
	for _, c := range checks {
		switch {
		case errors.Is(c.Err, ErrProcessor):
			not, why = append(not, c.Name), c.Err
		case c.Err == nil:
			made = append(made, c.Name)
		}
	}
	if why == nil {
		return nil
	}
	told := "none was made"
	if len(made) > 0 {
		told = "made were " + strings.Join(made, ", ")
	}
	return fmt.Errorf("checks %s: %w; %s", strings.Join(not, ", "), why, told)
}
