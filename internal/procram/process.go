// Package procram reaches guest RAM in the address space of the process that
// runs the guest: it reads /proc/PID/maps, maps the files behind mappings, and
// copies what is private to the process by process_vm_readv. It never stops the
// process, and allocates nothing in it.
package procram

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// ErrPermission says that the host does not let us look into the process.
var ErrPermission = errors.New("not allowed to look into the VM's process")

// Denied explains an error of access to another process. Other errors stay as
// they are.
func Denied(pid int, err error) error {
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	owner := "another user"
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) == nil {
		owner = fmt.Sprintf("uid %d", st.Uid)
		if u, uerr := user.LookupId(strconv.Itoa(int(st.Uid))); uerr == nil {
			owner = fmt.Sprintf("user %q", u.Username)
		}
	}
	do := "run as root or with CAP_SYS_PTRACE"
	if os.Geteuid() == 0 {
		do = "this root has no CAP_SYS_PTRACE over it: run on the host itself, outside of containers"
	}
	return fmt.Errorf("%w %d of %s: %s (%w)", ErrPermission, pid, owner, do, err)
}

// Alive opens the pidfd of a process, by which the PID cannot become another
// process unseen. It is nil on a kernel older than 5.3, which has none.
func Alive(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), "pidfd"), nil
	case errors.Is(err, unix.ESRCH):
		return nil, err
	}
	return nil, nil
}

// Ended is an error once the process of a pidfd is gone. Without a pidfd it is
// never known.
func Ended(alive *os.File, pid int) error {
	if alive == nil {
		return nil
	}
	p := []unix.PollFd{{Fd: int32(alive.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		if n != 0 || err != nil {
			return fmt.Errorf("%w: process %d has ended", mem.ErrUnreachable, pid)
		}
		return nil
	}
}

// Stat gives the parent of a process and when it started, in clock ticks since
// the host's boot: with the PID that names it for good.
func Stat(pid int) (ppid int, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return ParseStat(b)
}

// ParseStat reads the parent and the start time from /proc/PID/stat. The
// program's name is in parentheses and may hold any character.
func ParseStat(b []byte) (ppid int, start uint64, err error) {
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, 0, fmt.Errorf("process status of %d bytes is not understood", len(b))
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, 0, errors.New("process has ended")
	}
	ppid, err = strconv.Atoi(f[1])
	if err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseUint(f[19], 10, 64) // field 22 of proc(5)
	return ppid, start, err
}
