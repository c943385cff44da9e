package tap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmscope/vm/qemu"
)

// Sockets and locks lie in a directory of our own, one below it for each guest. Others may pass through it if we are
// root, since a QEMU that runs as another user may have to reach a socket; each file is shut for itself.

// rootBase is the directory if we are root.
const rootBase = "/run/vmscope"

// runBase makes and gives the directory.
func runBase() (string, error) {
	uid := os.Geteuid()
	dir, mode := rootBase, os.FileMode(0o711)
	if uid != 0 {
		mode = 0o700
		dir = filepath.Join(os.TempDir(), "vmscope-"+strconv.Itoa(uid))
		if x := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(x) {
			dir = filepath.Join(x, "vmscope")
		}
	}
	err := privateDir(dir, mode)
	if err != nil && uid == 0 {
		dir = filepath.Join(os.TempDir(), "vmscope-0")
		err = privateDir(dir, mode)
	}
	return dir, err
}

// privateDir makes a directory that only we can write to, or checks that it is so.
func privateDir(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only this user can write to", dir)
	}
	return nil
}

// guestDir is the directory of a machine. It is made by makeGuestDir.
func guestDir(p qemu.Process) (string, error) {
	base, err := runBase()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, fmt.Sprintf("qemu-%d-%d", p.PID, p.Start())), nil
}

func makeGuestDir(p qemu.Process) (string, error) {
	dir, err := guestDir(p)
	if err != nil {
		return "", err
	}
	tidy(filepath.Dir(dir))
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	return dir, privateDir(dir, mode)
}

// tidy removes the directories of machines that have ended.
func tidy(base string) {
	all, _ := filepath.Glob(filepath.Join(base, "qemu-*-*"))
	for _, dir := range all {
		pid, start, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "qemu-"), "-")
		n, err := strconv.Atoi(pid)
		if err != nil {
			continue
		}
		if p, err := qemu.Find(strconv.Itoa(n)); err == nil && strconv.FormatUint(p.Start(), 10) == start {
			continue
		}
		if unix.Kill(n, 0) == unix.ESRCH || alien(n, start) {
			os.RemoveAll(dir)
		}
	}
}

// alien reports whether a process is another than the one that started at that time.
func alien(pid int, start string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(f) > 19 && f[19] != start
}

// errLocked says that another holds a lock.
var errLocked = errors.New("locked")

// lock takes a lock file, which goes with the last process that has it open. wait: until it is free.
func lock(path string, wait bool) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		how := unix.LOCK_EX
		if !wait {
			how |= unix.LOCK_NB
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Flock(int(f.Fd()), how)
		}
		if err == unix.EWOULDBLOCK {
			err = errLocked
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		// Whoever had it may have removed it.
		a, err1 := f.Stat()
		b, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(a, b) {
			return f, nil
		}
		f.Close()
	}
}

// unlock removes and gives up a lock.
func unlock(f *os.File) {
	os.Remove(f.Name())
	f.Close()
}
