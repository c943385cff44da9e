package vmscope_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
)

// sets picks kinds of file systems by their names, in that order.
func sets(t testing.TB, names ...string) (out []fslab.Set) {
	t.Helper()
	all := fslab.Sets()
	for _, name := range names {
		i := slices.IndexFunc(all, func(s fslab.Set) bool { return s.Name == name })
		if i < 0 {
			t.Fatalf("no set %q", name)
		}
		out = append(out, all[i])
	}
	return out
}

// TestWatchTruth has a guest work on several file systems at once, all of which one watch tells of. What it tells must be
// what the guest did: step by step where there is a journal, in the end where there is none.
func TestWatchTruth(t *testing.T) {
	list := sets(t, "ext4", "small-journal", "data-journal", "fast-commit-6.1", "ext3", "ext2-1k")
	seed := freshSeed(t)
	g := fslab.Boot(t, "bookworm-cloud", list, seed, nil)
	w := watchLive(t, g, vmscope.WatchOptions{}, len(list))
	t.Run("disks", func(t *testing.T) {
		for _, s := range list {
			t.Run(s.Name, func(t *testing.T) {
				t.Parallel()
				r := fslab.RunFSOps(t, g, s.Name, fslab.Options{Set: s, Seed: seed, Count: 100, Looks: 3, Watch: w.of(s.Name)})
				t.Logf("%d events, trees right after %v", r.Events, r.Late)
			})
		}
	})
}

// TestWatchLong is scripts/test-long: so many random runs of 1,000 operations as VMSCOPE_LONG says, each on a fresh file
// system, over all kinds with a journal and the kernels that they need. In every other round two processes work in the
// same directories.
func TestWatchLong(t *testing.T) {
	runs, err := strconv.Atoi(cmp.Or(os.Getenv("VMSCOPE_LONG"), "0"))
	if err != nil {
		t.Fatal(err)
	}
	if runs == 0 {
		guestlab.Skip(t, "takes long: VMSCOPE_LONG is the number of runs; see scripts/test-long")
	}
	list := slices.DeleteFunc(fslab.FreshSets(), func(s fslab.Set) bool { return !s.Journalled() })
	var done, wrong, events int
	for round := 0; done < runs; round++ {
		for _, group := range fslab.ByKernel(list) {
			if done >= runs {
				break
			}
			group.Sets = group.Sets[:min(len(group.Sets), runs-done)]
			t.Run(fmt.Sprintf("%d/%s", round, group.Kernel), func(t *testing.T) {
				seed := freshSeed(t)
				g := fslab.Boot(t, group.Kernel, group.Sets, seed, nil)
				w := watchLive(t, g, vmscope.WatchOptions{}, len(group.Sets))
				for _, s := range group.Sets {
					right := t.Run(s.Name, func(t *testing.T) {
						r := fslab.RunFSOps(t, g, s.Name, fslab.Options{Set: s, Seed: seed, Count: 250 / (1 + round%2), Looks: 4, Workers: 1 + round%2, Watch: w.of(s.Name)})
						events += r.Events
					})
					done++
					if !right {
						wrong++
					}
				}
			})
		}
		t.Logf("round %d: %d runs, %d of them wrong, %d events", round, done, wrong, events)
	}
}
