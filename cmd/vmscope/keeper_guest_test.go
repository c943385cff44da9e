package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestCheckState changes a byte of code between two runs of check, which only a
// kept reference can tell, and ruins the reference.
func TestCheckState(t *testing.T) {
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256})
	dir := filepath.Join(t.TempDir(), "state")
	check := func(state bool, want int) (out, stderr string) {
		t.Helper()
		args := []string{"check", g.Name(), "--only", "text,rodata"}
		if state {
			args = append(args, "--state", dir)
		}
		out, stderr, status := run(t, args...)
		if status != want {
			t.Errorf("%q: status %d, want %d: %q, %q", args, status, want, out, stderr)
		}
		return out, stderr
	}
	check(true, statusDone)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v: want one file", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the reference has mode %v, %v", info.Mode(), err)
	}
	check(true, statusDone)

	// Code that nothing runs in such a guest: it must live on.
	sym := decoded[struct{ Addr string }](t, "sym", g.Name(), "panic")
	at, err := strconv.ParseUint(sym[0].Addr, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	at += 0x20
	was := decoded[struct{ Data string }](t, "read", g.Name(), "--va", fmt.Sprintf("%#x", at), "--len", "2")[0]
	write := func(hex string) {
		t.Helper()
		if _, stderr, status := run(t, "write", g.Name(), "--va", fmt.Sprintf("%#x", at), "--hex", hex, "--allow-write"); status != statusDone {
			t.Fatal(stderr)
		}
	}
	write("0f0b")
	out, _ := check(true, statusFindings)
	if !strings.Contains(out, "HIGH text-") || !strings.Contains(out, "0f0b") {
		t.Errorf("%q", out)
	}
	if again, _ := check(true, statusFindings); again != out {
		t.Errorf("another run, which knows the reference alone, says %q, not %q", again, out)
	}
	check(false, statusDone) // the first look of a run that knows nothing
	write(was.Data)
	check(true, statusDone)

	if err := os.WriteFile(files[0], []byte("not a reference"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr := check(true, statusFailed); !strings.Contains(stderr, files[0]) {
		t.Errorf("a ruined reference: %q", stderr)
	}
}
