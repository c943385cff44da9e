package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// classicLayout is what leads to classic BPF programs.
type classicLayout struct {
	Func  ctype.Field `c:"bpf_prog.bpf_func"` // include/linux/bpf.h, filter.h
	Size  ctype.Field `c:"bpf_prog.jited_len"`
	Pack  ctype.Field `c:"bpf_prog_pack.ptr,optional"`
	SK    ctype.Field `c:"sock.sk_filter"`
	SKOf  ctype.Field `c:"sk_filter.prog"`
	Tasks ctype.Field `c:"task_struct.seccomp,optional"`
	Top   ctype.Field `c:"seccomp.filter,optional"`
	Prev  ctype.Field `c:"seccomp_filter.prev,optional"` // kernel/seccomp.c
	Prog  ctype.Field `c:"seccomp_filter.prog,optional"`
}

// packChunk is the unit in which programs share executable memory, each behind
// its header (BPF_PROG_CHUNK_SIZE, kernel/bpf/core.c); before there were packs,
// each had pages of its own.
const packChunk = 64

// maxFilters bounds the seccomp filters of one thread: the kernel allows them
// 32,768 instructions in all.
const maxFilters = 1 << 15

// ClassicBPF lists the code of classic BPF programs that sockets, seccomp and
// time stamping hold: the kernel lists it nowhere (bpf_prog_kallsyms_candidate,
// kernel/bpf/core.c). Programs of other users (xt_bpf, cls_bpf, fan-out of
// packet sockets) are not found. It costs a look at the files of all processes.
func (v *View) ClassicBPF() ([]kernel.Code, error) {
	l, err := layout64[classicLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var out []kernel.Code
	seen := make(map[mem.VA]bool)
	add := func(name string, prog mem.VA) error {
		if prog == 0 || seen[prog] {
			return nil
		}
		seen[prog] = true
		c, err := v.jited(l, prog)
		if err == nil && c.Size > 0 {
			c.Name = kernel.Text(name)
			out = append(out, c)
		}
		return err
	}
	var bad mishaps
	bad.add(v.ptpFilter(add))
	bad.add(v.socketFilters(l, add))
	bad.add(v.seccompFilters(l, add))
	return out, bad.err()
}

// jited is where the code of a program lies, with the header before it. A
// program that is interpreted has none.
func (v *View) jited(l *classicLayout, prog mem.VA) (kernel.Code, error) {
	at, err := v.Mem.Pointer(l.Func.At(prog))
	if err != nil {
		return kernel.Code{}, err
	}
	size, err := v.Mem.Uint32(l.Size.At(prog))
	if err != nil {
		return kernel.Code{}, err
	}
	if size == 0 {
		return kernel.Code{}, nil
	}
	if size > maxObject*64 {
		return kernel.Code{}, errBroken("bpf_prog", prog, fmt.Sprintf("%d bytes of code", size))
	}
	return code("bpf", "", l.header(at), at+mem.VA(size)), nil
}

// header is where the header of a program lies whose code begins at an address:
// some random bytes before it (bpf_jit_binary_alloc, kernel/bpf/core.c).
func (l *classicLayout) header(at mem.VA) mem.VA {
	if l.Pack.Valid() {
		return (at - 1) &^ (packChunk - 1)
	}
	return at &^ (mem.PageSize - 1)
}

// ptpFilter gives the program that tells packets to be time-stamped.
func (v *View) ptpFilter(add func(string, mem.VA) error) error {
	at, err := v.Symbol("ptp_insns") // net/core/ptp_classifier.c
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil
	}
	if err != nil {
		return err
	}
	prog, err := v.Mem.Pointer(at)
	if err != nil {
		return err
	}
	return add("ptp_insns", prog)
}

// socketFilters gives those that processes attached to sockets.
func (v *View) socketFilters(l *classicLayout, add func(string, mem.VA) error) error {
	owners, err := v.socketOwners()
	var bad mishaps
	bad.add(err)
	for sk, who := range owners {
		filter, err := v.Mem.Pointer(l.SK.At(sk))
		if err == nil && filter != 0 {
			var prog mem.VA
			if prog, err = v.Mem.Pointer(l.SKOf.At(filter)); err == nil {
				err = add(fmt.Sprintf("filter of a socket of pid %d", who[0].PID), prog)
			}
		}
		bad.add(err)
	}
	return bad.err()
}

// seccompFilters gives those that confine threads. Each inherits the filters of
// its parent, which stand behind its own.
func (v *View) seccompFilters(l *classicLayout, add func(string, mem.VA) error) error {
	if !l.Tasks.Valid() || !l.Prev.Valid() {
		return nil
	}
	leaders, err := v.Tasks()
	var bad mishaps
	bad.add(err)
	seen := make(map[mem.VA]bool)
	for _, leader := range leaders {
		if leader.KThread() {
			continue
		}
		threads, err := v.ThreadsOf(leader)
		bad.add(err)
		for _, t := range threads {
			at := l.Tasks.At(t.Addr) + mem.VA(l.Top.Offset)
			for n := 0; ; n++ {
				filter, err := v.Mem.Pointer(at)
				if err != nil || filter == 0 || seen[filter] {
					bad.add(err)
					break
				}
				if n >= maxFilters {
					bad.add(errBroken("seccomp_filter", filter, fmt.Sprintf("more than %d", maxFilters)))
					break
				}
				seen[filter] = true
				prog, err := v.Mem.Pointer(l.Prog.At(filter))
				if err == nil {
					err = add(fmt.Sprintf("seccomp of pid %d", t.TGID), prog)
				}
				bad.add(err)
				at = l.Prev.At(filter)
			}
		}
	}
	return bad.err()
}
