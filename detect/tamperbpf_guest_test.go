package detect

import (
	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// held is the program of eBPF that the guest was given.
func (v *victim) held() linux.BPFProgram {
	v.Helper()
	progs, _, err := v.tx.BPF()
	if err != nil || len(progs) == 0 {
		v.Fatalf("%d programs, %v", len(progs), err)
	}
	return progs[0]
}

// bpfTamperings hide code by saying that it is eBPF's, and the other way round.
var bpfTamperings = []tampering{
	{"code listed as eBPF's", "bpf", func(v *victim) []string {
		sym := v.spare(2048)
		v.put(v.member(sym, "bpf_ksym", "start"), uint64(v.nowhere()))
		v.put(v.member(sym, "bpf_ksym", "end"), uint64(v.nowhere()+64))
		v.write(v.member(sym, "bpf_ksym", "name"), []byte("bpf_prog_0123456789abcdef_x\x00"))
		node, head := v.member(sym, "bpf_ksym", "lnode"), v.symbol("bpf_kallsyms")
		next := v.pointer(head)
		v.put(node, uint64(next))
		v.put(node+8, uint64(head))
		v.put(head, uint64(node))
		v.put(next+8, uint64(node))
		return []string{"bpf_prog_0123456789abcdef_x", "no program", "bpf_kallsyms alone"}
	}},
	{"program taken off the list of code", "bpf", func(v *victim) []string {
		v.unlink(v.member(v.held().Symbols[0], "bpf_ksym", "lnode"))
		return []string{`"held"`, "code of nobody"}
	}},
	{"program of which more is listed", "bpf", func(v *victim) []string {
		end := v.member(v.held().Symbols[0], "bpf_ksym", "end")
		v.put(end, uint64(v.pointer(end))+4*mem.PageSize)
		return []string{`"held"`, "more code is listed"}
	}},
	{"program with other code", "bpf", func(v *victim) []string {
		return v.bend(v.member(v.held().Addr, "bpf_prog", "bpf_func"), `"held"`, "code of nobody")
	}},
	{"program that changes what functions return", "bpf", func(v *victim) []string {
		var f struct {
			Override ctype.Field `c:"bpf_prog.kprobe_override"`
		}
		types, err := v.tx.NeedTypes()
		if err == nil {
			err = ctype.Bind(types, &f)
		}
		if err != nil {
			v.Fatal(err)
		}
		at := f.Override.At(v.held().Addr)
		bits, err := v.tx.Mem.Uint(at, 1)
		if err != nil {
			v.Fatal(err)
		}
		v.write(at, []byte{byte(bits | 1<<f.Override.BitOffset)})
		return []string{"info", `eBPF program "held"`, "changes what functions of the kernel return"}
	}},
	{"inventory of eBPF", "bpf", func(v *victim) []string {
		return []string{`eBPF program "held" (raw_tracepoint, tag`, "of user 0", "attached to raw_tracepoint sys_enter", "held by process", "(holder)"}
	}},
}
