package vmscope_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
)

// TestGuest boots each stock kernel once and does with it what users do.
func TestGuest(t *testing.T) {
	for _, name := range guestlab.TestKernels(t) {
		t.Run(name, func(t *testing.T) {
			g := guestlab.Boot(t, guestlab.Config{Kernel: name, CPUs: 2})
			for _, s := range []guestlab.Spawn{
				{Comm: []byte("sleeper"), Args: [][]byte{[]byte("sleeper"), []byte("a b"), {}, []byte("c\n")}, UID: 1000, GID: 65534},
				{Comm: []byte("\xff\x1b[31m"), Args: [][]byte{{0xff, 0x1b, '\n'}}},
				{Comm: []byte("holder"), Hold: &guestlab.Hold{Threads: [][]byte{[]byte("worker")}, Files: []string{"/tmp/held"}, Listen: []string{"tcp4:127.0.0.1:8080", "unix:@abstract"}, Bind: []string{"udp6:[::1]:53"}}},
			} {
				if _, err := g.Spawn(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			// First: asking the monitor for all RAM makes untouched memory real.
			t.Run("dumps", func(t *testing.T) { testDumps(t, g) })
			t.Run("targets", func(t *testing.T) { testTargets(t, g) })
			t.Run("routes", func(t *testing.T) { testRoutes(t, g) })
			t.Run("process core", func(t *testing.T) { testProcessCore(t, g) })
			t.Run("shared core", func(t *testing.T) { testSharedCore(t, g) })
			t.Run("update", func(t *testing.T) { testUpdate(t, g) })
			t.Run("pause", func(t *testing.T) { testPause(t, g) })
			t.Run("examples", func(t *testing.T) { testExamples(t, g) })
			t.Run("monitors", func(t *testing.T) { testMonitors(t, g) })
			t.Run("tutorial", func(t *testing.T) { testTutorial(t, g) })
			t.Run("load", func(t *testing.T) { testLoad(t, g) })
		})
	}
}

// seen is what one look showed.
type seen struct {
	release string
	route   string
	procs   []kernel.Process
	modules []kernel.Module
}

// look opens a target for one look.
func look(t testing.TB, target string, opts ...vmscope.Option) seen {
	t.Helper()
	var s seen
	err := vmscope.Look(t.Context(), target, func(v *vmscope.View) (err error) {
		s, err = see(v)
		return err
	}, opts...)
	if err != nil {
		t.Fatalf("look at %s: %v", target, err)
	}
	return s
}

func see(v *vmscope.View) (s seen, err error) {
	s.release = v.Release
	if s.procs, err = v.Processes(); err != nil {
		return s, err
	}
	s.modules, err = v.Modules()
	return s, err
}

// truth is what a guest says of itself.
type truth struct {
	release string
	procs   map[int]guestlab.Process // that stood still between the first and the last word
	pids    map[int]bool             // all that were seen
	modules []guestlab.Module
}

// truthOf asks the guest before and after f.
func truthOf(t testing.TB, g *guestlab.Guest, f func()) truth {
	t.Helper()
	ask := func() []guestlab.Process {
		list, err := g.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := ask()
	f()
	w := truth{procs: make(map[int]guestlab.Process), pids: make(map[int]bool)}
	for _, p := range before {
		w.pids[p.PID] = true
		w.procs[p.PID] = p
	}
	after := make(map[int]string)
	for _, p := range ask() {
		w.pids[p.PID] = true
		after[p.PID] = still(p)
	}
	maps.DeleteFunc(w.procs, func(pid int, p guestlab.Process) bool { return after[pid] != still(p) })
	if len(w.procs) < 20 {
		t.Fatalf("only %d of %d processes stood still", len(w.procs), len(w.pids))
	}
	sys, err := g.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.release = sys.Release
	if w.modules, err = g.Modules(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// still is what does not change of a process while it does what it did.
func still(p guestlab.Process) string {
	p.State, p.Flags, p.VSize, p.Threads = "", 0, 0, 0
	if p.Kthread && strings.HasPrefix(string(p.Comm), "kworker/") {
		p.Comm = nil // it carries the present work
	}
	return fmt.Sprint(p)
}

// check compares what a look showed with the truth, value by value.
func (w truth) check(t testing.TB, s seen) {
	t.Helper()
	if s.release != w.release {
		t.Errorf("release %q, the guest says %q", s.release, w.release)
	}
	got := make(map[int]kernel.Process)
	for _, p := range s.procs {
		if _, ok := got[p.PID]; ok {
			t.Errorf("pid %d is listed twice", p.PID)
		}
		got[p.PID] = p
		if !w.pids[p.PID] && !strings.HasPrefix(string(p.Comm), "kworker/") {
			t.Errorf("the guest has no process %d %q", p.PID, p.Comm)
		}
	}
	for pid, want := range w.procs {
		p, ok := got[pid]
		if !ok {
			t.Errorf("process %d %q is not listed", pid, want.Comm)
			continue
		}
		if a, b := wordsOf(p), wordsOfTruth(want); a != b {
			t.Errorf("process %d:\n got %s\nwant %s", pid, a, b)
		}
	}
	var a, b []string
	for _, m := range s.modules {
		a = append(a, fmt.Sprintf("%s %d refs %d by %q %s at %#x", m.Name, m.Size, m.Refs, m.UsedBy, m.State, uint64(m.Base)))
	}
	for _, m := range w.modules {
		b = append(b, fmt.Sprintf("%s %d refs %d by %q %s at %#x", m.Name, m.Size, m.Refs, m.UsedBy, m.State, m.Addr))
	}
	if !slices.Equal(a, b) {
		t.Errorf("modules:\n got %s\nwant %s", strings.Join(a, "\n     "), strings.Join(b, "\n     "))
	}
}

func wordsOf(p kernel.Process) string {
	comm := string(p.Comm)
	if p.KThread && strings.HasPrefix(comm, "kworker/") {
		comm = "kworker/"
	}
	var cmdline []byte
	for _, a := range p.Cmdline {
		cmdline = append(append(cmdline, a...), 0)
	}
	return fmt.Sprintf("tgid %d ppid %d uid %d gid %d euid %d egid %d comm %q cmdline %q exe %q kthread %v started %d",
		p.TGID, p.PPID, p.UID, p.GID, p.EUID, p.EGID, comm, cmdline, string(p.Exe), p.KThread, p.SinceBoot/1e7)
}

func wordsOfTruth(p guestlab.Process) string {
	comm := string(p.Comm)
	if p.Kthread && strings.HasPrefix(comm, "kworker/") {
		comm = "kworker/"
	}
	return fmt.Sprintf("tgid %d ppid %d uid %d gid %d euid %d egid %d comm %q cmdline %q exe %q kthread %v started %d",
		p.TGID, p.PPID, p.UID, p.GID, p.EUID, p.EGID, comm, p.Cmdline, string(p.Exe), p.Kthread, p.StartTicks)
}

// qmp says one thing to a QEMU's monitor and hangs up.
func qmp(t testing.TB, socket, command string, args any) json.RawMessage {
	t.Helper()
	out, err := qmpTry(socket, command, args)
	if err != nil {
		t.Fatalf("QMP %s: %v", command, err)
	}
	return out
}

func qmpTry(socket, command string, args any) (json.RawMessage, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	r := bufio.NewReader(c)
	if _, err := r.ReadBytes('\n'); err != nil {
		return nil, err
	}
	say := func(command string, args any) (json.RawMessage, error) {
		b, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
		if err != nil {
			return nil, err
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return nil, err
		}
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return nil, err
			}
			var answer struct {
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal(bytes.TrimSpace(line), &answer); err != nil {
				return nil, err
			}
			if answer.Error != nil {
				return nil, fmt.Errorf("%s: %s", command, answer.Error.Desc)
			}
			if answer.Return != nil {
				return answer.Return, nil
			}
		}
	}
	if _, err := say("qmp_capabilities", struct{}{}); err != nil {
		return nil, err
	}
	if args == nil {
		args = struct{}{}
	}
	return say(command, args)
}

// status is what the monitor says of the guest: "running", "paused".
func status(t testing.TB, g *guestlab.Guest) string {
	t.Helper()
	var s struct{ Status string }
	if err := json.Unmarshal(qmp(t, g.QMPSocket(), "query-status", nil), &s); err != nil {
		t.Fatal(err)
	}
	return s.Status
}
