package linux_test

import (
	"fmt"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// compareAreas compares the memory map of every process, line by line.
func compareAreas(t *testing.T, g *guestlab.Guest, m mem.PhysReader, k *linux.Kernel) {
	facts := func() map[int][]kernel.Area {
		list, err := g.Mappings(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[int][]kernel.Area)
		for _, f := range list {
			out[f.PID] = append(out[f.PID], kernel.Area{
				Start: mem.VA(f.Start), End: mem.VA(f.End), Perms: f.Perms, Offset: f.Offset,
				Dev: fmt.Sprintf("%02x:%02x", f.Major, f.Minor), Inode: f.Inode, Path: kernel.Text(f.Path),
			})
		}
		return out
	}
	before := facts()
	ours := make(map[int][]kernel.Area)
	look(t, k, m, func(v *linux.View) error {
		tasks, err := v.Tasks()
		if err != nil {
			return err
		}
		for _, task := range tasks {
			a, err := v.Areas(task)
			if err != nil {
				t.Errorf("pid %d: %v", task.PID, err)
			}
			if len(a) > 0 {
				ours[task.PID] = a
			}
		}
		return nil
	})
	after := facts()
	compared, lines := 0, 0
	names := map[string]int{}
	for _, pid := range sorted(before) {
		if fmt.Sprint(before[pid]) != fmt.Sprint(after[pid]) {
			continue
		}
		compared++
		for i, want := range before[pid] {
			if i >= len(ours[pid]) {
				t.Errorf("pid %d: not seen: %+v", pid, want)
				continue
			}
			if got := ours[pid][i]; got != want {
				t.Errorf("pid %d, line %d:\n have %+v\n want %+v", pid, i, got, want)
			}
			lines++
			if strings.HasPrefix(string(want.Path), "[") {
				names[string(want.Path)]++
			}
		}
		if len(ours[pid]) > len(before[pid]) {
			t.Errorf("pid %d: %d areas, /proc has %d", pid, len(ours[pid]), len(before[pid]))
		}
	}
	for pid := range ours {
		if before[pid] == nil && after[pid] == nil {
			t.Errorf("pid %d has areas, /proc has none", pid)
		}
	}
	if compared < 5 || lines < 2000 {
		t.Errorf("compared %d processes, %d lines", compared, lines)
	}
	t.Logf("%d of %d processes, %d lines, names %v", compared, len(before), lines, names)
}
