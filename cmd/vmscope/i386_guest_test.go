package main

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestI386Guest runs commands on a guest of 32 bits with PAE and RAM above 4 GiB,
// whose kernel tells neither types nor variables, and compares what they say with
// what the guest says of itself. What takes types is refused with advice.
func TestI386Guest(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-686-pae", MemoryMiB: 5 << 10, Modules: []string{"overlay"}})
	c := &bits32{g}
	if _, err := g.Run(t.Context(), "hostname "+hostName); err != nil {
		t.Fatal(err)
	}
	c.testIdentity(t, g.Name())
	c.testSymbols(t)
	c.testMemory(t, g.Name())
	c.testLog(t, g.Name())
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

type bits32 struct{ *guestlab.Guest }

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
		"os": "linux", "arch": sys.Machine, "release": sys.Release, "version": sys.Banner, "hostname": hostName, "paging": "PAE", "contradictions": nil,
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

func (c *bits32) testRefused(t *testing.T) {
	failed(t, []string{"ps", c.Name()}, "types of this kernel are not known", "--types")
	failed(t, []string{"lsmod", c.Name()}, "lack variables", "--sysmap")
	_, stderr, status := run(t, "check", c.Name())
	if status != statusFailed || !strings.Contains(stderr, "not on this processor (i686)") || !strings.Contains(stderr, "modules") {
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
