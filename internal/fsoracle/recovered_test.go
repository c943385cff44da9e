package fsoracle

import (
	"slices"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// TestRecovered miscounts links in a guest's tree, as a recovery of fast commits does and otherwise.
func TestRecovered(t *testing.T) {
	events := []event.Event{ev(event.RmDir, "/d/sub", 13, newDir), ev(event.MkDir, "/m", 21, newDir)}
	for i := range events {
		events[i].Source = event.FastCommit
	}
	for _, test := range []struct {
		name string
		said map[string]uint32 // links, where they are not those of the tree's shape
		want string            // what is different yet
	}{
		{"right", nil, ""},
		{"made", map[string]uint32{"/m": 1, "/": 4}, ""},
		{"the one made only", map[string]uint32{"/m": 1}, ""},
		{"taken out", map[string]uint32{"/d": 3}, ""},
		{"nothing made in it", map[string]uint32{"/": 4}, `"/": links 5, the guest says 4`},
		{"more than were made", map[string]uint32{"/m": 1, "/": 3}, `"/": links 5, the guest says 3`},
		{"more than were taken out", map[string]uint32{"/d": 4}, `"/d": links 2, the guest says 4`},
		{"nothing taken out", map[string]uint32{"/e": 3}, `"/e": links 2, the guest says 3`},
		{"the root", map[string]uint32{"/": 1}, `"/": links 5, the guest says 1`},
		{"a file", map[string]uint32{"/d/f": 1}, `"/d/f": links 2, the guest says 1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := New(small())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				if found := r.Apply(e); len(found) > 0 {
					t.Fatal(found)
				}
			}
			truth := slices.Clone(r.Tree())
			for i := range truth {
				if n, ok := test.said[string(truth[i].Path)]; ok {
					truth[i].Nlink = n
				}
			}
			if before := r.Compare(truth); len(before) != len(test.said) {
				t.Errorf("before it is said that there was a recovery: %q", before)
			}
			r.Recovered(truth)
			if got := strings.Join(r.Compare(truth), "; "); got != "" != (test.want != "") || !strings.Contains(got, test.want) {
				t.Errorf("different: %q, want %q", got, test.want)
			}
			if test.want == "" {
				later, err := New(truth) // of the tree as it is now
				if err != nil || len(later.Compare(truth)) > 0 {
					t.Errorf("begun anew: %q, %v", later.Compare(truth), err)
				}
			}
			missing := slices.DeleteFunc(truth, func(f wire.File) bool { return string(f.Path) == "/m" })
			if got := r.Compare(missing); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "extra: ") }) {
				t.Errorf("a directory that is not there was missed by nobody: %q", got)
			}
		})
	}
}
