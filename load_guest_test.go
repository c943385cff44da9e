package vmscope_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/mem"
)

// stormModules are loaded and unloaded all the time by testLoad.
var stormModules = []string{"dummy", "ifb"}

// testLoad looks at a guest that forks and loads modules as fast as it can.
// Every answer must be right or say that it is not: what lived before, during
// and after the storm is in every list with its values, and nothing in any list
// is impossible.
func testLoad(t *testing.T, g *guestlab.Guest) {
	var before []guestlab.Socket
	var err error
	if before, err = g.Sockets(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := &load{sockets: before, passing: make(map[int]bool), storms: make(map[string]int)}
	type tried struct {
		route string
		n     int
		tally map[string]*tally
	}
	var all []tried
	w := truthOf(t, g, func() {
		l.begin(t, g)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := g.Run(ctx, "rat storm 3 300 >/dev/null 2>&1 & rat modstorm 300 "+strings.Join(stormModules, " ")+" >/dev/null 2>&1 & wait")
			done <- err
		}()
		time.Sleep(time.Second)
		for route, length := range map[string]time.Duration{"mmap": 8 * time.Second, "vmread": 6 * time.Second} {
			n, tally := l.watch(t, g, route, length)
			all = append(all, tried{route, n, tally})
		}
		cancel()
		<-done
		// What the storm left must end before the guest is asked again.
		if _, err := g.Run(t.Context(), "killall rat-storm leaf 2>/dev/null; for m in "+strings.Join(stormModules, " ")+"; do rmmod $m 2>/dev/null; done; true"); err != nil {
			t.Error(err)
		}
	})
	maps.DeleteFunc(l.passing, func(_ int, user bool) bool { return !user })
	t.Logf("seen: %d short-lived processes, short-lived modules %v", len(l.passing), l.storms)
	if len(l.passing) < 100 || l.storms["Live"]+l.storms["Loading"]+l.storms["Unloading"] == 0 {
		t.Error("there was no storm")
	}
	for pid := range l.known {
		if _, ok := w.procs[pid]; !ok {
			t.Logf("process %d %q did not outlive the storm", pid, l.known[pid].Comm)
		}
	}
	for _, r := range all {
		for _, what := range []string{"Processes", "Tasks", "Modules", "AllFiles", "Sockets"} {
			y := r.tally[what]
			t.Logf("%s %s: %d answers, %d said that they were not whole (%.1f %%) %q", r.route, what, y.all, y.failed, 100*float64(y.failed)/float64(max(y.all, 1)), y.errs)
			if y.all == y.failed {
				t.Errorf("%s: no answer of %s was whole", r.route, what)
			}
		}
	}
	if s := look(t, g.Name()); len(s.procs) > 0 {
		w.modules = slices.DeleteFunc(w.modules, func(m guestlab.Module) bool { return slices.Contains(stormModules, m.Name) })
		s.modules = slices.DeleteFunc(s.modules, func(m kernel.Module) bool { return slices.Contains(stormModules, string(m.Name)) })
		s.procs = slices.DeleteFunc(s.procs, func(p kernel.Process) bool { return w.procs[p.PID].PID == 0 })
		w.check(t, s)
	}
}

// load is what is known of a guest before the storm.
type load struct {
	known   map[int]guestlab.Process // that nobody starts or ends meanwhile
	modules map[string]guestlab.Module
	sockets []guestlab.Socket
	held    int // the process that holds /tmp/held

	passing map[int]bool   // short-lived processes that were seen
	storms  map[string]int // states of short-lived modules that were seen
}

// tally counts the answers to one question.
type tally struct {
	all, failed int
	errs        []string // some of what they said
}

func (y *tally) add(err error) bool {
	y.all++
	if err == nil {
		return true
	}
	y.failed++
	if len(y.errs) < 3 {
		y.errs = append(y.errs, err.Error())
	}
	return false
}

func (l *load) begin(t *testing.T, g *guestlab.Guest) {
	l.known = make(map[int]guestlab.Process)
	list, err := g.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if !strings.HasPrefix(string(p.Comm), "kworker/") {
			l.known[p.PID] = p
		}
		if string(p.Comm) == "holder" || slices.ContainsFunc(l.sockets, func(s guestlab.Socket) bool {
			return s.Local == "127.0.0.1:8080" && slices.ContainsFunc(s.Owners, func(o guestlab.Owner) bool { return o.PID == p.PID })
		}) {
			l.held = p.PID
		}
	}
	mods, err := g.Modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.modules = make(map[string]guestlab.Module)
	for _, m := range mods {
		l.modules[m.Name] = m
	}
	if l.held == 0 {
		t.Fatal("nobody holds the socket")
	}
}

// watch asks again and again.
func (l *load) watch(t *testing.T, g *guestlab.Guest, route string, length time.Duration) (n int, out map[string]*tally) {
	t.Helper()
	out = make(map[string]*tally)
	for _, what := range []string{"Processes", "Tasks", "Modules", "AllFiles", "Sockets"} {
		out[what] = new(tally)
	}
	vg, err := vmscope.Open(t.Context(), g.Name(), vmscope.Route(route))
	if err != nil {
		t.Fatal(err)
	}
	defer vg.Close()
	for end := time.Now().Add(length); time.Now().Before(end) && n < 4000 && !t.Failed(); n++ {
		err := vg.View(t.Context(), func(v *vmscope.View) error {
			procs, err := v.Processes()
			l.class(t, err)
			l.processes(t, procs, out["Processes"].add(err))
			tasks, err := v.Tasks()
			l.class(t, err)
			out["Tasks"].add(err)
			pids := make(map[int]bool)
			for _, task := range tasks {
				if task.PID <= 0 || task.PID > 4<<20 {
					t.Errorf("task with pid %d", task.PID)
				}
				pids[task.PID] = true
			}
			for pid := range l.known {
				if err == nil && !pids[pid] {
					t.Errorf("Tasks: %d %q is not listed", pid, l.known[pid].Comm)
				}
			}
			mods, err := v.Modules()
			l.class(t, err)
			l.mods(t, mods, out["Modules"].add(err))
			if n%4 != 0 {
				return nil
			}
			files, err := v.AllFiles()
			l.class(t, err)
			l.files(t, files, out["AllFiles"].add(err))
			socks, err := v.Sockets()
			l.class(t, err)
			l.socks(t, socks, out["Sockets"].add(err))
			return nil
		})
		if err != nil {
			t.Errorf("view %d: %v", n, err)
		}
	}
	return n, out
}

// class checks that what an answer says of itself is one of the classes that
// fit a guest that changes.
func (l *load) class(t *testing.T, err error) {
	if err == nil || errors.Is(err, mem.ErrInconsistent) || errors.Is(err, mem.ErrNotMapped) || errors.Is(err, mem.ErrNoRAM) {
		return
	}
	t.Errorf("an error that no change of the guest explains: %v", err)
}

func (l *load) processes(t *testing.T, list []kernel.Process, whole bool) {
	at := make(map[mem.VA]bool)
	got := make(map[int]kernel.Process)
	for _, p := range list {
		if at[p.TaskStruct] {
			t.Errorf("%d %q is listed twice", p.PID, p.Comm)
		}
		at[p.TaskStruct] = true
		if q, ok := got[p.PID]; ok {
			t.Errorf("pid %d twice: %+v, %+v", p.PID, p, q)
		}
		got[p.PID] = p
		if l.known[p.PID].PID != 0 {
			continue
		}
		l.passing[p.PID] = !p.KThread
		if p.PID <= 0 || p.PID > 4<<20 || p.TGID != p.PID || p.PPID < 0 || p.PPID > 4<<20 || p.UID != 0 ||
			!strings.Contains("RSDTtXZPI", p.State) || len(p.State) != 1 || !plain(string(p.Comm), p.KThread) || p.Threads < 0 || p.Threads > 1000 {
			t.Errorf("impossible: %+v", p)
		}
	}
	if !whole {
		return
	}
	for pid, want := range l.known {
		p, ok := got[pid]
		switch {
		case !ok:
			t.Errorf("Processes: %d %q is not listed", pid, want.Comm)
		case wordsOf(p) != wordsOfTruth(want):
			t.Errorf("process %d:\n got %s\nwant %s\n missing %q", pid, wordsOf(p), wordsOfTruth(want), p.Missing)
		case len(p.Missing) > 0:
			t.Errorf("process %d %q: missing %q", pid, p.Comm, p.Missing)
		}
	}
}

// plain reports whether s is a name as the storm's processes have. Those of the
// kernel may have long ones.
func plain(s string, kernel bool) bool {
	return s != "" && (len(s) < 16 || kernel && len(s) < 64) && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (l *load) mods(t *testing.T, list []kernel.Module, whole bool) {
	got := make(map[string]bool)
	for _, m := range list {
		if got[string(m.Name)] {
			t.Errorf("module %q twice", m.Name)
		}
		got[string(m.Name)] = true
		want, ok := l.modules[string(m.Name)]
		if !ok && !slices.Contains(stormModules, string(m.Name)) {
			t.Errorf("a module that there is not: %+v", m)
		}
		if ok && (m.Size != want.Size || uint64(m.Base) != want.Addr || m.State != want.State) {
			t.Errorf("module %+v, want %+v", m, want)
		}
		if !ok {
			l.storms[m.State]++
		}
		if !ok && (m.Size == 0 || m.Size > 1<<20 || m.Base < 1<<63) {
			t.Errorf("impossible: %+v", m)
		}
	}
	for name := range l.modules {
		if whole && !got[name] {
			t.Errorf("module %s is not listed", name)
		}
	}
}

func (l *load) files(t *testing.T, list []kernel.File, whole bool) {
	found := 0
	for _, f := range list {
		if f.PID <= 0 || f.FD < 0 || f.FD > 1<<20 {
			t.Errorf("impossible: %+v", f)
		}
		if f.PID == l.held && f.Path == "/tmp/held" && f.Type == "REG" {
			found++
		}
	}
	if whole && found != 1 {
		t.Errorf("%d descriptors of /tmp/held in %d files", found, len(list))
	}
}

func (l *load) socks(t *testing.T, list []kernel.Socket, whole bool) {
	got := make(map[string]bool)
	for _, s := range list {
		for _, o := range s.Owners {
			got[fmt.Sprintf("%s %s %d", s.Proto, s.Local, o.PID)] = true
		}
	}
	for _, want := range []string{"tcp 127.0.0.1:8080", "udp6 [::1]:53", "unix @abstract"} {
		if whole && !got[fmt.Sprintf("%s %d", want, l.held)] {
			t.Errorf("%s of %d is not listed: %v", want, l.held, got)
		}
	}
}
