package guestlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody runs libvirt where the test runs as root: only as a user it keeps to
// that user's own directories.
const nobody = 65534

// Libvirt is a libvirtd of a test's own, without privileges.
type Libvirt struct {
	// Dir belongs to the user that it and its QEMUs run as; what they are to read lies in it.
	Dir string
	env []string
}

// NewLibvirt makes its directories, which are removed when the test ends. What it
// learns of QEMU, which takes seconds, it keeps there.
func NewLibvirt(tb testing.TB) *Libvirt {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "starts libvirt and QEMU; not under -short")
	}
	tb.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, program := range []string{"libvirtd", "virsh", qemu} {
		if _, err := exec.LookPath(program); err != nil {
			SkipOrFail(tb, err.Error())
		}
	}
	dir, err := os.MkdirTemp("", "lv") // short: sockets lie in it
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	l := &Libvirt{Dir: dir, env: append(os.Environ(), "LC_ALL=C", "HOME="+dir)}
	for _, d := range []string{"RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME", "STATE_HOME"} {
		l.env = append(l.env, "XDG_"+d+"="+filepath.Join(dir, d))
	}
	for _, d := range []string{"RUNTIME_DIR", "CONFIG_HOME/libvirt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	if err := l.own(dir); err != nil {
		tb.Fatal(err)
	}
	return l
}

// own gives a tree of files to the user that libvirt runs as.
func (l *Libvirt) own(tree string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
}

// Start starts it, with these settings (qemu.conf), until the test ends.
func (l *Libvirt) Start(tb testing.TB, settings string) {
	tb.Helper()
	// virtlogd would outlive the test.
	l.Put(tb, "CONFIG_HOME/libvirt/qemu.conf", []byte("stdio_handler = \"file\"\n"+settings))
	log := &strings.Builder{}
	cmd := l.command(context.Background(), "libvirtd")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if tb.Failed() {
			tb.Logf("libvirtd: %s", log)
		}
	})
	for i := 0; ; i++ {
		out, err := l.Virsh(tb.Context(), "version")
		if err == nil {
			tb.Logf("%s", out)
			return
		}
		if i == 300 {
			tb.Fatalf("libvirt does not answer: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Own gives a file or directory in Dir to its user.
func (l *Libvirt) Own(tb testing.TB, path string) {
	tb.Helper()
	if err := l.own(path); err != nil {
		tb.Fatal(err)
	}
}

// Socket is where it listens.
func (l *Libvirt) Socket() string { return filepath.Join(l.RuntimeDir(), "libvirt", "libvirt-sock") }

// RuntimeDir is its user's XDG_RUNTIME_DIR.
func (l *Libvirt) RuntimeDir() string { return filepath.Join(l.Dir, "RUNTIME_DIR") }

// Put writes a file of its user into Dir.
func (l *Libvirt) Put(tb testing.TB, name string, b []byte) {
	tb.Helper()
	path := filepath.Join(l.Dir, name)
	if err := errors.Join(os.WriteFile(path, b, 0o600), l.own(path)); err != nil {
		tb.Fatal(err)
	}
}

func (l *Libvirt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = l.env, l.Dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// Virsh runs virsh at it.
func (l *Libvirt) Virsh(ctx context.Context, args ...string) (string, error) {
	return virsh(l.command(ctx, "virsh", append([]string{"--quiet", "--connect", "qemu:///session"}, args...)...), args)
}

// lend copies a file into a directory and makes its user the owner of all that is there.
func (l *Libvirt) lend(dir, file string) (path string, err error) {
	path = filepath.Join(dir, filepath.Base(file))
	in, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("guestlab: lend %q to libvirt: %w", file, err)
	}
	return path, l.own(dir)
}
