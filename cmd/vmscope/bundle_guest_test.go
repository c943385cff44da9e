package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestBundleAndExplain bends a system call and code, writes a bundle, ends the
// guest, and finds and explains the same in the bundle.
func TestBundleAndExplain(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 512})
	dir := t.TempDir()
	state, path := filepath.Join(dir, "state"), filepath.Join(dir, "web1.bundle")
	if out, stderr, status := run(t, "check", g.Name(), "--state", state); status != statusDone {
		t.Fatalf("status %d, %q, %q", status, out, stderr)
	}
	symbol := func(name string) uint64 {
		t.Helper()
		at, err := strconv.ParseUint(decoded[struct{ Addr string }](t, "sym", g.Name(), name)[0].Addr, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	slot, code := symbol("sys_call_table")+8*63, symbol("panic")+0x20 // nobody goes there
	for at, bytes := range map[uint64]string{slot: fmt.Sprintf("%x", binary.LittleEndian.AppendUint64(nil, slot)), code: "0f0b"} {
		if _, stderr, status := run(t, "write", g.Name(), "--va", fmt.Sprintf("%#x", at), "--hex", bytes, "--allow-write"); status != statusDone {
			t.Fatal(stderr)
		}
	}
	want, stderr, status := run(t, "check", g.Name(), "--state", state, "--json")
	if status != statusFindings || !strings.Contains(want, `"id":"syscalls-`) || !strings.Contains(want, `"id":"text-`) {
		t.Fatalf("status %d, %q, %q", status, want, stderr)
	}
	out, stderr, status := run(t, "check", g.Name(), "--state", state, "--json", "--bundle", path)
	if status != statusFindings || out != want || !strings.Contains(stderr, "wrote "+path) {
		t.Fatalf("status %d, %q, %q", status, out, stderr)
	}
	t.Log(stderr)
	failed(t, []string{"check", g.Name(), "--bundle", path}, "exists", "--force")
	if _, stderr, status := run(t, "check", g.Name(), "--state", state, "--bundle", path, "-f"); status != statusFindings {
		t.Errorf("status %d, %q", status, stderr)
	}
	failed(t, []string{"check", g.Name(), "--bundle", dir}, "no file")
	failed(t, []string{"check", g.Name(), "--bundle", filepath.Join(dir, "no", "such")}, "no such")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v, %v: only the bundle and the state", left, err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}

	if out, stderr, status := run(t, "check", path, "--json"); status != statusFindings || out != want || stderr != "" {
		t.Errorf("the bundle: status %d, %q, %q\nwant %q", status, out, stderr, want)
	}
	if out, stderr, status := run(t, "info", path); status != statusDone || !strings.Contains(out, "512") {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	for line := range strings.Lines(want) {
		var f struct{ ID, Summary string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		explainIt(t, path, f.ID, f.Summary)
	}
	failed(t, []string{"check", path, "--explain", "text-0000000000000"}, "no finding")
	failed(t, []string{"check", path, "--explain", ""}, "findings begin with")
	failed(t, []string{"check", path, "--explain", "text", "--watch", "1s"}, "explain")

	// Some page was not looked at.
	for pa := 1 << 20; ; pa += 1 << 20 {
		if _, stderr, status := run(t, "read", path, "--pa", fmt.Sprintf("%#x", pa), "--len", "1"); status == statusFailed {
			if !strings.Contains(stderr, fmt.Sprintf("%#x", pa)) || !strings.Contains(stderr, "bundle does not hold") {
				t.Errorf("%q", stderr)
			}
			break
		}
		if pa >= 512<<20 {
			t.Fatal("the bundle has all memory")
		}
	}
}

func explainIt(t *testing.T, path, id, summary string) {
	t.Helper()
	id = id[:len(id)-3] // the start will do
	out, stderr, status := run(t, "check", path, "--explain", id)
	if status != statusFindings || stderr != "" {
		t.Errorf("explain %s: status %d, %q", id, status, stderr)
	}
	clean(t, "explain", out)
	check, _, _ := strings.Cut(id, "-")
	for _, want := range []string{summary, "page tables", "level 4", "physical", "^^", "What a finding means", "docs/checks/" + check + ".md", "vmscope read " + path} {
		if !strings.Contains(out, want) {
			t.Errorf("explain %s does not say %q:\n%s", id, want, out)
		}
	}
	if strings.Contains(out, "\x1b") || strings.Contains(out, "](") {
		t.Errorf("marks: %q", out)
	}
	if colored, _, _ := run(t, "check", path, "--explain", id, "--color", "always"); !strings.Contains(colored, "\x1b[31m") {
		t.Error("no colour")
	}
	text, _, status := run(t, "check", path, "--explain", id, "--json")
	var x struct {
		ID, Page string
		About    []struct{ Title, Text string }
		Next     []string
		Places   []struct {
			Number          int
			Addr, PA, Start string
			Expected, Found string
			Perms           string
			Marked          int
			Pages           []struct {
				Level            int
				At, Entry, Perms string
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &x); err != nil || status != statusFindings || len(x.About) < 3 || len(x.Next) == 0 || len(x.Places) == 0 {
		t.Fatalf("status %d, %v, %q", status, err, text)
	}
	p := x.Places[0]
	if len(p.Pages) < 3 || p.Pages[0].Level != 4 || p.PA == "" || p.Perms == "" || p.Number != 1 {
		t.Errorf("%+v", p)
	}
	switch check {
	case "text":
		i := strings.Index(p.Found, "0f0b")
		if i < 0 || len(p.Expected) != len(p.Found) || p.Expected[i:i+4] == "0f0b" || !strings.Contains(out, "0f 0b") {
			t.Errorf("expected %s, found %s:\n%s", p.Expected, p.Found, out)
		}
	case "syscalls":
		if len(p.Expected) != 16 || len(p.Found) != 16 || p.Expected == p.Found || !strings.Contains(out, "leads to    [2]") {
			t.Errorf("%+v:\n%s", p, out)
		}
	}
	t.Log("\n" + out)
}
