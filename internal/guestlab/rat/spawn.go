package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

// spawnDir holds one directory for each spawned process, and in it the program file, whose name becomes the comm.
const spawnDir = "/var/spawn"

const defaultComm = "sleeper"

var cloneFlags = map[string]uintptr{
	"mnt": syscall.CLONE_NEWNS, "pid": syscall.CLONE_NEWPID, "net": syscall.CLONE_NEWNET, "uts": syscall.CLONE_NEWUTS,
	"ipc": syscall.CLONE_NEWIPC, "cgroup": 0x02000000, "user": syscall.CLONE_NEWUSER,
}

// spawn starts a process and returns its pid once all of its state is there.
func spawn(s *wire.Spawn) (pid int, err error) {
	program, err := makeProgram(s)
	if err != nil {
		return 0, err
	}
	attr := &os.ProcAttr{Dir: s.Dir, Env: []string{}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for _, e := range s.Env {
		attr.Env = append(attr.Env, string(e))
	}
	args := []string{filepath.Base(program)}
	if s.Args != nil {
		args = nil
		for _, a := range s.Args {
			args = append(args, string(a))
		}
	}
	for _, ns := range s.NewNS {
		flag, ok := cloneFlags[ns]
		if !ok {
			return 0, fmt.Errorf("no namespace %q", ns)
		}
		attr.Sys.Cloneflags |= flag
	}
	if attr.Sys.Cloneflags&syscall.CLONE_NEWUSER != 0 {
		same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 17}}
		attr.Sys.UidMappings, attr.Sys.GidMappings = same, same
	}
	if s.UID != 0 || s.GID != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: s.UID, Gid: s.GID}
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr.Files = []*os.File{null, null, null}
	if s.Hold == nil {
		p, err := os.StartProcess(program, args, attr)
		if err != nil {
			return 0, err
		}
		return p.Pid, settle(p, s, nil, nil)
	}
	theirOrders, orders, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer orders.Close()
	report, theirReport, err := os.Pipe()
	if err != nil {
		theirOrders.Close()
		return 0, err
	}
	defer report.Close()
	attr.Files = append(attr.Files, theirOrders, theirReport) // holdOrders, holdReport
	p, err := os.StartProcess(program, args, attr)
	theirOrders.Close()
	theirReport.Close() // so that the end of the process ends the report
	if err != nil {
		return 0, err
	}
	return p.Pid, settle(p, s, orders, report)
}

// settle brings a started process to where it shall be. A process that does not get there is killed.
func settle(p *os.Process, s *wire.Spawn, orders io.WriteCloser, report io.Reader) error {
	go p.Wait() // reap it whenever it ends
	err := joinCgroup(p.Pid, s.Cgroup)
	if err == nil && s.Hold != nil {
		if err = json.NewEncoder(orders).Encode(s); err == nil {
			orders.Close()
			var done string
			if err = json.NewDecoder(report).Decode(&done); err == nil && done != "" {
				err = errors.New(done)
			}
		}
	}
	if err != nil {
		p.Kill()
	}
	return err
}

// makeProgram puts the program file in place: the tiny sleeper, or a hard link to this program.
func makeProgram(s *wire.Spawn) (string, error) {
	if err := os.MkdirAll(spawnDir, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(spawnDir, "")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	comm := string(s.Comm)
	if comm == "" {
		comm = defaultComm
	}
	program := filepath.Join(dir, comm)
	if filepath.Dir(program) != dir {
		return "", fmt.Errorf("comm %q is no file name", comm)
	}
	if s.Hold != nil {
		return program, os.Link("/bin/rat", program)
	}
	return program, os.WriteFile(program, tinyELF(pauseCode), 0o755)
}

// joinCgroup moves a process. Version 2 has one tree; under version 1 the pids controller's serves as well as any.
func joinCgroup(pid int, group string) error {
	if group == "" {
		return nil
	}
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = filepath.Join(root, "pids")
	}
	dir := filepath.Join(root, group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}
