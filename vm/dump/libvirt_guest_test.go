package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// nobody runs libvirt where the test runs as root: only as a user it keeps to
// that user's own directories.
const nobody = 65534

// libvirt is a libvirtd of the test's own, without privileges.
type libvirt struct {
	dir string
	env []string
}

// newLibvirt makes its directories. What it learns of QEMU, which takes seconds,
// it keeps there.
func newLibvirt(t *testing.T) *libvirt {
	t.Helper()
	if testing.Short() {
		guestlab.Skip(t, "starts libvirt and QEMU; not under -short")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, program := range []string{"libvirtd", "virsh", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(program); err != nil {
			guestlab.SkipOrFail(t, err.Error())
		}
	}
	dir, err := os.MkdirTemp("", "lv") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &libvirt{dir: dir, env: append(os.Environ(), "LC_ALL=C", "HOME="+dir)}
	for _, d := range []string{"RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME", "STATE_HOME"} {
		l.env = append(l.env, "XDG_"+d+"="+filepath.Join(dir, d))
	}
	for _, d := range []string{"RUNTIME_DIR", "CONFIG_HOME/libvirt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, nobody, nobody))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// start has images of saved machines in the given format until the test ends.
func (l *libvirt) start(t *testing.T, format string) {
	t.Helper()
	l.put(t, "CONFIG_HOME/libvirt/qemu.conf", fmt.Appendf(nil, "save_image_format = %q\n", format))
	log := &strings.Builder{}
	cmd := l.command(context.Background(), "libvirtd")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			t.Logf("libvirtd: %s", log)
		}
	})
	for i := 0; ; i++ {
		out, err := l.command(t.Context(), "virsh", "-c", "qemu:///session", "version").CombinedOutput()
		if err == nil {
			t.Logf("%s", out)
			return
		}
		if i == 300 {
			t.Fatalf("libvirt does not answer: %v: %s", err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// put writes a file of libvirt's user.
func (l *libvirt) put(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join(l.dir, name)
	err := os.WriteFile(path, b, 0o600)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(path, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *libvirt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = l.env, l.dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

func (l *libvirt) virsh(t *testing.T, args ...string) {
	t.Helper()
	if out, err := l.command(t.Context(), "virsh", append([]string{"-q", "-c", "qemu:///session"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("virsh %v: %v: %s", args, err, out)
	}
}

// define defines a machine that never runs, with known bytes in its RAM.
func (l *libvirt) define(t *testing.T) map[mem.PA][]byte {
	t.Helper()
	known := pattern(3, 200<<12)
	clear(known[20<<12 : 60<<12])
	l.put(t, "known", known)
	l.put(t, "domain.xml", fmt.Appendf(nil, `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>idle</name><memory unit='MiB'>64</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><seclabel type='none'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='loader,file=%s/known,addr=0x1000000,force-raw=on'/></qemu:commandline></domain>`, l.dir))
	l.virsh(t, "define", filepath.Join(l.dir, "domain.xml"))
	t.Cleanup(func() {
		for _, args := range [][]string{{"destroy", "idle"}, {"undefine", "idle", "--managed-save"}} { // it may not run
			_ = l.command(context.Background(), "virsh", append([]string{"-c", "qemu:///session"}, args...)...).Run()
		}
	})
	return map[mem.PA][]byte{16 << 20: known}
}

// TestLibvirt opens what libvirt's commands write: dumps of memory in QEMU's
// formats, a dump that is a migration stream, saved machines, packed too.
func TestLibvirt(t *testing.T) {
	l := newLibvirt(t)
	for _, format := range []string{"raw", "gzip", "bzip2"} { // as libvirt 9.0 has them
		t.Run(format, func(t *testing.T) {
			l.start(t, format)
			known := l.define(t)
			check := func(name string, ranges []mem.Range) {
				t.Run(name, func(t *testing.T) {
					path := filepath.Join(l.dir, name)
					vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: ranges, Bytes: known, CPUs: 2})
				})
			}
			ram := []mem.Range{{Start: 0, Size: 64 << 20}}
			if format == "raw" {
				l.virsh(t, "start", "idle", "--paused")
				l.virsh(t, "dump", "idle", filepath.Join(l.dir, "elf"), "--memory-only")
				l.virsh(t, "dump", "idle", filepath.Join(l.dir, "kdump"), "--memory-only", "--format", "kdump-zlib")
				l.virsh(t, "dump", "idle", filepath.Join(l.dir, "stream"))
				l.virsh(t, "destroy", "idle")
				check("elf", nil)
				check("kdump", nil)
				check("stream", ram)
			}
			l.virsh(t, "start", "idle", "--paused")
			l.virsh(t, "save", "idle", filepath.Join(l.dir, "saved"))
			check("saved", ram)
			l.virsh(t, "start", "idle", "--paused")
			l.virsh(t, "managedsave", "idle")
			check("CONFIG_HOME/libvirt/qemu/save/idle.save", ram)
		})
	}
}
