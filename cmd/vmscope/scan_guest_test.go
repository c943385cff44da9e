package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/internal/guestlab"
)

// TestScanCommand finds what a process of a guest holds, by patterns and rules,
// and says by its status whether there is something.
func TestScanCommand(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256})
	pid, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("secret\x1b[31m"), Hold: &guestlab.Hold{Kinds: []string{"anonymous code"}}})
	if err != nil {
		t.Fatal(err)
	}
	const marker = "a marker in held code"
	of := fmt.Sprint("--pid=", pid)
	out, stderr, status := run(t, "scan", g.Name(), "--pattern", marker, of)
	if status != statusFindings || stderr != "" || !strings.Contains(out, fmt.Sprintf("%d secret\\x1b[31m 0x", pid)) || !strings.Contains(out, "[anon]") || !strings.Contains(out, fmt.Sprintf("%x", marker)) {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	clean(t, "scan", out)
	out, stderr, status = run(t, "scan", g.Name(), "--pattern", "/mark[a-z]r in/", of, "--json", "--max=1")
	if status != statusFindings || strings.Count(out, "\n") != 1 || !strings.Contains(out, `"kind":"process","pid":`+fmt.Sprint(pid)) || !strings.Contains(out, `"data":"6d61726b657220696e"`) || !strings.Contains(stderr, "--max 1") {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	if out, stderr, status := run(t, "scan", g.Name(), "--pattern", "nothing has this \x01\x02\x03\x04\x05", of); status != statusDone || out != "" || !strings.Contains(stderr, "nothing found in") {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	file := filepath.Join(t.TempDir(), "rules.yar")
	if err := os.WriteFile(file, []byte(`rule held { strings: $a = "MARKER" nocase $b = { 68 65 6c 64 } condition: all of them }`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, status := run(t, "scan", g.Name(), "--rules", file, of); status != statusFindings || !strings.Contains(out, " held $a ") || !strings.Contains(out, " held $b ") {
		t.Errorf("status %d, %q", status, out)
	}
	if out, _, status := run(t, "scan", g.Name(), "--kernel", "--pattern", "Linux version 6.1"); status != statusFindings || !strings.Contains(out, "- kernel 0xffffffff") || !strings.Contains(out, "linux_banner") {
		t.Errorf("status %d, %q", status, out)
	}
	for _, args := range [][]string{{"--pid", "999999"}, {"--pid", "2"}} {
		if _, stderr, status := run(t, append(args, "scan", g.Name(), "--pattern", "x")...); status != statusFailed || stderr == "" {
			t.Errorf("%q: status %d, %q", args, status, stderr)
		}
	}
}

// TestScanMistakes gives what cannot be searched for: it is told before the
// guest is opened, with its place.
func TestScanMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules.yar")
	if err := os.WriteFile(file, []byte("rule r {\n  strings: $a = \"x\" xor\n  condition: $a\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, large := filepath.Join(t.TempDir(), "pipe"), filepath.Join(t.TempDir(), "large.yar")
	err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(large, nil, 0o600), os.Truncate(large, maxRules+1))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "scan needs --pattern or --rules"},
		{[]string{"--pattern", "{ 4g }"}, `--pattern "{ 4g }": "4g" is no byte`},
		{[]string{"--pattern", "/(a/"}, "missing closing )"},
		{[]string{"--rules", file}, file + `:2:21: the modifier "xor" is not supported`},
		{[]string{"--rules", file + "x"}, "no such file"},
		{[]string{"--rules", pipe}, "no regular file"},
		{[]string{"--rules", "/dev/zero"}, "no regular file"},
		{[]string{"--rules", t.TempDir()}, "no regular file"},
		{[]string{"--rules", large}, "more than 64 MiB"},
		{[]string{"--pattern", "x", "--max", "0"}, "at least 1"},
		{[]string{"--pattern", "x", "--all", "--pid", "1"}, "pid"},
	} {
		if out, stderr, status := run(t, append([]string{"scan", "no-such-guest"}, c.args...)...); status != statusFailed || out != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, %q, %q, want %q", c.args, status, out, stderr, c.want)
		}
	}
}
