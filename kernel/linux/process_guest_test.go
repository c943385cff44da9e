package linux_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
	"vmscope/vm"
)

// guestView finds the kernel of a guest whose RAM is a shared file.
func guestView(t testing.TB, g *guestlab.Guest) (vm.Machine, *linux.View) {
	t.Helper()
	m := openRAM(t, g.RAMFile())
	k, err := linux.Find(t.Context(), m, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	return m, k.View(m)
}

// guarded runs f as a View of a mapped machine must run.
func guarded(t testing.TB, f func() error) {
	t.Helper()
	if err := mem.Guard(f); err != nil {
		t.Fatal(err)
	}
}

// oddProcesses starts processes as odd as they come and returns their pids by what is
// odd about them.
func oddProcesses(t *testing.T, g *guestlab.Guest) map[string]int {
	t.Helper()
	ctx := t.Context()
	pids := make(map[string]int)
	id := strings.Repeat("0123456789abcdef", 4)
	long := bytes.Repeat([]byte("x"), 100_000)
	for name, s := range map[string]guestlab.Spawn{
		"spaces":    {Comm: []byte("a b) S 1 (c"), Args: [][]byte{[]byte("arg 0\n"), {}, []byte("b c"), {}}, Env: [][]byte{[]byte("A=b c"), []byte("odd"), {0xc0, '=', '\n'}}},
		"bytes":     {Comm: []byte("\xff\xfe\n\t"), Args: [][]byte{{0xff, 0x01, '\n'}}, Env: [][]byte{}},
		"long name": {Comm: []byte("fifteen-bytes-and-more")},
		"no args":   {Args: [][]byte{}},
		"one empty": {Args: [][]byte{{}}},
		"long args": {Args: [][]byte{long, long, []byte("end")}, Env: [][]byte{append([]byte("L="), long...), []byte("Z=1")}},
		"user":      {UID: 1000, GID: 65534},
		"threads":   {Comm: []byte("holder"), Hold: &guestlab.Hold{Threads: [][]byte{[]byte("worker one"), []byte("w)\xff"), {}}}},
		"container": {Comm: []byte("web"), Cgroup: "system.slice/docker-" + id + ".scope", NewNS: []string{"mnt", "pid", "net", "uts", "ipc"}, Hold: &guestlab.Hold{Threads: [][]byte{[]byte("inner")}}},
		"user ns":   {UID: 33, GID: 34, NewNS: []string{"user", "cgroup", "pid"}},
		"pod":       {Cgroup: "kubepods/burstable/pod8c4f2c6a-3d2e-11eb-8a5c-0242ac110002/" + id},
		"deleted":   {Comm: []byte("gone")},
		"frozen":    {Cgroup: "frozen"},
		"frozen v1": {},
		"stopped":   {Comm: []byte("stopped")},
		"title":     {Comm: []byte("title"), Args: [][]byte{[]byte("title"), []byte("with"), []byte("arguments")}, Env: [][]byte{bytes.Repeat([]byte("E"), 300)}},
		"overrun":   {Comm: []byte("overrun"), Args: [][]byte{[]byte("overrun")}, Env: [][]byte{bytes.Repeat([]byte("E"), 300)}},
	} {
		pid, err := g.Spawn(ctx, s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		pids[name] = pid
	}
	script := fmt.Sprintf(`
rm "$(readlink /proc/%[1]d/exe)"
kill -STOP %[2]d
write() { dd of=/proc/$1/mem bs=1 conv=notrunc seek=$(tail -n 1 /proc/$1/stat | sed 's/.*) //' | cut -d' ' -f46) 2>/dev/null; }
printf 'new title: all of them fit ' | head -c 21 | write %[3]d
printf 'overrun: a title that goes on and on into the environment\0' | write %[4]d
sh -c 'sh -c "exit 7" & exec sleep 100000' </dev/null >/dev/null 2>&1 &
sleep 0.3
`, pids["deleted"], pids["stopped"], pids["title"], pids["overrun"])
	if _, err := g.Run(ctx, script); err != nil {
		t.Fatal(err)
	}
	// What not every kernel can.
	for what, script := range map[string]string{
		"freeze":    "echo 1 >/sys/fs/cgroup/frozen/cgroup.freeze",
		"freeze v1": fmt.Sprintf("mkdir /mnt/fz && mount -t cgroup -o freezer none /mnt/fz && mkdir /mnt/fz/a && echo %d >/mnt/fz/a/cgroup.procs && echo FROZEN >/mnt/fz/a/freezer.state", pids["frozen v1"]),
	} {
		if _, err := g.Run(ctx, script); err != nil {
			t.Logf("%s: %v", what, err)
		}
	}
	_, err := g.Run(ctx, fmt.Sprintf(`mkdir -p /mnt/v1 && mount -t cgroup -o none,name=systemd none /mnt/v1 &&
mkdir -p /mnt/v1/machine.slice/machine-deb.scope && echo %d >/mnt/v1/machine.slice/machine-deb.scope/cgroup.procs`, pids["user"]))
	if err != nil {
		t.Logf("no cgroup hierarchy of version 1: %v", err)
		delete(pids, "v1")
	} else {
		pids["v1"] = pids["user"]
	}
	return pids
}

// TestProcessesGuest compares every field of every process with what the
// guest's /proc says.
func TestProcessesGuest(t *testing.T) {
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			g := guestlab.Boot(t, guestlab.Config{Kernel: name, CPUs: 2})
			pids := oddProcesses(t, g)
			_, v := guestView(t, g)
			t.Run("Fields", func(t *testing.T) { compareProcesses(t, g, v, pids) })
			t.Run("Threads", func(t *testing.T) { compareThreads(t, g, v) })
			t.Run("Known", func(t *testing.T) { checkKnown(t, g, v, pids) })
			t.Run("Environ", func(t *testing.T) { compareEnviron(t, g, v, pids) })
			t.Run("Space", func(t *testing.T) { compareSpace(t, g, v, pids) })
		})
	}
}

// both asks the guest before and after f, and returns what it said alike both
// times: what changed meanwhile proves nothing.
func both[T any](t *testing.T, ask func(context.Context) ([]T, error), key func(T) int, f func()) (same map[int]T, any map[int]bool) {
	t.Helper()
	before, err := ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := make(map[int]T)
	any = make(map[int]bool)
	for _, x := range before {
		first[key(x)] = x
		any[key(x)] = true
	}
	same = make(map[int]T)
	for _, x := range after {
		any[key(x)] = true
		if y, ok := first[key(x)]; ok && fmt.Sprint(x) == fmt.Sprint(y) {
			same[key(x)] = x
		}
	}
	return same, any
}

func compareProcesses(t *testing.T, g *guestlab.Guest, v *linux.View, pids map[string]int) {
	sys, err := g.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	boot := time.Unix(0, sys.Realtime-sys.Boottime)
	var all []kernel.Process
	var groups map[int][]linux.CGroup
	var states map[int]string
	same, any := both(t, g.Processes, func(p guestlab.Process) int { return p.PID }, func() {
		guarded(t, func() (err error) {
			if all, err = v.Processes(); err != nil {
				return err
			}
			groups, err = allGroups(v)
			return err
		})
		states = statesOf(t, v.Processes)
	})
	got := make(map[int]kernel.Process)
	for _, p := range all {
		if _, ok := got[p.PID]; ok {
			t.Errorf("pid %d twice", p.PID)
		}
		got[p.PID] = p
		if !any[p.PID] && !strings.HasPrefix(string(p.Comm), "kworker/") {
			t.Errorf("the guest has no process %d %q", p.PID, p.Comm)
		}
		if len(p.Missing) > 0 && p.PID != pids["long args"] {
			t.Errorf("%d %q: missing %q", p.PID, p.Comm, p.Missing)
		}
	}
	if len(same) < 20 || len(same) < len(any)/2 {
		t.Errorf("only %d of %d processes stood still", len(same), len(any))
	}
	for pid, want := range same {
		p, ok := got[pid]
		if !ok {
			t.Errorf("process %d %q is not listed", pid, want.Comm)
			continue
		}
		compareProcess(t, p, want, boot, pid == pids["long args"])
		// The agent runs when it answers, and only then.
		if !strings.Contains(states[pid], want.State) && want.State != "R" {
			t.Errorf("%d %q: states %q, want %q", pid, want.Comm, states[pid], want.State)
		}
		if lines := cgroupLines(groups[pid], want.State == "Z"); !slices.Equal(lines, want.Cgroup) {
			t.Errorf("%d %q: cgroups %q, want %q", pid, want.Comm, lines, want.Cgroup)
		}
	}
	t.Logf("%d processes compared, %d listed", len(same), len(all))
}

// statesOf looks several times and gathers the states that each task was seen
// in: a kernel thread that wakes now and then may run just when we look.
func statesOf(t *testing.T, list func() ([]kernel.Process, error)) map[int]string {
	states := make(map[int]string)
	for range 8 {
		guarded(t, func() error {
			all, err := list()
			for _, p := range all {
				states[p.PID] += p.State
			}
			return err
		})
		time.Sleep(10 * time.Millisecond)
	}
	return states
}

func compareProcess(t *testing.T, p kernel.Process, want guestlab.Process, boot time.Time, long bool) {
	t.Helper()
	differ := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("%d %q: %s %q, want %q", p.PID, p.Comm, what, got, want)
		}
	}
	differ("comm", string(p.Comm), commOf(p.Comm, want.Comm))
	differ("tgid", p.TGID, want.TGID)
	differ("ppid", p.PPID, want.PPID)
	differ("uid", p.UID, want.UID)
	differ("gid", p.GID, want.GID)
	differ("euid", p.EUID, want.EUID)
	differ("egid", p.EGID, want.EGID)
	differ("threads", p.Threads, want.Threads)
	differ("kthread", p.KThread, want.Kthread)
	differ("start ticks", p.SinceBoot/1e7, want.StartTicks)
	differ("exe", string(p.Exe), string(want.Exe))
	var args []kernel.Text
	if len(want.Cmdline) > 0 {
		for _, a := range bytes.Split(bytes.TrimSuffix(want.Cmdline, []byte{0}), []byte{0}) {
			args = append(args, kernel.Text(a))
		}
	}
	if long {
		// More than is read of one process: cut, and said.
		cut := 0
		for i, a := range p.Cmdline {
			cut += len(a) + 1
			if i >= len(args) || !strings.HasPrefix(string(args[i]), string(a)) {
				t.Errorf("%d: argument %d is wrong", p.PID, i)
			}
		}
		if cut < 128<<10 || len(p.Missing) != 1 || !strings.Contains(p.Missing[0], "longer than is read") {
			t.Errorf("%d: %d bytes of arguments, missing %q", p.PID, cut, p.Missing)
		}
	} else {
		differ("cmdline", p.Cmdline, args)
	}
	switch {
	case p.StartTime == nil:
		t.Errorf("%d %q: no start time", p.PID, p.Comm)
	case p.StartTime.Sub(boot.Add(time.Duration(p.SinceBoot))).Abs() > time.Second:
		t.Errorf("%d %q: started %v, want %v", p.PID, p.Comm, p.StartTime, boot.Add(time.Duration(p.SinceBoot)))
	}
	if user := !want.Kthread && want.State != "Z"; (p.Root != 0) != user {
		t.Errorf("%d %q: page-table root %#x", p.PID, p.Comm, uint64(p.Root))
	}
}

// commOf is the name that the guest shows, without what it adds to the name of
// a kworker: "-" or "+" and the work it does.
func commOf(got kernel.Text, shown []byte) string {
	s := string(shown)
	if rest, ok := strings.CutPrefix(s, string(got)); ok && strings.HasPrefix(s, "kworker/") && rest != "" && strings.ContainsAny(rest[:1], "+-") {
		return string(got)
	}
	return s
}

func allGroups(v *linux.View) (map[int][]linux.CGroup, error) {
	tasks, err := v.Tasks()
	out := make(map[int][]linux.CGroup)
	for _, task := range tasks {
		if g, err := v.CGroups(task); err == nil {
			out[task.PID] = g
		}
	}
	return out, err
}

// cgroupLines writes groups as /proc/PID/cgroup does: newest hierarchy first,
// and of a zombie the root in hierarchies of version 1.
func cgroupLines(groups []linux.CGroup, zombie bool) []string {
	slices.SortFunc(groups, func(a, b linux.CGroup) int {
		rank := func(g linux.CGroup) int {
			if g.Hierarchy == 0 {
				return 1
			}
			return -g.Hierarchy
		}
		return rank(a) - rank(b)
	})
	var out []string
	for _, g := range groups {
		what := strings.Join(g.Controllers, ",")
		if g.Name != "" {
			if what != "" {
				what += ","
			}
			what += "name=" + string(g.Name)
		}
		path := g.Path
		if zombie && g.Hierarchy != 0 {
			path = "/"
		}
		out = append(out, fmt.Sprintf("%d:%s:%s", g.Hierarchy, what, path))
	}
	return out
}

func compareThreads(t *testing.T, g *guestlab.Guest, v *linux.View) {
	var all []kernel.Process
	var states map[int]string
	ask := func(ctx context.Context) ([]guestlab.Thread, error) { return g.Threads(ctx, 0) }
	same, any := both(t, ask, func(th guestlab.Thread) int { return th.TID }, func() {
		guarded(t, func() (err error) {
			all, err = v.Threads()
			return err
		})
		states = statesOf(t, v.Threads)
	})
	got := make(map[int]kernel.Process)
	for i, p := range all {
		if !any[p.PID] && !strings.HasPrefix(string(p.Comm), "kworker/") {
			t.Errorf("the guest has no thread %d %q", p.PID, p.Comm)
		}
		if p.PID != p.TGID && (i == 0 || all[i-1].TGID != p.TGID) {
			t.Errorf("thread %d of %d comes behind %d", p.PID, p.TGID, all[i-1].TGID)
		}
		got[p.PID] = p
	}
	many := 0
	for tid, want := range same {
		p, ok := got[tid]
		if !ok {
			t.Errorf("thread %d %q is not listed", tid, want.Comm)
			continue
		}
		if want.TID != want.TGID {
			many++
		}
		if p.TGID != want.TGID || string(p.Comm) != commOf(p.Comm, want.Comm) || p.SinceBoot/1e7 != want.StartTicks ||
			!strings.Contains(states[tid], want.State) && want.State != "R" && p.Exe != "/bin/rat" { // what runs, runs for a moment; the agent's threads when they answer
			t.Errorf("thread %d: got %+v, states %s, want %+v", tid, p, states[tid], want)
		}
		if lead := got[p.TGID]; p.Exe != lead.Exe || p.UID != lead.UID || p.Threads != lead.Threads || p.Root != lead.Root || p.CGroup != lead.CGroup {
			t.Errorf("thread %d: got %+v, its leader %+v", tid, p, lead)
		}
	}
	if many < 5 {
		t.Errorf("only %d threads besides leaders compared", many)
	}
}

// checkKnown checks what is known of the processes without asking /proc, and
// what /proc does not tell.
func checkKnown(t *testing.T, g *guestlab.Guest, v *linux.View, pids map[string]int) {
	id := kernel.Text(strings.Repeat("0123456789abcdef", 4))
	for name, check := range map[string]func(p kernel.Process) bool{
		"container": func(p kernel.Process) bool {
			return p.Container == id && p.CGroup == "/system.slice/docker-"+id+".scope" && p.PID != 1 && p.Threads > 1
		},
		"pod":     func(p kernel.Process) bool { return p.Container == id },
		"user ns": func(p kernel.Process) bool { return p.UID == 33 && p.GID == 34 && p.EUID == 33 && p.Container == "" },
		"deleted": func(p kernel.Process) bool { return strings.HasSuffix(string(p.Exe), "/gone (deleted)") },
		"stopped": func(p kernel.Process) bool { return p.State == "T" },
		"bytes": func(p kernel.Process) bool {
			return p.Comm == "\xff\xfe\n\t" && slices.Equal(p.Cmdline, []kernel.Text{"\xff\x01\n"})
		},
		"title": func(p kernel.Process) bool {
			return slices.Equal(p.Cmdline, []kernel.Text{kernel.Text("new title: all of the" + strings.Repeat("E", 300))})
		},
		"overrun": func(p kernel.Process) bool {
			return slices.Equal(p.Cmdline, []kernel.Text{"overrun: a title that goes on and on into the environment"})
		},
		"v1": func(p kernel.Process) bool {
			return p.Container == "deb" && p.CGroup == "/machine.slice/machine-deb.scope"
		},
	} {
		pid, ok := pids[name]
		if !ok {
			continue
		}
		guarded(t, func() error {
			task, err := v.TaskByPID(pid)
			if err != nil {
				return err
			}
			p, err := v.Process(task)
			if err != nil {
				return err
			}
			if !check(p) {
				t.Errorf("%s: %+v", name, p)
			}
			return nil
		})
	}
	// The idle task is no process, init and kthreadd are.
	guarded(t, func() error {
		all, err := v.Processes()
		if err != nil {
			return err
		}
		if all[0].PID != 1 || all[0].PPID != 0 || all[1].PID != 2 || !all[1].KThread {
			t.Errorf("the list begins with %+v, %+v", all[0], all[1])
		}
		zombies := 0
		for _, p := range all {
			if p.State == "Z" && string(p.Comm) == "sh" && p.Exe == "" && p.Cmdline == nil {
				zombies++
			}
		}
		if zombies != 1 {
			t.Errorf("%d zombies", zombies)
		}
		return nil
	})
}

func compareEnviron(t *testing.T, g *guestlab.Guest, v *linux.View, pids map[string]int) {
	for name, pid := range pids {
		want, err := g.Environ(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		guarded(t, func() error {
			task, err := v.TaskByPID(pid)
			if err != nil {
				return err
			}
			got, err := v.Environ(task)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !slices.EqualFunc(got, want, func(a kernel.Text, b []byte) bool { return string(a) == string(b) }) {
				t.Errorf("%s: environment %.200q, want %.200q", name, got, want)
			}
			return nil
		})
	}
}

func compareSpace(t *testing.T, g *guestlab.Guest, v *linux.View, pids map[string]int) {
	for _, name := range slices.Sorted(maps.Keys(pids)) {
		pid := pids[name]
		out, err := g.Run(t.Context(), fmt.Sprintf("dd if=/proc/%[1]d/mem bs=64 count=1 iflag=skip_bytes skip=$(tail -n 1 /proc/%[1]d/stat | sed 's/.*) //' | cut -d' ' -f46) 2>/dev/null", pid))
		if err != nil || len(out) < 16 {
			t.Fatalf("%s: %d bytes of memory, %v", name, len(out), err)
		}
		maps, err := g.Mappings(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		guarded(t, func() error {
			task, err := v.TaskByPID(pid)
			if err != nil {
				return err
			}
			s, err := v.SpaceOf(task)
			if err != nil {
				return err
			}
			var start mem.VA
			for _, m := range maps {
				if string(m.Path) == "[stack]" {
					start = mem.VA(m.Start)
				}
			}
			p, err := v.Process(task)
			if err != nil {
				return err
			}
			if p.Root == 0 || start == 0 {
				t.Errorf("%s: root %#x, stack %#x", name, uint64(p.Root), uint64(start))
			}
			// The stack holds the bytes that the guest read.
			end := mem.VA(0)
			for _, m := range maps {
				if string(m.Path) == "[stack]" {
					end = mem.VA(m.End)
				}
			}
			// On Arm it may have read on: another area now and then begins where this ends.
			end += mem.PageSize
			b := make([]byte, min(uint64(end-start), 1<<20))
			base := end - mem.VA(len(b))
			for at := base; at < end; at += mem.PageSize {
				s.Read(b[at-base:at-base+mem.PageSize], at)
			}
			if !bytes.Contains(b, []byte(out)) {
				t.Errorf("%s: %q is not on its stack", name, out)
			}
			return nil
		})
	}
	guarded(t, func() error {
		task, err := v.TaskByPID(2)
		if err != nil {
			return err
		}
		if s, err := v.SpaceOf(task); err == nil {
			t.Errorf("kthreadd has an address space, %v", s.Name)
		} else {
			t.Log(err)
		}
		return nil
	})
}

// busyGuest boots a guest with at least 100 processes.
func busyGuest(b *testing.B) (*linux.View, int) {
	b.Helper()
	g := guestlab.Boot(b, guestlab.Config{Kernel: "bookworm-cloud"})
	if _, err := g.Run(b.Context(), "for i in $(seq 60); do sleep 100000 </dev/null >/dev/null 2>&1 & done"); err != nil {
		b.Fatal(err)
	}
	_, v := guestView(b, g)
	var n int
	guarded(b, func() error {
		tasks, err := v.Tasks()
		n = len(tasks)
		return err
	})
	if n < 100 {
		b.Fatalf("only %d processes", n)
	}
	return v, n
}

func BenchmarkTasksGuest(b *testing.B) {
	v, n := busyGuest(b)
	guarded(b, func() (err error) {
		var to []linux.Task
		b.ReportAllocs()
		for b.Loop() {
			if to, err = v.AppendTasks(to[:0]); err != nil {
				return err
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/task")
		return nil
	})
}

func BenchmarkProcessesGuest(b *testing.B) {
	v, n := busyGuest(b)
	guarded(b, func() error {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Processes(); err != nil {
				return err
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/process")
		return nil
	})
}
