package linux_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/mem"
)

// TestProcessesStormGuest lists processes while the guest forks, executes, ends
// processes and removes cgroups as fast as it can. Who stays must be in every
// list and never look different; of the others each is right or says that it is
// not.
func TestProcessesStormGuest(t *testing.T) {
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) { testProcessStorm(t, name) })
	}
}

func testProcessStorm(t *testing.T, name string) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: name, CPUs: 2})
	oddProcesses(t, g)
	m, v := guestView(t, g)
	stays := make(map[int]string)
	guarded(t, func() error {
		all, err := v.Threads()
		for _, p := range all {
			if !volatile(p) {
				stays[p.PID] = pictureOf(p)
			}
		}
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := g.Run(ctx, `rat storm 3 1000 &
while :; do mkdir -p /sys/fs/cgroup/storm/lxc.payload.x; sh -c 'echo $$ >/sys/fs/cgroup/storm/lxc.payload.x/cgroup.procs; true'; rmdir /sys/fs/cgroup/storm/lxc.payload.x; done`)
		ended <- err
	}()
	cached := v.Kernel.View(mem.NewCache(noRAM{m}, 4096))
	looks, others, missing, leaves, inGroup := 0, 0, 0, 0, 0
	// A guest that starves takes its time to execute anything.
	for ; (looks < 400 || leaves == 0 && looks < 40000) && !t.Failed(); looks++ {
		view := v
		if looks%8 == 7 {
			view = cached // by a source that copies, with what it keeps
			cached.Phys.(*mem.Cache).Forget()
		}
		guarded(t, func() error {
			list := view.Processes
			if looks%2 == 1 {
				list = view.Threads
			}
			all, err := list()
			if err != nil {
				return fmt.Errorf("look %d: %w", looks, err)
			}
			seen := make(map[int]bool)
			for _, p := range all {
				if seen[p.PID] {
					t.Errorf("look %d: pid %d twice", looks, p.PID)
				}
				seen[p.PID] = true
				if want, ok := stays[p.PID]; ok {
					if got := pictureOf(p); got != want {
						t.Errorf("look %d:\n got %s\nwant %s", looks, got, want)
					}
					continue
				}
				others++
				if p.Missing != nil {
					missing++
					t.Logf("look %d: %d %q misses %q", looks, p.PID, p.Comm, p.Missing)
					continue
				}
				if p.Comm == "leaf" {
					leaves++
				}
				if p.Container == "x" {
					inGroup++
				}
				if why := wrong(p); why != "" {
					t.Errorf("look %d: %s: %+v", looks, why, p)
				}
			}
			for pid, want := range stays {
				if looks%2 == 1 && !seen[pid] || looks%2 == 0 && !seen[pid] && strings.HasPrefix(want, fmt.Sprintf("%d/%d ", pid, pid)) {
					t.Errorf("look %d lacks %s", looks, want)
				}
			}
			return nil
		})
	}
	t.Logf("%d looks, %d stay, others seen %d times, %d of them executed and %d in a cgroup that comes and goes; %d say what they miss", looks, len(stays), others, leaves, inGroup, missing)
	if leaves == 0 {
		t.Error("the storm was none")
	}
	cancel()
	<-ended
}

// noRAM hides that memory is mapped.
type noRAM struct{ mem.PhysReader }

// volatile tells processes that come and go, or whose picture changes, on a
// guest that is left alone.
func volatile(p kernel.Process) bool {
	return strings.HasPrefix(string(p.Comm), "kworker/") || p.Comm == "rat"
}

// pictureOf is all of a process that does not change while it sleeps.
func pictureOf(p kernel.Process) string {
	p.State, p.StartTime = "", nil
	for i, a := range p.Cmdline {
		p.Cmdline[i] = a[:min(len(a), 20)]
	}
	return fmt.Sprintf("%d/%d %+v", p.PID, p.TGID, p)
}

// wrong says what cannot be in a process of the storm.
func wrong(p kernel.Process) string {
	has := func(s kernel.Text) bool {
		return strings.Contains(string(p.Exe), string(s)) && (len(p.Cmdline) == 0 || strings.Contains(string(p.Cmdline[0]), string(s)))
	}
	switch {
	case p.UID != 0 || p.GID != 0 || p.EUID != 0:
		return "another user"
	case p.PPID == 0 && p.PID > 2:
		return "no parent"
	case strings.HasPrefix(string(p.Comm), "kworker/") || p.KThread:
		return ""
	case p.State == "Z" || p.State == "X":
		if p.Cmdline != nil || p.Exe != "" {
			return "a zombie with a program"
		}
	case p.Comm == "leaf" && p.Root != 0 && !has("/leaf"):
		return "the name of another program"
	case p.Comm != "sh" && p.Comm != "leaf" && p.Comm != "rat" && p.Comm != "mkdir" && p.Comm != "rmdir" && p.Comm != "exe":
		return "no process of the storm"
	}
	return ""
}
