package linux_test

import (
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// compareMounts compares the mounts of every process, in their order.
func compareMounts(t *testing.T, g *guestlab.Guest, m mem.PhysReader, k *linux.Kernel) {
	processes, err := g.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	compared, most := 0, 0
	spaces := map[uint64]bool{}
	for _, p := range processes {
		// Kernel threads all see what init sees: one of them will do.
		if p.Kthread && p.PID != 2 {
			continue
		}
		facts, err := g.Mounts(t.Context(), p.PID)
		if err != nil {
			continue // ended
		}
		var got []kernel.Mount
		look(t, k, m, func(v *linux.View) error {
			task, err := v.TaskByPID(p.PID)
			if err != nil {
				return err
			}
			got, err = v.Mounts(task)
			return err
		})
		for i, f := range facts {
			want := kernel.Mount{
				ID: f.ID, Parent: f.Parent, Dev: f.Dev, Root: kernel.Text(f.Root), Target: kernel.Text(f.Target),
				Options: f.Options, Propagation: strings.Join(f.Optional, " "), Type: kernel.Text(f.FSType),
				Source: kernel.Text(f.Source), SuperOptions: commonOptions(f.Super),
			}
			if i >= len(got) {
				t.Errorf("pid %d: not seen: %+v", p.PID, want)
				continue
			}
			got[i].Addr = 0
			if got[i] != want {
				t.Errorf("pid %d, mount %d:\n have %+v\n want %+v", p.PID, i, got[i], want)
			}
		}
		if len(got) > len(facts) {
			t.Errorf("pid %d: we see %d mounts, mountinfo has %d", p.PID, len(got), len(facts))
		}
		compared++
		most = max(most, len(facts))
		spaces[p.NS["mnt"]] = true
	}
	if compared < 5 || most < 20 || len(spaces) < 2 {
		t.Errorf("compared %d processes with at most %d mounts in %d namespaces", compared, most, len(spaces))
	}
	t.Logf("%d processes, at most %d mounts, %d mount namespaces", compared, most, len(spaces))
}

// commonOptions are those of a super block's options that all file systems
// share.
func commonOptions(super string) string {
	common := []string{"rw", "ro", "sync", "dirsync", "mand", "lazytime"}
	return strings.Join(slices.DeleteFunc(strings.Split(super, ","), func(o string) bool { return !slices.Contains(common, o) }), ",")
}
