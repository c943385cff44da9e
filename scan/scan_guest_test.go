package scan_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vmscope"
	"vmscope/arch/x86"
	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/pattern"
	"vmscope/scan"
	"vmscope/vm/qemu"
)

func TestMain(m *testing.M) {
	qemu.RunResumeHelper() // tests pause guests
	os.Exit(m.Run())
}

const marker = "a marker in held code" // see internal/guestlab/rat

// run searches a guest.
func run(t *testing.T, v *vmscope.View, o scan.Options, patterns ...string) []scan.Match {
	t.Helper()
	var list []pattern.String
	for i, p := range patterns {
		s, err := pattern.ParsePattern(p, pattern.Modifiers{})
		if err != nil {
			t.Fatal(err)
		}
		s.ID = fmt.Sprintf("$%d", i)
		list = append(list, s)
	}
	set, err := pattern.Compile([]*pattern.Rule{pattern.NewRule("rule", list...)})
	if err != nil {
		t.Fatal(err)
	}
	if o.Max == 0 {
		o.Max = 1 << 20
	}
	var out []scan.Match
	r, err := scan.Run(t.Context(), v, set, o, func(m scan.Match) error { out = append(out, m); return nil })
	if err != nil || r.Matches != len(out) || r.Limited != nil {
		t.Fatalf("%d matches, %+v, %v", len(out), r, err)
	}
	return out
}

// naive finds a text in a process's memory, page for page.
func naive(t *testing.T, space *mem.Space, text string) (out []mem.VA) {
	t.Helper()
	var buf []byte
	var start mem.VA
	look := func() {
		for at := 0; ; at++ {
			k := bytes.Index(buf[at:], []byte(text))
			if k < 0 {
				break
			}
			at += k
			out = append(out, start+mem.VA(at))
		}
		buf = buf[:0]
	}
	for r, err := range space.Tr.(*x86.Paging).Mappings(0, 0x00ffffffffffffff) {
		if err != nil {
			t.Fatal(err)
		}
		if r.VA != start+mem.VA(len(buf)) {
			look()
			start = r.VA
		}
		b := make([]byte, r.Size)
		if _, err := space.Phys.ReadPhys(b, r.PA); err != nil {
			t.Fatal(err)
		}
		buf = append(buf, b...)
	}
	look()
	return out
}

func TestScan(t *testing.T) {
	for _, name := range []string{"bullseye-cloud", "sid-cloud"} {
		t.Run(name, func(t *testing.T) {
			lab := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 256})
			if err := lab.Put(t.Context(), "/tmp/marked", []byte(strings.Repeat(".", 5000)+marker+strings.Repeat(".", 5000)), 0o644); err != nil {
				t.Fatal(err)
			}
			pids := map[string]int{}
			for _, s := range []guestlab.Spawn{
				{Comm: []byte("marked"), Hold: &guestlab.Hold{Kinds: []string{"marked memory", "anonymous code"}}},
				{Comm: []byte("mapper"), Hold: &guestlab.Hold{Maps: []string{"/tmp/marked"}}},
				{Comm: []byte("argument"), Args: [][]byte{[]byte("argument"), []byte("the " + marker)}},
			} {
				pid, err := lab.Spawn(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				pids[string(s.Comm)] = pid
			}
			if _, err := lab.Run(t.Context(), "true"); err != nil { // they have come up
				t.Fatal(err)
			}
			g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Paused())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if err := g.View(t.Context(), func(v *vmscope.View) error {
				t.Run("one process", func(t *testing.T) {
					crossing := 0
					for _, m := range run(t, v, scan.Options{PIDs: []int{pids["marked"]}}, marker) {
						if m.PID != pids["marked"] || m.Comm != "marked" || m.Kind != "process" || m.Area == "" || m.Offset == nil || string(m.Data) != marker[:min(len(marker), 32)] {
							t.Errorf("%+v", m)
						}
						if m.VA%mem.PageSize == mem.PageSize-8 {
							crossing++
						}
					}
					if crossing != 15 {
						t.Errorf("%d matches across pages, want 15", crossing)
					}
					file := run(t, v, scan.Options{PIDs: []int{pids["mapper"]}}, marker)
					if !slices.ContainsFunc(file, func(m scan.Match) bool { return m.Area == "/tmp/marked" && *m.Offset == 5000 }) {
						t.Errorf("not in the mapped file: %+v", file)
					}
					arg := run(t, v, scan.Options{PIDs: []int{pids["argument"]}}, "the "+marker, "/the [a-z ]*code/")
					if len(arg) < 2 || !strings.HasPrefix(string(arg[0].Area), "[stack]") {
						t.Errorf("%+v", arg)
					}
				})
				t.Run("all processes", func(t *testing.T) {
					patterns := []string{"ELF", "\x00\x01\x00\x00\x00", "busybox", marker}
					got := map[string]map[int][]mem.VA{}
					for _, m := range run(t, v, scan.Options{Processes: true}, patterns...) {
						if got[m.String] == nil {
							got[m.String] = map[int][]mem.VA{}
						}
						got[m.String][m.PID] = append(got[m.String][m.PID], m.VA)
					}
					tasks, err := v.Tasks()
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					for _, task := range tasks {
						if task.KThread() {
							continue
						}
						space, err := v.SpaceOf(task)
						if err != nil {
							t.Fatal(err)
						}
						for i, p := range patterns {
							want := naive(t, space, p)
							have := got[fmt.Sprintf("$%d", i)][task.PID]
							if !slices.Equal(have, want) {
								t.Errorf("pid %d (%s), %q: %d places, want %d", task.PID, task.Comm(), p, len(have), len(want))
							}
							n += len(want)
						}
					}
					if n < 1000 {
						t.Errorf("only %d places", n)
					}
				})
				t.Run("all RAM", func(t *testing.T) {
					// What is anywhere in RAM is found in a process or in the kernel.
					have := map[mem.PA]bool{}
					for _, m := range run(t, v, scan.Options{Processes: true, Kernel: true}, "sys_", marker) {
						have[*m.PA] = true
					}
					ram := run(t, v, scan.Options{Physical: true}, "sys_", marker)
					for _, m := range ram {
						if !have[*m.PA] {
							t.Errorf("at %#x in RAM, but neither in a process nor in the kernel", uint64(*m.PA))
						}
					}
					if len(ram) < 50 {
						t.Errorf("only %d places in RAM", len(ram))
					}
				})
				t.Run("kernel", func(t *testing.T) {
					banner, err := v.LookupSymbol("linux_banner")
					if err != nil {
						t.Fatal(err)
					}
					found := run(t, v, scan.Options{Kernel: true}, "Linux version "+v.Release)
					if !slices.ContainsFunc(found, func(m scan.Match) bool { return m.VA == banner.Addr && m.Area == "linux_banner" }) {
						t.Errorf("%+v", found)
					}
					for _, m := range run(t, v, scan.Options{Kernel: true}, "the "+marker) {
						if m.Kind != "kernel" || m.PID != 0 {
							t.Errorf("%+v", m)
						}
					}
				})
				t.Run("page cache", func(t *testing.T) {
					ram := run(t, v, scan.Options{Physical: true}, marker)
					if !slices.ContainsFunc(ram, func(m scan.Match) bool { return m.Area == "[page cache] /marked" && *m.Offset == 5000 }) {
						t.Errorf("the mapped file is not told: %+v", ram)
					}
				})
				t.Run("rules", func(t *testing.T) {
					rules, err := pattern.ParseRules("rules", `
rule both { strings: $a = "a marker" $b = "in held code" condition: all of them and #a < 100000 }
rule never { strings: $a = "a marker" condition: not $a and false }`)
					if err != nil {
						t.Fatal(err)
					}
					set, err := pattern.Compile(rules)
					if err != nil {
						t.Fatal(err)
					}
					var of []int
					r, err := scan.Run(t.Context(), v, set, scan.Options{Processes: true, Max: 1}, func(m scan.Match) error {
						if m.Rule != "both" {
							t.Errorf("%+v", m)
						}
						of = append(of, m.PID)
						return nil
					})
					if err != nil || len(r.Limited) != 1 || !slices.Contains(of, pids["marked"]) || !slices.Contains(of, pids["argument"]) {
						t.Errorf("%v, %+v, %v", of, r, err)
					}
				})
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
