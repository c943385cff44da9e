package guestlab

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// runDir holds one guest's sockets, logs and RAM. It lies on a memory file system: the RAM file must not cost disk
// writes, and a socket's path may have no more than 107 bytes, which a test's own temporary directory easily exceeds.
type runDir struct {
	path string
	lock *os.File // held for the guest's life; tells a living guest's directory from a dead one's
}

const runPrefix = "vmscope-lab-"

func (d runDir) ram() string           { return filepath.Join(d.path, "ram") }
func (d runDir) initrd() string        { return filepath.Join(d.path, "initrd") }
func (d runDir) qmpSocket() string     { return filepath.Join(d.path, "qmp.sock") }
func (d runDir) consoleSocket() string { return filepath.Join(d.path, "console.sock") }
func (d runDir) consoleLog() string    { return filepath.Join(d.path, "console.log") }
func (d runDir) agentSocket() string   { return filepath.Join(d.path, "agent.sock") }
func (d runDir) portSocket(i int) string {
	return filepath.Join(d.path, fmt.Sprintf("port%d.sock", i))
}
func (d runDir) qemuLog() string  { return filepath.Join(d.path, "qemu.log") }
func (d runDir) lockName() string { return filepath.Join(d.path, "lock") }

func runBase() string {
	if unix.Access("/dev/shm", unix.W_OK) == nil {
		return "/dev/shm"
	}
	return os.TempDir()
}

// newRunDir makes a directory, after removing those that killed programs left behind.
func newRunDir() (runDir, error) {
	base := runBase()
	sweep(base)
	path, err := os.MkdirTemp(base, runPrefix)
	if err != nil {
		return runDir{}, err
	}
	d := runDir{path: path}
	if d.lock, err = os.OpenFile(d.lockName(), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		err = unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		d.remove()
		return runDir{}, fmt.Errorf("guestlab: run directory: %w", err)
	}
	return d, nil
}

func (d runDir) remove() {
	os.RemoveAll(d.path)
	if d.lock != nil {
		d.lock.Close()
	}
}

// sweep removes directories whose owner is gone: a SIGKILL leaves no time to clean up, and RAM files are large.
func sweep(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, runPrefix+"*"))
	for _, dir := range dirs {
		d := runDir{path: dir}
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue // perhaps just being made, its lock not taken yet
		}
		f, err := os.OpenFile(d.lockName(), os.O_RDWR, 0)
		if err != nil {
			continue // not ours, or another user's
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

// RunDirs is a pattern that matches the run directories of all guests on this machine.
func RunDirs() string { return filepath.Join(runBase(), runPrefix+"*") }
