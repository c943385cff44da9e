package detect

import (
	"errors"
	"testing"
	"unicode"

	"vmscope"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

func TestTampered(t *testing.T) {
	r := Result{Findings: []Finding{{ID: "a", Severity: Info}, {ID: "b", Severity: Low}, {ID: "c", Severity: High}, {ID: "d", Severity: Info}}}
	got := r.Tampered()
	if len(got) != 2 || got[0].ID != "b" || got[1].ID != "c" || len(r.Findings) != 4 {
		t.Errorf("%v of %v", got, r.Findings)
	}
}

// TestPersists has a guest show things now and then: an id in lower case is an
// alarm, one in upper case inventory, and "!" a contradiction.
func TestPersists(t *testing.T) {
	broken := &mem.FaultError{Op: "walk", Err: mem.ErrInconsistent}
	for _, c := range []struct {
		name  string
		looks []string
		want  string
		err   bool
	}{
		{"nothing", []string{""}, "", false},
		{"inventory ends it", []string{"A"}, "A", false},
		{"something that goes", []string{"xy", "y", "x"}, "", false},
		{"something that stays", []string{"xy", "yA", "yz", "yB"}, "yB", false},
		{"something that comes while looked at", []string{"x", "xy", "xy", "xy"}, "x", false},
		{"contradictions that pass", []string{"!", "!", ""}, "", false},
		{"contradictions amid", []string{"x", "!", "x", "x"}, "x", false},
		{"contradictions that stay", []string{"!", "!", "!", "!"}, "", true},
		{"findings beside contradictions", []string{"x!", "xy!", "!", "xzA!"}, "xA", true},
	} {
		got, n := "", 0
		err := persists(t.Context(), &Look{View: &vmscope.View{View: &linux.View{}}}, func(f Finding) { got += f.ID }, func(report func(Finding)) (err error) {
			for _, id := range c.looks[n] {
				switch {
				case id == '!':
					err = broken
				case unicode.IsUpper(id):
					report(Finding{ID: string(id), Severity: Info})
				default:
					report(Finding{ID: string(id), Severity: High})
				}
			}
			n++
			return err
		})
		if got != c.want || c.err != errors.Is(err, mem.ErrInconsistent) || n != len(c.looks) {
			t.Errorf("%s: %q after %d looks, %v", c.name, got, n, err)
		}
	}
}
