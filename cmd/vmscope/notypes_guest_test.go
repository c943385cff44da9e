package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmscope"
	"vmscope/mem"
)

// testNoTypes asks for everything about a kernel that carries no types: what
// takes none works, the rest says why not and guesses nothing.
func (c *cli) testNoTypes(t *testing.T) {
	if c.g.RAMFile() == "" {
		t.Fatal("the guest's RAM has no file")
	}
	path := filepath.Join(t.TempDir(), "ram")
	if out, err := exec.Command("cp", "--sparse=always", c.g.RAMFile(), path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var at mem.PA // below the hole, where the file's offsets are addresses
	err := vmscope.Look(t.Context(), c.g.Name(), func(v *vmscope.View) error {
		va, err := v.Symbol("__start_BTF")
		if err != nil {
			return err
		}
		m, err := v.Mem.Translate(va)
		at = m.PA
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 24), int64(at)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, args := range []string{
		"info", "dmesg", "sym init_task", "read --sym linux_banner --string", "read --pa 0x1000", "dump " + filepath.Join(t.TempDir(), "core"),
	} {
		name, rest, _ := strings.Cut(args, " ")
		line := append([]string{name, path}, strings.Fields(rest)...)
		if _, stderr, status := run(t, line...); status != 0 || stderr != "" {
			t.Errorf("%s: status %d, %q", args, status, stderr)
		}
	}
	out, _, _ := run(t, "info", path, "--json")
	if !strings.Contains(out, `"types":{"count":0,"confidence":"none"}`) {
		t.Errorf("info: %s", out)
	}
	for _, args := range []string{
		"ps", "ps -T", "lsmod", "mount", "lsof", "ss", "maps --pid 1", "env --pid 1", "type task_struct", "read --sym init_task --type task_struct", "read --pid 1 --va 0x400000",
	} {
		name, rest, _ := strings.Cut(args, " ")
		line := append([]string{name, path}, strings.Fields(rest)...)
		failed(t, line, "types of this kernel are not known")
		failed(t, append(line, "--json"), "types of this kernel are not known")
	}
}
