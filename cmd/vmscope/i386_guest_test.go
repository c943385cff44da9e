package main

import (
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// TestI386Guest runs commands on a guest of 32 bits with PAE and RAM above 4 GiB,
// whose kernel tells neither types nor variables, and compares what they say with
// what the guest says of itself: also of processes and modules, the types of which are
// inferred. What takes others is refused with advice.
func TestI386Guest(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-686-pae", MemoryMiB: 5 << 10, Modules: []string{"overlay"}})
	(&bits32{g, "i686", "PAE", []string{"cgroup", "cmdline", "container", "exe", "root"}}).test(t)
}

// test compares all that the commands say of the guest.
func (c *bits32) test(t *testing.T) {
	g := c.Guest
	if _, err := g.Run(t.Context(), "hostname "+hostName); err != nil {
		t.Fatal(err)
	}
	c.testIdentity(t, g.Name())
	c.testSymbols(t)
	c.testMemory(t, g.Name())
	c.testLog(t, g.Name())
	c.testProcesses(t)
	c.testModules(t)
	c.testRefused(t)
	core := filepath.Join(t.TempDir(), "core")
	if _, stderr, status := run(t, "dump", g.Name(), core, "--pause"); status != 0 {
		t.Fatalf("dump: status %d, %s", status, stderr)
	}
	c.testIdentity(t, core)
	c.testMemory(t, core)
	c.testLog(t, core)
	c.testWrite(t)
}

const hostName = "a-name-that-is-given-and-taken"

type bits32 struct {
	*guestlab.Guest
	arch, paging string
	unknown      []string // fields of a process that its kernel does not tell
}

// TestFunctionsGuest lists processes and modules of a kernel that tells its types,
// but names functions only.
func TestFunctionsGuest(t *testing.T) {
	const name = "bookworm-cloud-arm64"
	if !slices.Contains(guestlab.OtherKernels(), name) {
		t.Skip(guestlab.KernelsVariable + " does not ask for " + name)
	}
	c := &bits32{Guest: guestlab.Boot(t, guestlab.Config{Kernel: name})}
	c.testProcesses(t)
	c.testModules(t)
	failed(t, []string{"mount", c.Name()}, "lack variables", "--sysmap")
	failed(t, []string{"lsof", c.Name()}, "lack variables", "--sysmap")
}

func (c *bits32) testIdentity(t *testing.T, target string) {
	t.Helper()
	sys, err := c.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, stderr, status := run(t, "info", target, "--json")
	if status != 0 {
		t.Fatalf("info: status %d, %s", status, stderr)
	}
	o := object(t, out)
	for field, want := range map[string]any{
		"os": "linux", "arch": sys.Machine, "release": sys.Release, "version": sys.Banner, "hostname": hostName, "paging": c.paging, "contradictions": nil,
	} {
		if o[field] != want {
			t.Errorf("info %s: %s is %v, the guest says %v", target, field, o[field], want)
		}
	}
}

// testSymbols compares some functions, and that a variable is not guessed.
func (c *bits32) testSymbols(t *testing.T) {
	all, err := c.Kallsyms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	where := make(map[string][]guestlab.Symbol)
	for _, s := range all {
		if s.Module == "" {
			where[s.Name] = append(where[s.Name], s)
		}
	}
	var names []string
	for name, s := range where {
		if len(s) == 1 && len(names) < 500 {
			names = append(names, name)
		}
	}
	type symLine struct{ Name, Addr, Type string }
	for _, s := range decoded[symLine](t, append([]string{"sym", c.Name()}, names...)...) {
		want := where[s.Name][0]
		if s.Addr != fmt.Sprintf("%#x", want.Addr) || s.Type != string(want.Type) {
			t.Errorf("sym: %+v, the guest says %#x %c", s, want.Addr, want.Type)
		}
	}
	failed(t, []string{"sym", c.Name(), "init_task"}, "lack variables", "--sysmap")
}

type memLine struct{ Addr, Data string }

// testMemory reads a module's note, in memory that is mapped page by page.
func (c *bits32) testMemory(t *testing.T, target string) {
	t.Helper()
	out, err := c.Run(t.Context(), `m=/sys/module/overlay; cat $m/sections/.note.gnu.build-id; od -An -v -tx1 $m/notes/.note.gnu.build-id | tr -d ' \n'`)
	at, note, ok := strings.Cut(strings.TrimSpace(out), "\n")
	if err != nil || !ok || len(note) < 32 {
		t.Fatalf("%q, %v", out, err)
	}
	got := decoded[memLine](t, "read", target, "--va", at, "--len", itoa(len(note)/2))
	if len(got) != 1 || got[0].Data != note {
		t.Errorf("read %s: %+v, the guest says %s", target, got, note)
	}
}

func (c *bits32) testLog(t *testing.T, target string) {
	t.Helper()
	want, err := c.Dmesg(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	type logLine struct {
		Seq  uint64
		Text string
	}
	got := decoded[logLine](t, "dmesg", target)
	for i := range min(len(got), len(want)) {
		if got[i].Seq != want[i].Seq || got[i].Text != string(want[i].Text) {
			t.Fatalf("dmesg %s: record %d is %+v, the guest says %d %q", target, i, got[i], want[i].Seq, want[i].Text)
		}
	}
	if len(want) < 100 || len(got) < len(want)-1 { // the guest may have said one more meanwhile
		t.Errorf("dmesg %s: %d records, the guest says %d", target, len(got), len(want))
	}
}

type psLine struct {
	PID, PPID, TGID      int
	UID, GID, EUID, EGID uint32
	Comm, State          string
	StartTime            *time.Time `json:"start_time"`
	Threads              int
	KThread              bool
	Unknown              []string
}

type lsmodLine struct {
	Name, Base, State string
	Size              uint64
	Refs              int
	UsedBy            []string `json:"used_by"`
	Unknown           []string
}

// testProcesses compares all that is known of processes, some of another user, with
// threads, or dead.
func (c *bits32) testProcesses(t *testing.T) {
	if _, err := c.Run(t.Context(), `su nobody -s /bin/sh -c 'sleep 1000 &'; sh -c 'sleep 0 & exec sleep 1000' & sleep 1`); err != nil {
		t.Fatal(err)
	}
	sys, err := c.System(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Those that were there before and after.
	list := func() []guestlab.Process {
		all, err := c.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	var before []guestlab.Process
	var rows map[int]psLine
	for range 10 { // what the guest changes under the inference may hide a member
		before, rows = list(), make(map[int]psLine)
		unknown := make(map[string]bool)
		for _, p := range decoded[psLine](t, "ps", c.Name()) {
			rows[p.PID] = p
			for _, field := range p.Unknown {
				unknown[field] = true
			}
		}
		got := slices.Sorted(maps.Keys(unknown))
		if slices.Equal(got, c.unknown) {
			break
		}
		t.Logf("unknown are %v", got)
		rows = nil
	}
	if rows == nil {
		t.Fatal("more is unknown than need be")
	}
	after := make(map[int]guestlab.Process)
	for _, p := range list() {
		after[p.PID] = p
	}
	n, users, dead := 0, 0, 0
	for _, p := range before {
		if q, ok := after[p.PID]; !ok || q.StartTicks != p.StartTicks {
			continue
		}
		n++
		got, ok := rows[p.PID]
		state := got.State
		if p.State != after[p.PID].State || p.State == "R" || p.Kthread { // a thread of the kernel may have run just then
			state = p.State
		}
		if p.UID != 0 {
			users++
		}
		if p.State == "Z" {
			dead++
		}
		if slices.Contains(c.unknown, "uid") { // all four are left out
			p.UID, p.GID, p.EUID, p.EGID = 0, 0, 0, 0
		}
		if p.Threads != after[p.PID].Threads {
			p.Threads = got.Threads
		}
		start := time.Unix(0, sys.Realtime-sys.Boottime).Add(time.Duration(p.StartTicks) * 10 * time.Millisecond)
		if got.StartTime == nil || got.StartTime.Sub(start).Abs() > time.Second {
			t.Errorf("ps: %d started at %v, the guest says %v", p.PID, got.StartTime, start)
		}
		name, want := got.Comm, string(p.Comm)
		if strings.HasPrefix(want, "kworker/") { // /proc says what it works on
			name, want = "", ""
		}
		is := fmt.Sprint(ok, got.TGID, got.PPID, got.UID, got.GID, got.EUID, got.EGID, name, got.Threads, got.KThread, state)
		if says := fmt.Sprint(true, p.TGID, p.PPID, p.UID, p.GID, p.EUID, p.EGID, want, p.Threads, p.Kthread, p.State); is != says {
			t.Errorf("ps: %d is %s, the guest says %s", p.PID, is, says)
		}
	}
	if n < 20 || users == 0 || dead == 0 {
		t.Errorf("%d processes, %d of other users, %d dead", n, users, dead)
	}
}

// testModules compares modules.
func (c *bits32) testModules(t *testing.T) {
	all, err := c.Modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, m := range all {
		want = append(want, fmt.Sprint(m.Name, m.Size, m.Refs, m.UsedBy, m.State, fmt.Sprintf("%#x", m.Addr)))
	}
	for _, m := range decoded[lsmodLine](t, "lsmod", c.Name()) {
		got = append(got, fmt.Sprint(m.Name, m.Size, m.Refs, m.UsedBy, m.State, m.Base))
		if slices.Contains(m.Unknown, "taint") != (c.unknown != nil) {
			t.Errorf("lsmod: %+v", m)
		}
	}
	if len(got) < 5 || !slices.Equal(got, want) {
		t.Errorf("lsmod:\n%s\nthe guest says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (c *bits32) testRefused(t *testing.T) {
	failed(t, []string{"mount", c.Name()}, "types of this kernel are not known", "--types")
	failed(t, []string{"type", c.Name(), "task_struct"}, "types of this kernel are not known", "--types")
	_, stderr, status := run(t, "check", c.Name())
	if status != statusFailed || !strings.Contains(stderr, "not on this processor ("+c.arch+")") || !strings.Contains(stderr, "modules") {
		t.Errorf("check: status %d, %q", status, stderr)
	}
}

// testWrite changes a variable, which the guest then tells.
func (c *bits32) testWrite(t *testing.T) {
	got := decoded[memLine](t, "read", c.Name(), "--sym", "init_uts_ns", "--len", "512")
	b, err := hex.DecodeString(got[0].Data)
	off := strings.Index(string(b), hostName+"\x00")
	if err != nil || off < 0 {
		t.Fatalf("init_uts_ns: %q, %v", b, err)
	}
	if _, stderr, status := run(t, "write", c.Name(), "--sym", "init_uts_ns+"+itoa(off), "--string", "written", "--allow-write"); status != 0 {
		t.Fatalf("write: status %d, %s", status, stderr)
	}
	if out, err := c.Run(t.Context(), "hostname"); err != nil || out != "written\n" {
		t.Errorf("the guest's name is %q, %v", out, err)
	}
}
