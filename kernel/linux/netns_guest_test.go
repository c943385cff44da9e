package linux_test

import (
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
)

func (s *state) testNamespaces(t *testing.T) {
	_, err := s.g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("apart"), NewNS: []string{"mnt", "pid", "net", "uts", "ipc", "cgroup"}, Hold: &guestlab.Hold{}})
	if err != nil {
		t.Fatal(err)
	}
	procs, err := s.g.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.view(t, func(v *linux.View) {
		tasks, err := v.Tasks()
		if err != nil {
			t.Fatal(err)
		}
		byPID := make(map[int]linux.Task)
		for _, task := range tasks {
			byPID[task.PID] = task
		}
		compared, nets := 0, make(map[uint64]bool)
		for _, p := range procs {
			task, ok := byPID[p.PID]
			if !ok {
				continue // ended meanwhile
			}
			n, err := v.Namespaces(task)
			if err != nil {
				t.Error(err)
			}
			nets[n.Net] = true
			for kind, got := range map[string]uint64{"mnt": n.Mnt, "uts": n.UTS, "ipc": n.IPC, "pid_for_children": n.PID, "net": n.Net, "cgroup": n.CGroup, "time": n.Time} {
				if want, ok := p.NS[kind]; ok {
					compared++
					if got != want {
						t.Errorf("pid %d: %s namespace %d, the guest says %d", p.PID, kind, got, want)
					}
				}
			}
		}
		if compared < 100 || len(nets) < 2 {
			t.Errorf("%d numbers compared, of %d network namespaces", compared, len(nets))
		}
	})
}
