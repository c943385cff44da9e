package detect

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"unicode"

	"vmscope"
	"vmscope/kernel"
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
// alarm, one in upper case inventory, "!" a contradiction, "~" a page that is not
// there, and "?" anything else that goes wrong.
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
		{"what more looks cannot change", []string{"?"}, "", true},
		{"findings beside what more looks cannot change", []string{"x?", "xy?", "x?", "x?"}, "x", true},
		{"pages that come and go", []string{"x~", "x", "x", "x"}, "x", false},
	} {
		got, n := "", 0
		err := persists(t.Context(), &Look{View: &vmscope.View{View: &linux.View{Kernel: new(linux.Kernel)}}}, func(f Finding) { got += f.ID }, func(report func(Finding)) (err error) {
			for _, id := range c.looks[n] {
				switch {
				case id == '!':
					err = broken
				case id == '~':
					err = mem.ErrNotMapped
				case id == '?':
					err = errors.ErrUnsupported
				case unicode.IsUpper(id):
					report(Finding{ID: string(id), Severity: Info})
				default:
					report(Finding{ID: string(id), Severity: High})
				}
			}
			n++
			return err
		})
		if got != c.want || c.err != (err != nil) || n != len(c.looks) {
			t.Errorf("%s: %q after %d looks, %v", c.name, got, n, err)
		}
	}
}

// TestPersistsRenamed has something hidden change its name between two looks.
func TestPersistsRenamed(t *testing.T) {
	n, got := 0, 0
	err := persists(t.Context(), &Look{View: &vmscope.View{View: &linux.View{Kernel: new(linux.Kernel)}}}, func(Finding) { got++ }, func(report func(Finding)) error {
		n++
		report(Finding{ID: fmt.Sprint(n), Check: "modules", Severity: High, Evidence: []Evidence{{Addr: 0x1000}}})
		report(Finding{ID: fmt.Sprint(-n), Check: "modules", Severity: High, Evidence: []Evidence{{Addr: mem.VA(0x2000 + n)}}})
		return nil
	})
	if got != 1 || n != persistLooks || err != nil {
		t.Errorf("%d findings after %d looks, %v", got, n, err)
	}
}

// TestFlatten has memory that several claim: whose it is must not depend on who
// claims most.
func TestFlatten(t *testing.T) {
	c := func(kind string, start mem.VA, size uint64) kernel.Code {
		return kernel.Code{Region: kernel.Region{Start: start, Size: size}, Kind: kind}
	}
	for _, x := range []struct {
		name     string
		in, want []kernel.Code
	}{
		{"nothing", nil, nil},
		{"neighbours", []kernel.Code{c("module", 0x2000, 0x1000), c("kernel", 0x1000, 0x1000)}, []kernel.Code{c("kernel", 0x1000, 0x1000), c("module", 0x2000, 0x1000)}},
		{"the kernel keeps its own", []kernel.Code{c("ftrace", 0x0800, 0x810), c("kernel", 0x1000, 0x1000), c("module", 0x1ff0, 0x20)},
			[]kernel.Code{c("ftrace", 0x0800, 0x800), c("kernel", 0x1000, 0x1000), c("module", 0x2000, 0x10)}},
		{"one around all", []kernel.Code{c("bpf", 0, 0x10000), c("kernel", 0x1000, 0x1000), c("module", 0x3000, 0x1000)},
			[]kernel.Code{c("bpf", 0, 0x1000), c("kernel", 0x1000, 0x1000), c("bpf", 0x2000, 0x1000), c("module", 0x3000, 0x1000), c("bpf", 0x4000, 0xc000)}},
		{"modules over each other", []kernel.Code{c("module", 0x1000, 0x1000), c("module", 0x1800, 0x1000), c("module", 0x1900, 0x10)},
			[]kernel.Code{c("module", 0x1000, 0x1000), c("module", 0x2000, 0x800)}},
		{"the end of memory", []kernel.Code{c("module", ^mem.VA(0xfff), 0x1000), c("bpf", ^mem.VA(0xffff), 0x10000), c("bpf", ^mem.VA(0xff), 0x1000)},
			[]kernel.Code{c("bpf", ^mem.VA(0xffff), 0xf000), c("module", ^mem.VA(0xfff), 0x1000)}},
	} {
		got := flatten(slices.Clone(x.in))
		if !slices.Equal(got, Code(x.want)) {
			t.Errorf("%s: %+v", x.name, got)
		}
	}
}
