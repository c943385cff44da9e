package linux_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// fileStorm are loops that fork, open and close, rename, mount and map as fast
// as they can.
const fileStorm = `
mkdir -p /s/a /s/b /s/m
(while :; do (:) ; done) &
(while :; do mv /s/a /s/c; mv /s/c /s/a; done) &
(while :; do mount -t tmpfs x /s/m; umount /s/m; done) &
(while :; do exec 3< /bin/busybox; exec 3<&-; exec 4> /s/b/f; rm /s/b/f; exec 4>&-; done) &
(while :; do ls /proc/self/fd | cat; done) > /dev/null &
`

// TestFileStormGuest lists files, mounts and maps while the guest changes them.
// What does not change must always come out the same; what does is right, or
// the error says that it may not be.
func TestFileStormGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			g := guestlab.Boot(t, guestlab.Config{Kernel: name, CPUs: 2, RAM: guestlab.SharedFile, Modules: []string{"overlay"}})
			m := openRAM(t, g.RAMFile())
			k, err := linux.Find(t.Context(), m, linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			prepare(t, g, k)
			still := stillness(t, k, m)
			if _, err := g.Run(t.Context(), fileStorm); err != nil {
				t.Fatal(err)
			}
			var failed, rounds [3]int
			for len(still.seen) < 300 && rounds[0] < 20000 {
				for i, err := range still.check(t, k.View(m)) {
					rounds[i]++
					if err != nil {
						failed[i]++
						t.Logf("said not to be right: %.200v", err)
					}
				}
			}
			t.Logf("%d processes came and went", len(still.seen))
			t.Logf("of %v lists of files, mounts, areas %v said that they are not right", rounds, failed)
			for i := range failed {
				if failed[i] > rounds[i]/20 {
					t.Errorf("list %d: %d of %d said not to be right", i, failed[i], rounds[i])
				}
			}
		})
	}
}

// still is what does not change in a guest under load.
type still struct {
	tasks  []linux.Task
	files  map[int][]kernel.File
	areas  map[int][]kernel.Area
	mounts []kernel.Mount
	seen   map[int]bool // processes
}

// stillness is what two looks, a moment apart, both saw: what was started just
// before the first may still close what it inherited.
func stillness(t *testing.T, k *linux.Kernel, m mem.PhysReader) *still {
	t.Helper()
	s := lookStill(t, k, m)
	for range 40 {
		time.Sleep(250 * time.Millisecond)
		now := lookStill(t, k, m)
		if reflect.DeepEqual(s, now) {
			return s
		}
		s = now
	}
	t.Fatal("the guest does not come to rest")
	return nil
}

func lookStill(t *testing.T, k *linux.Kernel, m mem.PhysReader) *still {
	t.Helper()
	s := &still{files: map[int][]kernel.File{}, areas: map[int][]kernel.Area{}, seen: map[int]bool{}}
	err := mem.Guard(func() error {
		v := k.View(m)
		all, err := v.Tasks()
		if err != nil {
			return err
		}
		for _, task := range all {
			if comm := task.Comm(); comm != "odd" && comm != "held" && comm != "apart" && comm != "sleep" {
				continue
			}
			s.tasks = append(s.tasks, task)
			if s.files[task.PID], err = v.Files(task); err != nil {
				return err
			}
			if s.areas[task.PID], err = v.Areas(task); err != nil {
				return err
			}
		}
		s.mounts, err = v.Mounts(s.tasks[0])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.tasks) < 5 {
		t.Fatalf("only %d processes to look at", len(s.tasks))
	}
	return s
}

// check looks once. A list that says that it is not right is given as an error.
func (s *still) check(t *testing.T, v *linux.View) (failed []error) {
	t.Helper()
	err := mem.Guard(func() error {
		all, ferr := v.AllFiles()
		mounts, merr := v.Mounts(s.tasks[0])
		var aerr error
		for _, task := range s.tasks {
			var mine []kernel.File
			for _, f := range all {
				if f.PID == task.PID {
					mine = append(mine, f)
				}
			}
			if ferr == nil && !slices.Equal(mine, s.files[task.PID]) {
				t.Errorf("files of %d changed:\n%v\n%v", task.PID, mine, s.files[task.PID])
			}
			areas, err := v.Areas(task)
			if err != nil {
				aerr = fmt.Errorf("pid %d: %w", task.PID, err)
			} else if !slices.Equal(areas, s.areas[task.PID]) {
				t.Errorf("areas of %d changed: %d, were %d", task.PID, len(areas), len(s.areas[task.PID]))
			}
		}
		if merr == nil {
			known := slices.DeleteFunc(mounts, func(m kernel.Mount) bool { return m.Target == "/s/m" })
			if !slices.Equal(known, s.mounts) {
				t.Errorf("mounts changed:\n%v\n%v", known, s.mounts)
			}
		}
		// Processes that live for a moment: whatever is said without an error
		// must make sense.
		tasks, err := v.Tasks()
		if err != nil {
			return nil // that it says so is right
		}
		for _, task := range tasks {
			s.seen[task.PID] = true
			areas, err := v.Areas(task)
			if err != nil {
				aerr = fmt.Errorf("pid %d: %w", task.PID, err)
				continue
			}
			for i, a := range areas {
				if a.End <= a.Start || i > 0 && a.Start < areas[i-1].End || len(a.Perms) != 4 {
					t.Errorf("pid %d, area %d: %+v", task.PID, i, a)
				}
			}
		}
		failed = []error{ferr, merr, aerr}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return failed
}

// BenchmarkListsGuest lists what all processes of a guest have open and mapped.
func BenchmarkListsGuest(b *testing.B) {
	if testing.Short() {
		b.Skip("boots a guest")
	}
	g := guestlab.Boot(b, guestlab.Config{Kernel: "bookworm-cloud", RAM: guestlab.SharedFile})
	m := openRAM(b, g.RAMFile())
	k, err := linux.Find(b.Context(), m, linux.Hints{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := g.Run(b.Context(), "for i in $(seq 50); do sleep 100000 < /bin/busybox > /dev/null 2>&1 3< /tmp & done"); err != nil {
		b.Fatal(err)
	}
	for name, list := range map[string]func(v *linux.View) (int, error){
		"files": func(v *linux.View) (int, error) {
			f, err := v.AllFiles()
			return len(f), err
		},
		"mounts": func(v *linux.View) (int, error) {
			tasks, err := v.Tasks()
			if err != nil {
				return 0, err
			}
			f, err := v.Mounts(tasks[0])
			return len(f), err
		},
		"areas": func(v *linux.View) (n int, err error) {
			tasks, err := v.Tasks()
			for _, t := range tasks {
				a, aerr := v.Areas(t)
				n, err = n+len(a), errors.Join(err, aerr)
			}
			return n, err
		},
	} {
		b.Run(name, func(b *testing.B) {
			n := 0
			b.ReportAllocs()
			err := mem.Guard(func() (err error) {
				for b.Loop() {
					if n, err = list(k.View(m)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(n), "entries")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(max(n, 1)), "ns/entry")
		})
	}
}
