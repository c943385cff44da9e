package main

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"
)

// Commands, types of programs and places to attach them (include/uapi/linux/bpf.h).
const (
	bpfMapCreate   = 0
	bpfMapUpdate   = 2
	bpfMapDelete   = 3
	bpfProgLoad    = 5
	bpfProgAttach  = 8
	bpfProgDetach  = 9
	bpfRawOpen     = 17
	bpfTypesLoad   = 18 // BPF_BTF_LOAD
	bpfLinkCreate  = 28
	progSocket     = 1
	progKprobe     = 2
	progClassifier = 3
	progTracepoint = 5
	progXDP        = 6
	progCgroupSKB  = 8
	progRaw        = 17
	progTracing    = 26
	progStructOps  = 27
	progLSM        = 29
	attachIngress  = 0 // of a cgroup
	attachEgress   = 1
	attachEntry    = 24
	attachExit     = 25
	attachLSM      = 27
	attachXDP      = 37
	attachPerf     = 41
	attachMulti    = 42
	attachTCX      = 46
)

// bpfAttr is union bpf_attr, and what it points to.
type bpfAttr struct {
	b    [128]byte
	keep []any
}

func (a *bpfAttr) u32(at int, v uint32) { binary.LittleEndian.PutUint32(a.b[at:], v) }

// bytes has a place point to bytes.
func (a *bpfAttr) bytes(at int, b []byte) {
	a.keep = append(a.keep, b)
	binary.LittleEndian.PutUint64(a.b[at:], uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))))
}

func (a *bpfAttr) call(cmd uintptr, size int) (int, error) {
	fd, _, errno := syscall.Syscall(sysBPF, cmd, uintptr(unsafe.Pointer(&a.b)), uintptr(size))
	runtime.KeepAlive(a)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// bpfProgram is the smallest of programs: it returns a number.
type bpfProgram struct {
	kind    uint32
	returns int32
	attach  uint32 // expected_attach_type
	to      uint32 // attach_btf_id
}

func (p bpfProgram) load() (int, error) {
	const (
		movR0 = 0xb7
		exit  = 0x95
		locks = 8 // RLIMIT_MEMLOCK: older kernels count a user's programs to it
	)
	if err := syscall.Setrlimit(locks, &syscall.Rlimit{Cur: ^uint64(0), Max: ^uint64(0)}); err != nil {
		return -1, err
	}
	insns := make([]byte, 16)
	insns[0], insns[8] = movR0, exit
	binary.LittleEndian.PutUint32(insns[4:], uint32(p.returns))
	a := new(bpfAttr)
	a.u32(0, p.kind)
	a.u32(4, uint32(len(insns)/8))
	a.bytes(8, insns)
	a.bytes(16, []byte("GPL\x00"))
	copy(a.b[48:], "held")
	a.u32(68, p.attach)
	a.u32(108, p.to)
	for {
		// The kernel gives up on a program when a signal comes, as Go's scheduler sends them.
		fd, err := a.call(bpfProgLoad, 116)
		if err != syscall.EAGAIN {
			return fd, err
		}
	}
}

// openRaw attaches a program to a raw tracepoint or, without a name, to what it was loaded for.
func openRaw(prog int, name string) (int, error) {
	a := new(bpfAttr)
	if name != "" {
		a.bytes(0, append([]byte(name), 0))
	}
	a.u32(8, uint32(prog))
	return a.call(bpfRawOpen, 16)
}

// openBPF attaches a program to the raw tracepoint sys_enter, and leaves both descriptors open.
func openBPF() error {
	prog, err := bpfProgram{kind: progRaw}.load()
	if err == nil {
		_, err = openRaw(prog, "sys_enter")
	}
	return err
}
