package main

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// attacher attaches programs of eBPF, as tracers, firewalls and service managers do. All goes when the process does.
type attacher struct {
	types *kernelTypes
	undo  []func()
}

// attachments are the ways, by name.
var attachments = []struct {
	name   string
	attach func(*attacher) error
}{
	{"raw", func(*attacher) error { return openBPF() }},
	{"tracepoint", func(a *attacher) error { return a.tracepoint("sched/sched_switch") }},
	{"kprobe", func(a *attacher) error { return a.probe("kprobe", "do_sys_openat2", 0, 0) }},
	{"kretprobe", func(a *attacher) error { return a.probe("kprobe", "vfs_statx", 0, 1) }},
	{"uprobe", (*attacher).userProbe},
	{"perf_link", (*attacher).perfLink},
	{"kprobe_multi", (*attacher).multi},
	{"fentry", func(a *attacher) error { return a.trampoline(progTracing, attachEntry, "vfs_read") }},
	{"fexit", func(a *attacher) error { return a.trampoline(progTracing, attachExit, "vfs_write") }},
	{"fentry and fexit", func(a *attacher) error {
		return errors.Join(a.trampoline(progTracing, attachEntry, "vfs_open"), a.trampoline(progTracing, attachExit, "vfs_open"))
	}},
	{"lsm", func(a *attacher) error { return a.trampoline(progLSM, attachLSM, "bpf_lsm_file_open") }},
	{"xdp", func(a *attacher) error {
		return a.link(bpfProgram{kind: progXDP, returns: 2, attach: attachXDP}, 1, attachXDP, 2)
	}},
	{"tcx", func(a *attacher) error {
		return a.link(bpfProgram{kind: progClassifier, attach: attachTCX}, 1, attachTCX, 0)
	}},
	{"tc", (*attacher).classifier},
	{"cgroup", (*attacher).cgroup},
	{"cgroup_attach", (*attacher).groupAttach},
	{"socket", (*attacher).socket},
	{"seccomp", (*attacher).seccomp},
	{"struct_ops", (*attacher).structOps},
}

// bpf attaches programs in all ways that the kernel knows, says how each went, and lets go of them after some seconds.
func bpf(w io.Writer, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: rat bpf SECONDS")
	}
	length, err := seconds(args[0])
	if err != nil {
		return err
	}
	a := new(attacher)
	if a.types, err = readKernelTypes(); err != nil {
		return err
	}
	for _, way := range attachments {
		if err := way.attach(a); err != nil {
			fmt.Fprintf(w, "refused %s: %v\n", way.name, err)
			continue
		}
		fmt.Fprintf(w, "attached %s\n", way.name)
	}
	time.Sleep(length)
	for _, undo := range a.undo {
		undo()
	}
	return nil
}

func (a *attacher) trampoline(kind, how uint32, function string) error {
	id, err := a.types.id(btfFunc, function)
	if err != nil {
		return err
	}
	prog, err := bpfProgram{kind: kind, attach: how, to: id}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	_, err = openRaw(prog, "")
	return err
}

func (a *attacher) link(p bpfProgram, target, how, flags uint32) error {
	prog, err := p.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	attr := new(bpfAttr)
	attr.u32(0, uint32(prog))
	attr.u32(4, target)
	attr.u32(8, how)
	attr.u32(12, flags)
	_, err = attr.call(bpfLinkCreate, 32)
	return err
}

func (a *attacher) cgroup() error {
	fd, err := syscall.Open("/sys/fs/cgroup", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return a.link(bpfProgram{kind: progCgroupSKB, returns: 1}, uint32(fd), attachIngress, 0)
}

// groupAttach attaches a program to a control group without a link, as systemd does.
func (a *attacher) groupAttach() error {
	const (
		group      = "/sys/fs/cgroup/rat"
		allowMulti = 2 // BPF_F_ALLOW_MULTI
	)
	if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := syscall.Open(group, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	prog, err := bpfProgram{kind: progCgroupSKB, returns: 1, attach: attachEgress}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	attr := new(bpfAttr)
	attr.u32(0, uint32(fd))
	attr.u32(4, uint32(prog))
	attr.u32(8, attachEgress)
	attr.u32(12, allowMulti)
	if _, err := attr.call(bpfProgAttach, 16); err != nil {
		return err
	}
	a.undo = append(a.undo, func() {
		attr.u32(12, 0)
		attr.call(bpfProgDetach, 16)
		os.Remove(group)
	})
	return nil
}

// maxMulti is how many functions one link of probes is for.
const maxMulti = 500

// multi puts one program on hundreds of functions.
func (a *attacher) multi() error {
	f, err := os.Open("/sys/kernel/tracing/available_filter_functions")
	if err != nil {
		return err
	}
	defer f.Close()
	var names [][]byte
	lines := bufio.NewScanner(f)
	seen := map[string]bool{}
	for lines.Scan() && len(names) < maxMulti {
		if name := lines.Text(); strings.HasPrefix(name, "tcp_") && !strings.ContainsAny(name, " .") && !seen[name] {
			seen[name] = true
			names = append(names, append([]byte(name), 0))
		}
	}
	prog, err := bpfProgram{kind: progKprobe, attach: attachMulti}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for ; len(names) > 0; names = names[:len(names)-1] {
		attr := new(bpfAttr)
		list := make([]byte, 8*len(names))
		for i, n := range names {
			binary.LittleEndian.PutUint64(list[8*i:], uint64(uintptr(unsafe.Pointer(unsafe.SliceData(n)))))
		}
		attr.u32(0, uint32(prog))
		attr.u32(8, attachMulti)
		attr.u32(20, uint32(len(names)))
		attr.bytes(24, list)
		attr.keep = append(attr.keep, names)
		if _, err = attr.call(bpfLinkCreate, 48); !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return err
}

// perf hands an event to a program.
func (a *attacher) perf(kind, config, one, two uint64, prog int) error {
	const (
		setBPF = 0x40042408 // PERF_EVENT_IOC_SET_BPF
		enable = 0x2400     // PERF_EVENT_IOC_ENABLE
	)
	fd, err := a.event(kind, config, one, two)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, setBPF, uintptr(prog)); errno != 0 {
		return fmt.Errorf("program: %w", errno)
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, enable, 0); errno != 0 {
		return fmt.Errorf("enable: %w", errno)
	}
	return nil
}

// event opens an event of the whole of one processor.
func (a *attacher) event(kind, config, one, two uint64) (uintptr, error) {
	const size = 112 // PERF_ATTR_SIZE_VER5
	var attr [size]byte
	le := binary.LittleEndian
	le.PutUint32(attr[0:], uint32(kind))
	le.PutUint32(attr[4:], size)
	le.PutUint64(attr[8:], config)
	le.PutUint64(attr[16:], 1) // sample_period
	le.PutUint64(attr[56:], one)
	le.PutUint64(attr[64:], two)
	all := -1
	fd, _, errno := syscall.Syscall6(sysPerfEventOpen, uintptr(unsafe.Pointer(&attr)), uintptr(all), 0, uintptr(all), 8, 0) // PERF_FLAG_FD_CLOEXEC
	if errno != 0 {
		return 0, fmt.Errorf("event: %w", errno)
	}
	return fd, nil
}

// perfLink puts a program on a tracepoint by a link, as libbpf does, and lets go of the event's descriptor.
func (a *attacher) perfLink() error {
	id, err := number("/sys/kernel/tracing/events/sched/sched_process_exit/id")
	if err != nil {
		return err
	}
	fd, err := a.event(tracepoints, id, 0, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(int(fd))
	return a.link(bpfProgram{kind: progTracepoint}, uint32(fd), attachPerf, 0)
}

const tracepoints = 2 // PERF_TYPE_TRACEPOINT

func number(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

func (a *attacher) tracepoint(name string) error {
	id, err := number("/sys/kernel/tracing/events/" + name + "/id")
	if err != nil {
		return err
	}
	prog, err := bpfProgram{kind: progTracepoint}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return a.perf(tracepoints, id, 0, 0, prog)
}

// probe puts a program on a function of the kernel or a place in a program.
func (a *attacher) probe(pmu, on string, offset, ret uint64) error {
	kind, err := number("/sys/bus/event_source/devices/" + pmu + "/type")
	if err != nil {
		return err
	}
	prog, err := bpfProgram{kind: progKprobe}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	name := append([]byte(on), 0)
	err = a.perf(kind, ret, uint64(uintptr(unsafe.Pointer(&name[0]))), offset, prog)
	runtime.KeepAlive(name)
	return err
}

// userProbe puts a program on where another begins.
func (a *attacher) userProbe() error {
	const shell = "/bin/busybox"
	f, err := elf.Open(shell)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && f.Entry-p.Vaddr < p.Filesz {
			return a.probe("uprobe", shell, f.Entry-p.Vaddr+p.Off, 0)
		}
	}
	return errors.New("no entry")
}

// socket has both kinds of filters on sockets.
func (a *attacher) socket() error {
	const attachBPF = 50 // SO_ATTACH_BPF
	prog, err := bpfProgram{kind: progSocket, returns: -1}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := syscall.SetsockoptInt(fds[0], syscall.SOL_SOCKET, attachBPF, prog); err != nil {
		return err
	}
	return syscall.AttachLsf(fds[1], []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: 1 << 16}})
}

// seccomp has the thread filter its own system calls, by a program of the older kind.
func (a *attacher) seccomp() error {
	const (
		noNewPrivs = 38 // PR_SET_NO_NEW_PRIVS
		setSeccomp = 22 // PR_SET_SECCOMP
		filter     = 2  // SECCOMP_MODE_FILTER
		allow      = 0x7fff0000
	)
	code := []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: allow}}
	program := syscall.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setSeccomp, filter, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	return nil
}

// structOps registers a way of congestion control.
func (a *attacher) structOps() error {
	ops, err := a.types.id(btfStruct, "tcp_congestion_ops")
	if err != nil {
		return err
	}
	whole, err := a.types.id(btfStruct, "bpf_struct_ops_tcp_congestion_ops")
	if err != nil {
		return err
	}
	_, data, err := a.types.member(whole, "data")
	if err != nil {
		return err
	}
	value := make([]byte, a.types.types[whole].size)
	for _, name := range []string{"ssthresh", "cong_avoid", "undo_cwnd"} {
		index, at, err := a.types.member(ops, name)
		if err != nil {
			return err
		}
		p := bpfProgram{kind: progStructOps, returns: 2, attach: uint32(index), to: ops}
		prog, err := p.load()
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
		binary.LittleEndian.PutUint64(value[data+at:], uint64(prog))
	}
	_, at, err := a.types.member(ops, "name")
	if err != nil {
		return err
	}
	copy(value[data+at:], fmt.Sprintf("rat%d", os.Getpid()))
	own, err := someTypes()
	if err != nil {
		return fmt.Errorf("types: %w", err)
	}
	attr := new(bpfAttr)
	const structOps = 26 // BPF_MAP_TYPE_STRUCT_OPS
	attr.u32(0, structOps)
	attr.u32(4, 4)
	attr.u32(8, uint32(len(value)))
	attr.u32(12, 1)
	attr.u32(48, uint32(own))
	attr.u32(60, whole)
	table, err := attr.call(bpfMapCreate, 64)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	element := func(cmd uintptr) error {
		attr := new(bpfAttr)
		attr.u32(0, uint32(table))
		attr.bytes(8, make([]byte, 4))
		if cmd == bpfMapUpdate {
			attr.bytes(16, value)
		}
		_, err := attr.call(cmd, 32)
		return err
	}
	if err := element(bpfMapUpdate); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	a.undo = append(a.undo, func() { element(bpfMapDelete) })
	return nil
}

// someTypes loads the types of a program, which must have some: an int.
func someTypes() (int, error) {
	var b []byte
	const intInfo, intName, bits = 1 << 24, 1, 32
	names := []byte("\x00int\x00")
	for _, word := range []uint32{0x0001eb9f, 24, 0, 16, 16, uint32(len(names)), intName, intInfo, 4, bits} {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	b = append(b, names...)
	attr := new(bpfAttr)
	attr.bytes(0, b)
	attr.u32(16, uint32(len(b)))
	return attr.call(bpfTypesLoad, 28)
}

// classifier is what "tc filter add dev lo ingress bpf" does.
func (a *attacher) classifier() error {
	prog, err := bpfProgram{kind: progClassifier}.load()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	const (
		loopback = 1
		clsact   = 0xfffffff1 // TC_H_CLSACT
		handle   = 0xffff0000
		ingress  = 0xfffffff2 // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
		kind     = 1          // TCA_KIND
		options  = 2          // TCA_OPTIONS
		fd       = 6          // TCA_BPF_FD
		name     = 7          // TCA_BPF_NAME
		create   = syscall.NLM_F_CREATE | syscall.NLM_F_REPLACE
	)
	attr := func(kind uint16, b []byte) []byte {
		out := binary.LittleEndian.AppendUint16(nil, uint16(4+len(b)))
		out = append(binary.LittleEndian.AppendUint16(out, kind), b...)
		return append(out, make([]byte, -len(out)&3)...)
	}
	tcmsg := func(handle, parent, info uint32) []byte {
		b := make([]byte, 20)
		le := binary.LittleEndian
		le.PutUint32(b[4:], loopback)
		le.PutUint32(b[8:], handle)
		le.PutUint32(b[12:], parent)
		le.PutUint32(b[16:], info)
		return b
	}
	if err := rtnetlink(syscall.RTM_NEWQDISC, create, append(tcmsg(handle, clsact, 0), attr(kind, []byte("clsact\x00"))...)); err != nil {
		return fmt.Errorf("clsact: %w", err)
	}
	a.undo = append(a.undo, func() { rtnetlink(syscall.RTM_DELQDISC, 0, tcmsg(handle, clsact, 0)) })
	opts := append(attr(fd, binary.LittleEndian.AppendUint32(nil, uint32(prog))), attr(name, []byte("rat\x00"))...)
	const prioAndProtocol = 1<<16 | 0x0300 // ETH_P_ALL, as the network has it
	body := append(tcmsg(0, ingress, prioAndProtocol), attr(kind, []byte("bpf\x00"))...)
	return rtnetlink(syscall.RTM_NEWTFILTER, create, append(body, attr(options, opts)...))
}

// rtnetlink asks the kernel for one change of the network.
func rtnetlink(kind uint16, flags int, body []byte) error {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	le := binary.LittleEndian
	msg := le.AppendUint32(nil, uint32(16+len(body)))
	msg = le.AppendUint16(msg, kind)
	msg = le.AppendUint16(msg, uint16(flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK))
	msg = append(msg, make([]byte, 8)...)
	if err := syscall.Sendto(fd, append(msg, body...), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, reply, 0)
	if err != nil {
		return err
	}
	if n < 20 || le.Uint16(reply[4:]) != syscall.NLMSG_ERROR {
		return errors.New("no answer")
	}
	if code := int32(le.Uint32(reply[16:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}
