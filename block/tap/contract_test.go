package tap

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vmscope/block/blocktest"
	"vmscope/block/nbd"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

func TestServeContract(t *testing.T) {
	for _, inside := range []bool{true, false} {
		t.Run(fmt.Sprintf("inside=%v", inside), func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) blocktest.Rig {
				dir := t.TempDir()
				image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
				if err := os.WriteFile(image, make([]byte, 2*mebi), 0o600); err != nil {
					t.Fatal(err)
				}
				ln, err := net.Listen("unix", socket)
				if err != nil {
					t.Fatal(err)
				}
				tap, err := Serve(t.Context(), ln, Service{Image: image}, Options{InProcess: inside})
				if err != nil {
					t.Fatal(err)
				}
				c, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+socket, nbd.Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close(); tap.Close() })
				return blocktest.Rig{Tap: tap, Write: c.WriteAt, Flush: c.Flush, Zero: func(off, n int64) error { return c.Zero(off, n, 0) }}
			})
		})
	}
}

// TestMirrorContract writes by QEMU's own monitor: no guest is needed.
func TestMirrorContract(t *testing.T) {
	blocktest.Run(t, func(t *testing.T) blocktest.Rig {
		p := idleQEMU(t)
		tap, err := Attach(t.Context(), fmt.Sprint(p.PID), "", Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tap.Close() })
		command := func(format string, a ...any) error {
			m, err := p.Monitor(t.Context())
			if err != nil {
				return err
			}
			defer m.Close()
			out, err := qmp.Human(t.Context(), m, `qemu-io d0 "`+fmt.Sprintf(format, a...)+`"`)
			if err == nil && out != "" && out[0] != 'w' { // "wrote …"
				err = fmt.Errorf("%q", out)
			}
			return err
		}
		return blocktest.Rig{
			Tap: tap,
			Write: func(b []byte, off int64) (int, error) {
				return len(b), command("write -P %d %d %d", b[0], off, len(b))
			},
			Zero: func(off, n int64) error { return command("write -z %d %d", off, n) },
		}
	})
}

// idleQEMU starts a machine that never runs, with a disk d0.
func idleQEMU(t *testing.T, args ...string) qemu.Process {
	t.Helper()
	if testing.Short() {
		guestlab.Skip(t, "starts QEMU; not under -short")
	}
	dir := labDir(t)
	image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "q")
	if err := os.WriteFile(image, make([]byte, 2*mebi), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", "-M", "q35", "-m", "32", "-display", "none", "-nodefaults", "-S", "-accel", "tcg",
		"-qmp", "unix:"+socket+",server=on,wait=off", "-drive", "if=none,id=d0,format=raw,file="+image, "-device", "virtio-blk-pci,drive=d0")
	cmd.Args = append(cmd.Args, args...)
	if err := cmd.Start(); err != nil {
		guestlab.SkipOrFail(t, err.Error())
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if p, err := qemu.Find(socket); err == nil {
			return p
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("QEMU does not start")
	return qemu.Process{}
}
