package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// commands are all commands of the program, but those that cobra brings.
func commands() []*cobra.Command {
	a := &app{}
	var out []*cobra.Command
	for _, c := range a.rootCmd().Commands() {
		if c.Name() != "help" && c.Name() != "completion" {
			out = append(out, c)
		}
	}
	return out
}

// TestHelp checks that each command explains itself.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"-h"}} {
		out, stderr, status := run(t, args...)
		if status != 0 || stderr != "" {
			t.Errorf("%q: status %d, %q", args, status, stderr)
		}
		for _, w := range []string{"Usage:", "Targets:", "Exit status:", "qemu:NAME", "--json"} {
			if !strings.Contains(out, w) {
				t.Errorf("%q lacks %q", args, w)
			}
		}
		for _, c := range commands() {
			if !strings.Contains(out, "\n  "+c.Name()+" ") {
				t.Errorf("%q lacks %s", args, c.Name())
			}
		}
	}
	for _, c := range commands() {
		out, stderr, status := run(t, c.Name(), "--help")
		if status != 0 || stderr != "" || !strings.Contains(out, c.Short) && !strings.Contains(out, c.Long) || !strings.Contains(out, "vmscope "+c.Use) {
			t.Errorf("%s --help: status %d, %q, %q", c.Name(), status, stderr, out)
		}
		clean(t, c.Name()+" --help", out)
	}
	out, _, status := run(t, "version", "--json")
	if m := object(t, out); status != 0 || m["version"] == nil || m["go"] == nil {
		t.Errorf("version --json: %d, %q", status, out)
	}
}

// TestCompletion checks that the scripts for all shells are made, and that bash
// and zsh, where there are, accept them.
func TestCompletion(t *testing.T) {
	for shell, word := range map[string]string{"bash": "__start_vmscope", "zsh": "#compdef vmscope", "fish": "complete -c vmscope", "powershell": "Register-ArgumentCompleter"} {
		out, stderr, status := run(t, "completion", shell)
		if status != 0 || stderr != "" || !strings.Contains(out, word) {
			t.Errorf("%s: status %d, %q, %d bytes", shell, status, stderr, len(out))
		}
		path, err := exec.LookPath(shell)
		if err != nil || shell == "powershell" {
			continue
		}
		c := exec.Command(path, "-n")
		c.Stdin = strings.NewReader(out)
		if msg, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, msg)
		}
	}
	// What the shells ask for.
	name := "complete-" + itoa(os.Getpid())
	fakeVM(t, "-name", name, "-m", "64")
	out, _, status := run(t, "__complete", "ps", "")
	if status != 0 || !strings.Contains(out, name+"\n") || !strings.Contains(out, "qemu:"+name+"\n") {
		t.Errorf("completion of a target: %d, %q", status, out)
	}
	out, _, _ = run(t, "__complete", "ps", "x", "--route", "")
	if !strings.Contains(out, "vmread\n") {
		t.Errorf("completion of --route: %q", out)
	}
	out, _, _ = run(t, "__complete", "ls")
	if !strings.Contains(out, "lsmod\t") || !strings.Contains(out, "lsof\t") {
		t.Errorf("completion of a command: %q", out)
	}
}

// TestManPages checks that each command has its page, and that man(1), if there
// is one, finds no fault with it.
func TestManPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "man1")
	if _, stderr, status := run(t, "man", dir); status != 0 || stderr != "" {
		t.Fatalf("status %d, %q", status, stderr)
	}
	for _, name := range append([]*cobra.Command{{Use: ""}}, commands()...) {
		page := filepath.Join(dir, strings.TrimSuffix("vmscope-"+name.Name(), "-")+".1")
		b, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range []string{".TH \"VMSCOPE", ".SH NAME", ".SH SYNOPSIS"} {
			if !strings.Contains(string(b), w) {
				t.Errorf("%s lacks %q", page, w)
			}
		}
		if man, err := exec.LookPath("groff"); err == nil {
			if out, err := exec.Command(man, "-man", "-Tutf8", "-ww", "-z", page).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", page, err, out)
			}
		}
	}
}
