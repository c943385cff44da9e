package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmscope/internal/guestlab/wire"
)

const pfKthread = 0x00200000

// A process may end while it is looked at; it is then left out, as if it had ended before.

func tellProcesses(tell func(any), pid int) error {
	list, err := pids(pid)
	if err != nil {
		return err
	}
	for _, pid := range list {
		if p, err := process(pid); err == nil {
			tell(p)
		} else if !vanished(pid) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

func vanished(pid int) bool {
	_, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil
}

func process(pid int) (*wire.Process, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	st, err := readStat(dir)
	if err != nil {
		return nil, err
	}
	p := &wire.Process{
		PID: pid, TGID: pid, PPID: st.num(4), State: st.field(3), Flags: st.u64(9), Threads: st.num(20),
		StartTicks: st.u64(22), VSize: st.u64(23), Kthread: st.u64(9)&pfKthread != 0,
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch name {
		case "Tgid":
			p.TGID, _ = strconv.Atoi(f[0])
		case "Uid":
			p.UID, p.EUID = u32(f[0]), u32(f[1])
		case "Gid":
			p.GID, p.EGID = u32(f[0]), u32(f[1])
		case "NSpid":
			for _, s := range f {
				n, _ := strconv.Atoi(s)
				p.NSPID = append(p.NSPID, n)
			}
		}
	}
	if p.Comm, err = readComm(dir); err != nil {
		return nil, err
	}
	if p.Cmdline, err = os.ReadFile(dir + "cmdline"); err != nil {
		return nil, err
	}
	p.Exe = link(dir + "exe") // a kernel thread has none
	p.Cwd = link(dir + "cwd")
	cgroup, err := os.ReadFile(dir + "cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(cgroup)) {
		p.Cgroup = append(p.Cgroup, strings.TrimSuffix(line, "\n"))
	}
	p.NS = namespaces(dir)
	return p, nil
}

func tellThreads(tell func(any), pid int) error {
	list, err := pids(pid)
	if err != nil {
		return err
	}
	for _, pid := range list {
		tids, err := numbers(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			continue // ended
		}
		for _, tid := range tids {
			dir := fmt.Sprintf("/proc/%d/task/%d/", pid, tid)
			st, err := readStat(dir)
			if err != nil {
				continue
			}
			comm, err := readComm(dir)
			if err != nil {
				continue
			}
			tell(wire.Thread{TGID: pid, TID: tid, Comm: comm, State: st.field(3), StartTicks: st.u64(22)})
		}
	}
	return nil
}

func readComm(dir string) ([]byte, error) {
	comm, err := os.ReadFile(dir + "comm")
	return bytes.TrimSuffix(comm, []byte("\n")), err
}

// stat is the fields of /proc/PID/stat from the third on. The second is the name in parentheses; a name may hold spaces
// and parentheses itself, so the fields are counted from its last closing one.
type stat []string

func readStat(dir string) (stat, error) {
	text, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil, err
	}
	st := stat(strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])))
	if len(st) < 21 {
		return nil, fmt.Errorf("short stat line")
	}
	return st, nil
}

// field returns the n-th field as proc(5) counts them.
func (s stat) field(n int) string { return s[n-3] }

func (s stat) num(n int) int {
	v, _ := strconv.Atoi(s.field(n))
	return v
}

func (s stat) u64(n int) uint64 {
	v, _ := strconv.ParseUint(s.field(n), 10, 64)
	return v
}

func u32(s string) uint32 {
	v, _ := strconv.ParseUint(s, 10, 32)
	return uint32(v)
}

func link(name string) []byte {
	target, err := os.Readlink(name)
	if err != nil {
		return nil
	}
	return []byte(target)
}

// namespaces reads the links of /proc/PID/ns, such as "pid:[4026531836]".
func namespaces(dir string) map[string]uint64 {
	entries, err := os.ReadDir(dir + "ns")
	if err != nil {
		return nil
	}
	ns := map[string]uint64{}
	for _, e := range entries {
		if n, ok := bracketed(string(link(dir + "ns/" + e.Name()))); ok {
			ns[e.Name()] = n
		}
	}
	return ns
}

// bracketed takes the number out of links such as "socket:[1234]".
func bracketed(target string) (uint64, bool) {
	_, rest, _ := strings.Cut(target, ":[")
	n, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
	return n, err == nil
}
