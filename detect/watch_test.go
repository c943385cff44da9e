package detect

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestCompare(t *testing.T) {
	f := func(check, id string) Finding { return Finding{Check: check, ID: id} }
	worse := f("b", "b1")
	worse.Severity = High
	broken := Check{Name: "a", Broken: true}
	fine, not := func(name string) Check { return Check{Name: name} }, func(name string) Check { return Check{Name: name, Err: errors.New("no")} }
	var known []Finding
	for i, step := range []struct {
		r    Result
		want []string
	}{
		{Result{Findings: []Finding{f("a", "a1"), f("b", "b1")}, Checks: []Check{fine("a"), fine("b")}}, []string{"a1", "b1"}},
		{Result{Findings: []Finding{f("a", "a1"), f("b", "b1")}, Checks: []Check{fine("a"), fine("b")}}, nil},
		{Result{Findings: []Finding{f("a", "a2")}, Checks: []Check{fine("a"), not("b")}}, []string{"a2", "-a1"}},
		{Result{}, nil}, // nothing could be looked at
		{Result{Checks: []Check{fine("a"), fine("b")}}, []string{"-a2", "-b1"}},
		{Result{Findings: []Finding{f("b", "b1")}, Checks: []Check{fine("a"), fine("b")}}, []string{"b1"}},
		{Result{Findings: []Finding{worse}, Checks: []Check{fine("a"), fine("b")}}, []string{"b1", "-b1"}},
		{Result{Findings: []Finding{worse, f("a", "a3")}, Checks: []Check{fine("a"), fine("b")}}, []string{"a3"}},
		{Result{Findings: []Finding{worse, f("a", "contradiction")}, Checks: []Check{broken, fine("b")}}, []string{"contradiction"}}, // a3 may be behind it
		{Result{Findings: []Finding{worse}, Checks: []Check{fine("a"), fine("b")}}, []string{"-contradiction", "-a3"}},
	} {
		var changes []Change
		changes, known = compare(known, step.r)
		var got []string
		for _, c := range changes {
			got = append(got, fmt.Sprintf("%s%s", map[bool]string{true: "-"}[c.Gone], c.ID))
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("sweep %d: %q, want %q", i, got, step.want)
		}
	}
}

// TestCompareBounded has a check that never can tell find other things each time:
// what is known must not grow for days.
func TestCompareBounded(t *testing.T) {
	var known []Finding
	for n := range 5 {
		r := Result{Checks: []Check{{Name: "a", Err: errors.New("no")}}}
		for i := range maxFindings {
			r.Findings = append(r.Findings, Finding{Check: "a", ID: fmt.Sprintf("%d of %d", i, n)})
		}
		if _, known = compare(known, r); len(known) > 2*maxFindings {
			t.Fatalf("%d are known after %d sweeps", len(known), n+1)
		}
	}
}
