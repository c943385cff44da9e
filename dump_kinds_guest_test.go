package vmscope_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/vm"
	"vmscope/vm/dump"
	"vmscope/vm/qemu"
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
	// Pieces, of which any opens all.
	path, second := filepath.Join(filepath.Dir(core), "split1"), filepath.Join(filepath.Dir(core), "split2")
	if out, err := makedumpfile(t, core, path, "--split -l -d 1", second); err != nil {
		t.Fatalf("makedumpfile --split: %v: %s", err, out)
	}
	all["makedumpfile --split"] = look(t, second)
}

func makedumpfile(t *testing.T, core, path, flags string, more ...string) (string, error) {
	t.Helper()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	args := append(strings.Fields(flags), core)
	cmd := exec.CommandContext(t.Context(), "makedumpfile", args...)
	if !strings.Contains(flags, "-F") {
		cmd.Args = append(append(cmd.Args, path), more...)
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

// streamDump has QEMU migrate the guest into a file, and compares the registers
// in that with those of QEMU's monitor. The guest goes on afterwards.
func streamDump(t *testing.T, g *guestlab.Guest, path string) seen {
	t.Helper()
	live, err := qemu.Open(t.Context(), g.QMPSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	qmp(t, g.QMPSocket(), "stop", nil)
	defer qmp(t, g.QMPSocket(), "cont", nil)
	want, err := live.(vm.CPUs).CPUs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	qmp(t, g.QMPSocket(), "migrate", map[string]any{"uri": "exec:cat > '" + path + "'"})
	for status := ""; status != "completed"; time.Sleep(50 * time.Millisecond) {
		var is struct{ Status string }
		if err := json.Unmarshal(qmp(t, g.QMPSocket(), "query-migrate", nil), &is); err != nil {
			t.Fatal(err)
		}
		if status = is.Status; status == "failed" || t.Context().Err() != nil {
			t.Fatalf("migration is %q", status)
		}
	}
	m, err := dump.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	got, err := m.(vm.CPUs).CPUs(t.Context())
	if err != nil || len(got) != len(want) {
		t.Fatalf("registers of %d CPUs in the stream, %v; the monitor has %d", len(got), err, len(want))
	}
	for i, r := range got {
		// These the monitor does not tell. The kernel may leave SYSENTER alone.
		if r.LSTAR>>47 != 1<<17-1 || r.KernelGS != 0 && r.KernelGS>>47 != 0 && r.KernelGS>>47 != 1<<17-1 {
			t.Errorf("CPU %d: LSTAR %#x, kernel GS base %#x", i, r.LSTAR, r.KernelGS)
		}
		r.LSTAR, r.CSTAR, r.SysenterEIP, r.KernelGS = 0, 0, 0, want[i].KernelGS
		if r != want[i] {
			t.Errorf("CPU %d:\nthe stream  %+v\nthe monitor %+v", i, r, want[i])
		}
	}
	return look(t, path, vmscope.Registers())
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
