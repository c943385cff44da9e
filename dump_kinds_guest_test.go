package vmscope_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
)

// convertDumps has makedumpfile convert our own core, and looks at what comes
// out. Debian's has zlib and LZO.
func convertDumps(t *testing.T, core string, all map[string]seen) {
	t.Helper()
	if _, err := exec.LookPath("makedumpfile"); err != nil {
		t.Run("makedumpfile", func(t *testing.T) { guestlab.SkipOrFail(t, err.Error()) })
		return
	}
	for _, flags := range []string{"-c -d 1", "-l -d 0", "-c -d 1 -F"} {
		path := filepath.Join(filepath.Dir(core), "kdump")
		if out, err := makedumpfile(t, core, path, flags); err != nil {
			t.Fatalf("makedumpfile %s: %v: %s", flags, err, out)
		}
		all["makedumpfile "+flags] = look(t, path)
	}
}

func makedumpfile(t *testing.T, core, path, flags string) (string, error) {
	t.Helper()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	args := append(strings.Fields(flags), core)
	cmd := exec.CommandContext(t.Context(), "makedumpfile", args...)
	if !strings.Contains(flags, "-F") {
		cmd.Args = append(cmd.Args, path)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var words strings.Builder
	cmd.Stdout, cmd.Stderr = f, &words
	err = cmd.Run()
	return words.String(), err
}

// testFiltered looks at a dump without pages of user space: what remains is
// right, what is missing is told.
func testFiltered(t *testing.T, core string, want map[int]guestlab.Process) {
	t.Helper()
	path := filepath.Join(filepath.Dir(core), "filtered")
	out, err := makedumpfile(t, core, path, "-c -d 31")
	defer os.Remove(path)
	// Of a kernel that is newer than makedumpfile it says so, and may leave out pages of the kernel's own.
	if err != nil || strings.Contains(out, "kernel version is not supported") {
		t.Logf("this makedumpfile cannot filter this kernel's pages: %v: %s", err, out)
		return
	}
	var procs []kernel.Process
	err = vmscope.Look(t.Context(), path, func(v *vmscope.View) (err error) {
		procs, err = v.Processes()
		return err
	})
	if err != nil && len(procs) == 0 {
		t.Fatal(err)
	}
	names := make(map[int]string)
	for _, p := range procs {
		names[p.PID] = string(p.Comm)
	}
	for pid, p := range want {
		if name, ok := names[pid]; !ok || name != string(p.Comm) && !p.Kthread {
			t.Errorf("filtered dump: process %d is %q, the guest says %q", pid, name, p.Comm)
		}
	}
}
