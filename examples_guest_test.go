package vmscope_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// testExamples builds the examples and compares what they print with what the
// guest says.
func testExamples(t *testing.T, g *guestlab.Guest) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "./examples/...")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(name string) []string {
		out, err := exec.Command(filepath.Join(dir, name), g.Name()).Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	}
	var mods, procs []string
	w := truthOf(t, g, func() { mods, procs = run("modules"), run("processes") })

	var want []string
	for _, m := range w.modules {
		want = append(want, strconv.Quote(m.Name))
	}
	if !slices.Equal(mods, want) {
		t.Errorf("modules printed %q, want %q", mods, want)
	}
	got := make(map[int]string)
	for _, line := range procs {
		var pid int
		var comm string
		if _, err := fmt.Sscanf(line, "%d %q", &pid, &comm); err != nil {
			t.Fatalf("processes printed %q: %v", line, err)
		}
		got[pid] = comm
	}
	for pid, p := range w.procs {
		if strings.HasPrefix(string(p.Comm), "kworker/") {
			continue
		}
		if comm, ok := got[pid]; !ok || comm != string(p.Comm[:min(len(p.Comm), 15)]) { // /proc has longer names for kernel threads
			t.Errorf("process %d: %q, %v; want %q", pid, comm, ok, p.Comm)
		}
	}
	// /proc/stat counts forks too.
	forks := func() int {
		out, err := g.Run(t.Context(), "sed -n 's/^processes //p' /proc/stat")
		if err != nil {
			t.Fatal(err)
		}
		return int(number(t, strings.TrimSpace(out)))
	}
	before := forks()
	n := int(number(t, run("variable")[0]))
	if after := forks(); n < before || n > after {
		t.Errorf("variable printed %d forks, the guest %d before and %d after", n, before, after)
	}
}
