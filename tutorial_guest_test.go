package vmscope_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// testTutorial does what docs/tutorial.md tells its readers to do, outside of
// this module, and compares it with what the guest says.
func testTutorial(t *testing.T, g *guestlab.Guest) {
	dir := t.TempDir()
	command(t, ".", "go", "build", "-o", dir+"/", "./examples/...")
	t.Run("parents", func(t *testing.T) { testParents(t, g, filepath.Join(dir, "parents")) })
	t.Run("watch", func(t *testing.T) { testWatch(t, g) })
	t.Run("hidden", func(t *testing.T) { testHidden(t, g, filepath.Join(dir, "hidden")) })
}

// command runs a program and returns what it prints.
func command(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = dir
	// Offline: what vmscope needs is here already.
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off")
	if dir == "." {
		c.Env = nil
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func testParents(t *testing.T, g *guestlab.Guest, program string) {
	var out string
	w := truthOf(t, g, func() { out = command(t, ".", program, g.Name()) })
	got := make(map[int]string)
	for line := range strings.Lines(out) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got[pid] = strings.TrimSpace(line)
	}
	n := 0
	for pid, p := range w.procs {
		if p.Kthread {
			if got[pid] != "" {
				t.Errorf("kernel thread %d: %s", pid, got[pid])
			}
			continue
		}
		n++
		parent := "swapper/0"
		if p.PPID != 0 {
			parent = string(w.procs[p.PPID].Comm)
		}
		exe := path.Base(strings.TrimSuffix(string(p.Exe), " (deleted)"))
		if want := fmt.Sprintf("%d %5d %q %q", pid, p.UID, exe, parent); got[pid] != want {
			t.Errorf("got %q, want %q", got[pid], want)
		}
	}
	if n < 3 {
		t.Errorf("only %d processes with a program", n)
	}
}

// testWatch builds the tutorial's monitor as a module of its own, watches the
// guest with it, and runs the tutorial's test of it on a core.
func testWatch(t *testing.T, g *guestlab.Guest) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	text := readDoc(t, "docs/tutorial.md")
	dir := filepath.Join(t.TempDir(), "mymonitor")
	put := func(name, content string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range blocks(text, "go") {
		switch {
		case strings.Contains(b, "func Test"):
			put("main_test.go", b)
		case strings.Contains(b, "package main") && strings.Contains(b, "func main"):
			put("main.go", b)
		}
	}
	// As the tutorial says, but for the path; and without asking anybody for checksums that are known here.
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	put("go.sum", string(sums))
	ran := 0
	for _, b := range blocks(text, "console") {
		for line := range strings.Lines(b) {
			args := strings.Fields(strings.ReplaceAll(line, "/path/to/vmscope", here))
			if len(args) > 2 && args[0] == "$" && args[1] == "go" && args[2] == "mod" {
				command(t, dir, "go", args[2:]...)
				ran++
			}
		}
	}
	if ran != 3 {
		t.Fatalf("the tutorial makes a module by %d commands, want 3", ran)
	}
	command(t, dir, "go", "build")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(dir, "mymonitor"), g.Name())
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	in := bufio.NewScanner(out)
	known := make(map[string]bool)
	// until reads changes until the guest's modules are known.
	until := func(modules []guestlab.Module) {
		t.Helper()
		want := make(map[string]bool)
		for _, m := range modules {
			want[m.Name] = true
		}
		for !maps.Equal(known, want) {
			if !in.Scan() {
				t.Fatalf("the monitor ended; it knew %q, want %q", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(want)))
			}
			name, err := strconv.Unquote(in.Text()[2:])
			if err != nil {
				t.Fatalf("the monitor printed %q", in.Text())
			}
			switch sign := in.Text()[:2]; {
			case sign == "+ " && !known[name]:
				known[name] = true
			case sign == "- " && known[name]:
				delete(known, name)
			default:
				t.Fatalf("the monitor printed %q, and knew %q", in.Text(), slices.Sorted(maps.Keys(known)))
			}
		}
	}
	modules := func() []guestlab.Module {
		t.Helper()
		list, err := g.Modules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := modules()
	until(before)
	for _, script := range []string{"modprobe dummy", "rmmod dummy"} {
		if _, err := g.Run(t.Context(), script); err != nil {
			t.Fatal(err)
		}
		until(modules())
	}

	// The test is written for the guest of the tutorial.
	put("testdata/web1.core", "")
	core, err := os.Create(filepath.Join(dir, "testdata/web1.core"))
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	err = vmscope.Look(t.Context(), g.Name(), func(v *vmscope.View) error { return v.WriteCore(t.Context(), core, nil) })
	if err != nil {
		t.Fatal(err)
	}
	test := strings.Replace(readDoc(t, "docs/tutorial.md"), "len(names) != 11", fmt.Sprintf("len(names) != %d", len(modules())), 1)
	for _, b := range blocks(test, "go") {
		if strings.Contains(b, "func Test") {
			put("main_test.go", b)
		}
	}
	if out := command(t, dir, "go", "test", "-v"); !strings.Contains(out, "--- PASS: TestModules") {
		t.Error(out)
	}
}

// testHidden takes a process out of the kernel's list, as rootkits do, and puts
// it back.
func testHidden(t *testing.T, g *guestlab.Guest, program string) {
	if out := command(t, ".", program, g.Name()); out != "" {
		t.Errorf("hidden in an honest guest: %s", out)
	}
	const comm = "hide\x1b[2J"
	pid, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte(comm)})
	if err != nil {
		t.Fatal(err)
	}
	// Its neighbour in the list must not change meanwhile.
	if _, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("behind")}); err != nil {
		t.Fatal(err)
	}
	w, err := vmscope.Open(t.Context(), g.Name(), vmscope.Writable(), vmscope.Paused())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// link makes the neighbours of the process point to it, or to each other.
	var task linux.Task
	link := func(in bool) {
		t.Helper()
		err := w.Update(t.Context(), func(tx *vmscope.Tx) (err error) {
			if in == false {
				if task, err = tx.TaskByPID(pid); err != nil {
					return err
				}
			}
			o, err := tx.Object(task.Addr, "task_struct")
			if err != nil {
				return err
			}
			node, err := o.Field("tasks")
			if err != nil {
				return err
			}
			next, err := tx.Mem.Pointer(node.Addr)
			if err != nil {
				return err
			}
			prev, err := tx.Mem.Pointer(node.Addr + 8)
			if err != nil {
				return err
			}
			a, b := next, prev
			if in {
				a, b = node.Addr, node.Addr
			}
			for at, to := range map[mem.VA]mem.VA{prev: a, next + 8: b} {
				if _, err := tx.Write(tx.Mem, binary.LittleEndian.AppendUint64(nil, uint64(to)), at); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	link(false)
	for _, p := range look(t, g.Name()).procs {
		if p.PID == pid {
			t.Errorf("process %d is still in the list", pid)
		}
	}
	if ps, err := g.Run(t.Context(), "ls /proc"); err != nil || !slices.Contains(strings.Fields(ps), itoa(pid)) {
		t.Errorf("the process no longer runs: %v", err)
	}
	out := command(t, ".", program, g.Name())
	link(true)
	if want := fmt.Sprintf("%d %q\n", pid, comm); out != want {
		t.Errorf("hidden printed %q, want %q", out, want)
	}
	if out := command(t, ".", program, g.Name()); out != "" {
		t.Errorf("hidden, once the process was back: %s", out)
	}
}
