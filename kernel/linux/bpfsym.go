package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// bpfSymLayout is what is read of the ranges of code that eBPF has had compiled,
// and of what owns them (include/linux/bpf.h).
type bpfSymLayout struct {
	List  ctype.Field `c:"bpf_ksym.lnode,optional"`
	Start ctype.Field `c:"bpf_ksym.start,optional"`
	End   ctype.Field `c:"bpf_ksym.end,optional"`
	Name  ctype.Field `c:"bpf_ksym.name,optional"`
	Prog  ctype.Field `c:"bpf_ksym.prog,optional"`

	Node  ctype.Field `c:"bpf_trampoline.hlist_key|bpf_trampoline.hlist,optional"`
	Image ctype.Field `c:"bpf_trampoline.cur_image,optional"` // since v5.12
	Of    ctype.Field `c:"bpf_tramp_image.ksym,optional"`
	Own   ctype.Field `c:"bpf_trampoline.ksym,optional"` // before

	Dispatcher ctype.Field `c:"bpf_dispatcher.ksym,optional"`

	IDR     ctype.Field `c:"idr.idr_rt"`
	MapType ctype.Field `c:"bpf_map.map_type,optional"`
	OpsType int64       `c:"enum(BPF_MAP_TYPE_STRUCT_OPS),optional"`
	OpsSyms ctype.Field `c:"bpf_struct_ops_map.ksyms,optional"`     // kernel/bpf/bpf_struct_ops.c
	OpsN    ctype.Field `c:"bpf_struct_ops_map.funcs_cnt,optional"` // both since v6.13
	OpsPage ctype.Field `c:"bpf_struct_ops_map.image_pages|bpf_struct_ops_map.image,optional"`
}

// BPFSymbol is a range of code that the kernel lists as eBPF's.
type BPFSymbol struct {
	Addr       mem.VA // of the struct bpf_ksym
	Start, End mem.VA
	Name       kernel.Text
	Prog       bool // it is a program's, before which its header lies
}

// BPFSymbols lists the code of eBPF's programs, trampolines and dispatchers, as
// bpf_kallsyms has it. A kernel without has none.
func (v *View) BPFSymbols() ([]BPFSymbol, error) {
	l, err := layout64[bpfSymLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	head, err := v.Symbol("bpf_kallsyms")
	if errors.Is(err, ksym.ErrNoSymbol) || err == nil && !l.List.Valid() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []BPFSymbol
	err = v.settle(func() error {
		out = out[:0]
		return v.List(head, func(node mem.VA) error {
			if len(out) >= maxBPFSyms {
				return errBroken("bpf_kallsyms", node, fmt.Sprintf("more than %d", maxBPFSyms))
			}
			s := BPFSymbol{Addr: node - mem.VA(l.List.Offset)}
			r := loadsOf(v.Mem)
			s.Start, s.End = r.ptr(l.Start.At(s.Addr)), r.ptr(l.End.At(s.Addr))
			if r.err != nil {
				return r.err
			}
			name, err := v.Mem.CString(l.Name.At(s.Addr), int(min(l.Name.Size(), maxObject)))
			s.Name = kernel.Text(name)
			if err == nil && l.Prog.Valid() {
				var b uint64
				b, err = v.Mem.Uint(l.Prog.At(s.Addr), 1)
				s.Prog = b != 0
			}
			out = append(out, s)
			return err
		})
	})
	return out, err
}

// Bounds: the table of trampolines has 1024 chains (TRAMPOLINE_TABLE_SIZE), a
// struct_ops some hundred functions.
const (
	trampolineChains = 1024
	maxStructOps     = 1 << 12
)

// BPFImages are the addresses of the bpf_ksyms that are not of programs, with
// what has them: the trampolines that programs are called by, dispatchers, and
// the functions of struct_ops.
func (v *View) BPFImages() (map[mem.VA]string, error) {
	l, err := layout64[bpfSymLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	out := make(map[mem.VA]string)
	if at, err := v.Symbol("bpf_dispatcher_xdp"); err == nil && l.Dispatcher.Valid() {
		out[l.Dispatcher.At(at)] = "dispatcher"
	}
	for _, table := range []string{"trampoline_table", "trampoline_key_table"} {
		at, err := v.Symbol(table)
		if errors.Is(err, ksym.ErrNoSymbol) || err == nil && !l.Node.Valid() {
			continue
		}
		if err == nil {
			err = v.settle(func() error { return v.trampolines(l, at, out) })
		}
		if err != nil {
			return out, err
		}
	}
	if !l.OpsSyms.Valid() || !l.OpsN.Valid() {
		return out, nil
	}
	return out, v.structOps(l, func(at mem.VA) error { return v.structOpsSyms(l, at, out) })
}

// structOps calls each with every map of struct_ops.
func (v *View) structOps(l *bpfSymLayout, each func(at mem.VA) error) error {
	maps, err := v.Symbol("map_idr")
	if errors.Is(err, ksym.ErrNoSymbol) || err == nil && !l.MapType.Valid() {
		return nil
	}
	if err != nil {
		return err
	}
	return v.settle(func() error {
		return v.XArray(l.IDR.At(maps), func(_ uint64, at mem.VA) error {
			typ, err := v.Mem.Uint32(l.MapType.At(at))
			if err != nil || int64(typ) != l.OpsType {
				return err
			}
			return each(at)
		})
	})
}

// structOpsCode lists the pages of code of struct_ops, where the kernel does not
// list that code by its symbols.
func (v *View) structOpsCode() ([]kernel.Code, error) {
	l, err := layout64[bpfSymLayout](v.Kernel)
	if err != nil || l.OpsSyms.Valid() || !l.OpsPage.Valid() {
		return nil, err
	}
	seen := make(map[mem.VA]bool)
	err = v.structOps(l, func(at mem.VA) error {
		for i := range mem.VA(max(1, l.OpsPage.Type.Len())) { // one page, or an array of them
			page, err := v.Mem.Pointer(l.OpsPage.At(at) + 8*i)
			if err != nil {
				return err
			}
			if page != 0 {
				seen[page] = true
			}
			if len(seen) > maxBPFSyms {
				return errBroken("map_idr", at, fmt.Sprintf("more than %d pages of struct_ops", maxBPFSyms))
			}
		}
		return nil
	})
	out := make([]kernel.Code, 0, len(seen))
	for page := range seen {
		out = append(out, code("bpf", "struct_ops", page, page+mem.PageSize))
	}
	return out, err
}

// trampolines adds what the hash table of trampolines has.
func (v *View) trampolines(l *bpfSymLayout, table mem.VA, out map[mem.VA]string) error {
	heads := make([]byte, 8*trampolineChains)
	if _, err := v.Mem.Read(heads, table); err != nil {
		return err
	}
	for i := range trampolineChains {
		if binary.LittleEndian.Uint64(heads[8*i:]) == 0 {
			continue
		}
		err := v.HList(table+mem.VA(8*i), func(node mem.VA) error {
			t := node - mem.VA(l.Node.Offset)
			if len(out) > maxBPFSyms {
				return errBroken("trampolines", t, fmt.Sprintf("more than %d", maxBPFSyms))
			}
			if l.Own.Valid() {
				out[l.Own.At(t)] = "trampoline"
			}
			if !l.Image.Valid() || !l.Of.Valid() {
				return nil
			}
			image, err := v.Mem.Pointer(l.Image.At(t))
			if err == nil && image != 0 {
				out[l.Of.At(image)] = "trampoline"
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// structOpsSyms adds the functions of a struct_ops map, which begins with its
// struct bpf_map.
func (v *View) structOpsSyms(l *bpfSymLayout, at mem.VA, out map[mem.VA]string) error {
	syms, err := v.Mem.Pointer(l.OpsSyms.At(at))
	if err != nil || syms == 0 {
		return err
	}
	n, err := v.Mem.Uint32(l.OpsN.At(at))
	if err != nil {
		return err
	}
	if n > maxStructOps || len(out) > maxBPFSyms {
		return errBroken("bpf_struct_ops_map", at, fmt.Sprintf("%d functions", n))
	}
	for i := range mem.VA(n) {
		sym, err := v.Mem.Pointer(syms + 8*i)
		if err != nil {
			return err
		}
		if sym != 0 {
			out[sym] = "struct_ops"
		}
	}
	return nil
}
