package kernel

import (
	"fmt"
	"strings"
	"testing"
)

// draw prints a forest: a word for each process, with a sign for each level
// above it, the last child's own being "`".
func draw(bs []Branch) string {
	var w []string
	for _, b := range bs {
		s := strings.Repeat(".", max(b.Depth-1, 0))
		switch {
		case b.Depth > 0 && b.Last:
			s += "`"
		case b.Depth > 0:
			s += "|"
		}
		w = append(w, s+fmt.Sprint(b.Process.PID))
	}
	return strings.Join(w, " ")
}

func TestTree(t *testing.T) {
	for _, c := range []struct {
		name string
		in   [][3]int // pid, tgid, ppid
		want string
	}{
		{"empty", nil, ""},
		{"two roots", [][3]int{{1, 1, 0}, {2, 2, 0}}, "1 2"},
		{"family", [][3]int{{1, 1, 0}, {2, 2, 0}, {10, 10, 1}, {11, 11, 1}, {12, 12, 10}, {13, 13, 2}}, "1 |10 .`12 `11 2 `13"},
		{"child before parent", [][3]int{{5, 5, 9}, {9, 9, 1}, {1, 1, 0}}, "1 `9 .`5"},
		{"parent not listed", [][3]int{{5, 5, 99}, {6, 6, 5}}, "5 `6"},
		{"own parent", [][3]int{{5, 5, 5}, {6, 6, 5}}, "5 `6"},
		{"ring", [][3]int{{5, 5, 7}, {6, 6, 5}, {7, 7, 6}, {8, 8, 7}}, "5 `6 .`7 ..`8"},
		{"way into a ring", [][3]int{{4, 4, 6}, {5, 5, 6}, {6, 6, 5}}, "5 `6 .`4"},
		{"threads", [][3]int{{1, 1, 0}, {5, 5, 1}, {6, 5, 1}, {7, 5, 1}, {8, 8, 5}}, "1 `5 .|6 .|7 .`8"},
		{"thread before its leader", [][3]int{{6, 5, 1}, {5, 5, 1}, {1, 1, 0}}, "1 `5 .`6"},
		{"same pid twice", [][3]int{{1, 1, 0}, {5, 5, 1}, {5, 5, 1}}, "1 `5 .`5"},
		{"pid 0", [][3]int{{0, 0, 0}, {1, 1, 0}}, "0 `1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ps []Process
			for _, p := range c.in {
				ps = append(ps, Process{PID: p[0], TGID: p[1], PPID: p[2]})
			}
			if got := draw(Tree(ps)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// FuzzTree checks that whatever the guest claims, each process comes once and
// below one that came before it.
func FuzzTree(f *testing.F) {
	f.Add([]byte{1, 1, 0, 2, 2, 1, 3, 3, 2})
	f.Add([]byte{5, 5, 7, 6, 6, 5, 7, 7, 6})
	f.Add([]byte{5, 5, 5, 5, 5, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		var ps []Process
		for ; len(b) >= 3; b = b[3:] {
			ps = append(ps, Process{PID: int(b[0]), TGID: int(b[1]), PPID: int(b[2])})
		}
		seen := make(map[*Process]bool)
		depth := 0
		for _, br := range Tree(ps) {
			if seen[br.Process] {
				t.Fatalf("%v comes twice", br.Process)
			}
			seen[br.Process] = true
			if br.Depth > depth+1 {
				t.Fatalf("depth goes from %d to %d", depth, br.Depth)
			}
			depth = br.Depth
		}
		if len(seen) != len(ps) {
			t.Fatalf("%d of %d processes", len(seen), len(ps))
		}
	})
}
