package dump

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// idleQEMU starts a machine that never runs, with known bytes in its RAM, and
// gives its monitor.
func idleQEMU(t *testing.T, args ...string) (*qmp.Client, map[mem.PA][]byte) {
	t.Helper()
	if testing.Short() {
		guestlab.Skip(t, "starts QEMU; not under -short")
	}
	const at = 16 << 20
	known := pattern(3, 200<<12)
	clear(known[20<<12 : 60<<12])
	copy(known[60<<12:], bytes.Repeat([]byte("text"), 40<<10))
	dir := t.TempDir()
	load, socket := filepath.Join(dir, "known"), filepath.Join(dir, "q")
	if err := os.WriteFile(load, known, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", append([]string{"-M", "q35", "-m", "64", "-smp", "2", "-display", "none", "-nodefaults", "-S", "-accel", "tcg",
		"-qmp", "unix:" + socket + ",server=on,wait=off", "-device", "loader,file=" + load + ",addr=0x1000000,force-raw=on"}, args...)...)
	if err := cmd.Start(); err != nil {
		guestlab.SkipOrFail(t, err.Error())
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 400 {
		if c, err := qmp.Dial(t.Context(), socket, nil); err == nil {
			t.Cleanup(func() { c.Close() })
			return c, map[mem.PA][]byte{at: known}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("QEMU does not start")
	return nil, nil
}

func ask(t *testing.T, c *qmp.Client, command string, args any) json.RawMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := c.Run(ctx, command, args)
	if err != nil {
		t.Fatalf("QMP %s: %v", command, err)
	}
	return out
}

// TestQEMUKdump: what QEMU writes is what its ELF dump says. Which compressions
// it has is its builder's choice; Debian's has zlib.
func TestQEMUKdump(t *testing.T) {
	c, known := idleQEMU(t)
	dir := t.TempDir()
	elf := filepath.Join(dir, "elf")
	ask(t, c, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + elf})
	var can struct{ Formats []string }
	if err := json.Unmarshal(ask(t, c, "query-dump-guest-memory-capability", nil), &can); err != nil {
		t.Fatal(err)
	}
	for _, format := range can.Formats {
		if format == "elf" || format == "win-dmp" { // the latter is of Windows only
			continue
		}
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(dir, format)
			ask(t, c, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + path, "format": format})
			e := open(t, elf)
			defer e.Close()
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Bytes: known, CPUs: 2})
			m := open(t, path)
			defer m.Close()
			vmtest.Same(t, e, m)
			vmtest.Same(t, m, e)
			x, err := mem.Extents(m)
			var data uint64
			for _, r := range x {
				data += r.Size
			}
			if err != nil || data > 8<<20 {
				t.Errorf("%d bytes of an idle machine are data, %v", data, err)
			}
		})
	}
}
