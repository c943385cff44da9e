package vmscope_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// targetsOf are all the ways to name a guest.
func targetsOf(g *guestlab.Guest) []string {
	pid := strconv.Itoa(g.PID())
	out := []string{g.Name(), "qemu:" + g.Name(), "qemu:" + pid, pid}
	if s := g.QMPSocket(); s != "" {
		out = append(out, s, "qemu:"+s)
	}
	if f := g.RAMFile(); f != "" {
		out = append(out, f, "file:"+f)
	}
	if args := g.Config().QEMUArgs; len(args) == 2 && args[0] == "-gdb" {
		path, _, _ := strings.Cut(strings.TrimPrefix(args[1], "unix:"), ",")
		out = append(out, "gdb:"+path)
	}
	return out
}

// testTargets looks at a guest by each of its names.
func testTargets(t *testing.T, g *guestlab.Guest) {
	all := make(map[string]seen)
	w := truthOf(t, g, func() {
		for _, target := range targetsOf(g) {
			all[target] = look(t, target)
		}
	})
	for target, s := range all {
		t.Run(target, func(t *testing.T) { w.check(t, s) })
	}
}

// testRoutes looks at a guest by each way to its memory that it has.
func testRoutes(t *testing.T, g *guestlab.Guest) {
	routes := map[string]string{"vmread": "process_vm_readv"}
	if g.Config().RAM != guestlab.Anonymous {
		routes["mmap"] = "mmap"
	}
	if g.QMPSocket() != "" && g.Config().MemoryMiB <= 1<<10 { // it is slow: a search asks for all memory
		routes["qmp"] = "QMP"
	}
	all := make(map[string]seen)
	w := truthOf(t, g, func() {
		for route, how := range routes {
			var s seen
			err := vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) (err error) {
				i := v.Machine.(vm.Describer).Info()
				if !strings.Contains(i.Route, how) || !i.Live || i.PID != g.PID() || i.Name != g.Name() || i.RAM != uint64(g.Config().MemoryMiB)<<20 {
					t.Errorf("by %s: %+v", route, i)
				}
				s, err = see(v)
				return err
			}, vmscope.Route(route))
			if err != nil {
				t.Errorf("by %s: %v", route, err)
				continue
			}
			all[route] = s
		}
	})
	for route, s := range all {
		t.Run(route, func(t *testing.T) { w.check(t, s) })
	}
}

// TestOddGuest looks at guests as other people start them: with RAM that has no
// file, without a monitor, with other boards, with more than 4 GiB, with 5-level
// paging.
func TestOddGuest(t *testing.T) {
	kernels := guestlab.TestKernels(t)
	old, young := kernels[0], kernels[len(kernels)-1]
	dir, err := os.MkdirTemp("", "gdb") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	stub := []string{"-gdb", "unix:" + dir + "/stub,server=on,wait=off"}
	for _, c := range []struct {
		name  string
		cfg   guestlab.Config
		mode  string
		above bool // RAM above 4 GiB
	}{
		{"memfd pc", guestlab.Config{Kernel: young, RAM: guestlab.Memfd, Machine: "pc"}, "4-level", false},
		{"private, no monitor but a stub", guestlab.Config{Kernel: old, RAM: guestlab.Anonymous, NoQMP: true, QEMUArgs: stub}, "4-level", false},
		{"private 5 GiB, 5-level, no monitor", guestlab.Config{Kernel: young, RAM: guestlab.Anonymous, NoQMP: true, MemoryMiB: 5 << 10, CPUs: 2, CPUModel: "max"}, "5-level", true},
		{"shared 5 GiB pc, 5-level", guestlab.Config{Kernel: old, MemoryMiB: 5 << 10, CPUs: 2, CPUModel: "max", Machine: "pc"}, "5-level", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := guestlab.Boot(t, c.cfg)
			testTargets(t, g)
			testRoutes(t, g)
			// The flag is there if the kernel uses it; bullseye's is not built to.
			if out, err := g.Run(t.Context(), "grep -cw la57 /proc/cpuinfo"); err != nil && strings.TrimSpace(out) == "0" && c.cfg.Kernel == "bullseye-cloud" {
				c.mode = "4-level"
			}
			err := vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) error {
				if v.Mode.String() != c.mode {
					t.Errorf("paging %v, want %s", v.Mode, c.mode)
				}
				ranges := v.Machine.(mem.Ranger).Ranges()
				if above := ranges[len(ranges)-1].End() > 4<<30; above != c.above {
					t.Errorf("RAM at %v", ranges)
				}
				if !slices.ContainsFunc(v.Report.Findings, func(f linux.Finding) bool { return f.What == "RAM layout" && f.Confidence == "proved" }) {
					t.Errorf("the layout is not proved: %+v", v.Report.Findings)
				}
				return checkIOMem(t, g, v)
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// checkIOMem compares the ranges of RAM with the guest's /proc/iomem: all System
// RAM must be in them.
func checkIOMem(t *testing.T, g *guestlab.Guest, v *vmscope.View) error {
	raw, err := g.Ask(t.Context(), "iomem")
	if err != nil {
		return err
	}
	ranges := v.Machine.(mem.Ranger).Ranges()
	n := 0
	for line := range strings.Lines(string(raw)) {
		var start, end uint64
		if _, err := fmt.Sscanf(line, "%x-%x : System RAM", &start, &end); err != nil || !strings.HasSuffix(line, ": System RAM\n") || line[0] == ' ' {
			continue
		}
		n++
		if !slices.ContainsFunc(ranges, func(r mem.Range) bool { return uint64(r.Start) <= start && end < uint64(r.End()) }) {
			t.Errorf("%q of the guest is not in %v", line, ranges)
		}
	}
	if n == 0 {
		t.Errorf("no System RAM in %q", raw)
	}
	return nil
}
