package tap

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/internal/guestlab"
)

// virshMonitor is the address of the monitor that our virsh holds.
const virshMonitor = "VMSCOPE_TAP_TEST_MONITOR"

// virsh does what libvirt's program of that name does with a monitor command, but for passing descriptors.
func virsh(args []string) int {
	if slices.Contains(args, "--pass-fds") {
		fmt.Fprintln(os.Stderr, "error: command 'qemu-monitor-command' doesn't support option --pass-fds")
		return 1
	}
	conn, err := net.Dial("tcp", os.Getenv(virshMonitor))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r := bufio.NewReader(conn)
	r.ReadString('\n')
	for _, command := range []string{`{"execute": "qmp_capabilities"}`, args[len(args)-1]} {
		fmt.Fprintln(conn, command)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return 1
			}
			if strings.Contains(line, `"event"`) {
				continue
			}
			if command == args[len(args)-1] {
				fmt.Print(line)
			}
			break
		}
	}
	return 0
}

// TestLibvirt taps a disk of a machine whose monitor another holds for good, through that one.
func TestLibvirt(t *testing.T) {
	if testing.Short() {
		guestlab.Skip(t, "starts QEMU; not under -short")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	bin := t.TempDir()
	exe, err := os.Executable()
	if err == nil {
		err = os.Symlink(exe, filepath.Join(bin, "virsh"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv(virshMonitor, addr)
	p := idleQEMU(t, "-name", "libvirted", "-qmp", "tcp:"+addr+",server=on,wait=off")
	held, err := net.Dial("unix", p.QMP[0])
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	m, err := p.Monitor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.Run(t.Context(), "query-name", nil); !strings.Contains(string(s), "libvirted") || err != nil {
		t.Errorf("%s, %v", s, err)
	}
	tap, err := Attach(t.Context(), fmt.Sprint(p.PID), "", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context(), "human-monitor-command", args{"command-line": `qemu-io d0 "write -P 7 4096 512"`}); err != nil {
		t.Error(err)
	}
	w, err := tap.Next(t.Context())
	for err == nil && w.Op == block.OpFlush { // of the job itself, as it begins
		w, err = tap.Next(t.Context())
	}
	if err != nil || w.Off != 4096 || len(w.Data) != 512 || w.Data[0] != 7 {
		t.Error(w, err)
	}
	b := make([]byte, 1)
	if _, err := tap.Device().ReadAt(b, 4096); err != nil || b[0] != 7 {
		t.Error(b, err)
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	if out, err := m.Run(t.Context(), "query-block-jobs", nil); string(out) != "[]" || err != nil {
		t.Errorf("%s, %v", out, err)
	}
	nobody(t)
}
