package detect

import (
	"errors"
	"slices"
	"testing"
)

// TestFits holds which checks are made on which processor; those of others, which
// package detect does not know, always are.
func TestFits(t *testing.T) {
	for arch, want := range map[string][]string{
		"x86_64":  append(namesOf(All()), "mine"),
		"aarch64": append(slices.Clone(anywhere), "mine"),
		"i686":    {"mine"},
	} {
		var got []string
		for _, name := range append(namesOf(All()), "mine") {
			if err := fits(name, arch); err == nil {
				got = append(got, name)
			} else if !errors.Is(err, ErrProcessor) || !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s on %s: %v", name, arch, err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("on %s: %q, want %q", arch, got, want)
		}
	}
	for _, name := range anywhere {
		if !slices.Contains(namesOf(All()), name) {
			t.Errorf("no check %q", name)
		}
	}
}

func namesOf(all []Detector) (names []string) {
	for _, d := range all {
		names = append(names, d.Name())
	}
	return names
}

// TestProcessorError holds that what was not made is told in one line, beside
// what went wrong otherwise.
func TestProcessorError(t *testing.T) {
	r := Result{Checks: []Check{{Name: "text", Err: fits("text", "aarch64")}, {Name: "modules"}, {Name: "pages", Err: fits("pages", "aarch64")}, {Name: "creds", Err: errors.New("odd")}, {Name: "hooks"}}}
	err := r.Err()
	const want = "checks text, pages: not on this processor (aarch64); made were modules, hooks\ncheck creds: odd"
	if err == nil || err.Error() != want || !errors.Is(err, ErrProcessor) {
		t.Errorf("%q, want %q", err, want)
	}
	if err := (Result{Checks: r.Checks[:1]}).Err(); err == nil || err.Error() != "checks text: not on this processor (aarch64); none was made" {
		t.Error(err)
	}
	if err := (Result{Checks: []Check{{Name: "modules"}}}).Err(); err != nil {
		t.Error(err)
	}
}
