package detect

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
)

// TestClean looks again and again at guests that nobody tampers with while
// containers, modules, users and programs of eBPF come and go, and demands that
// nothing is found but inventory. Code that changes is TestCleanText's.
func TestClean(t *testing.T) {
	checks := slices.DeleteFunc(All(), func(d Detector) bool { return d.Name() == "text" || d.Name() == "rodata" })
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256, CPUs: 2, Modules: []string{"loop"}})
			g, err := vmscope.Open(t.Context(), lab.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- churn(ctx, lab) }()
			for n := 1; ; n++ {
				var r Result
				if err := g.View(t.Context(), func(v *vmscope.View) error {
					r = Sweep(t.Context(), v, checks)
					return r.Err()
				}); err != nil {
					t.Fatal(err)
				}
				for _, f := range r.Tampered() {
					t.Errorf("look %d: %s: %s %+v", n, f.ID, f.Summary, f.Evidence)
				}
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					t.Logf("%d looks", n)
					return
				case <-time.After(20 * time.Millisecond): // the guest needs the processor as well
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// churn has what a busy host has come and go.
func churn(ctx context.Context, lab *guestlab.Guest) error {
	all := []string{"mnt", "pid", "net", "uts", "ipc", "cgroup", "user"}
	for i := range 4 {
		var kill string
		for _, s := range []guestlab.Spawn{
			{Comm: []byte("container"), NewNS: all},
			{Comm: []byte("network"), NewNS: []string{"net"}},
			{Comm: []byte("user"), UID: 1000, GID: 1000},
			{Comm: []byte("program"), Hold: &guestlab.Hold{Kinds: []string{"bpf", "memfd"}, Threads: [][]byte{[]byte("one"), []byte("two")}}},
		} {
			pid, err := lab.Spawn(ctx, s)
			if err != nil {
				return fmt.Errorf("%s, time %d: %w", s.Comm, i, err)
			}
			kill += fmt.Sprintf("kill -9 %d\n", pid)
		}
		if _, err := lab.Run(ctx, kill+"rmmod loop; modprobe loop; echo /bin/false > /proc/sys/kernel/modprobe; ls -lR /proc/sys > /dev/null"); err != nil {
			return fmt.Errorf("time %d: %w", i, err)
		}
	}
	return nil
}
