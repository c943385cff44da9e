package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// bpfLayout is what is read of eBPF programs and links (include/linux/bpf.h).
type bpfLayout struct {
	IDR ctype.Field `c:"idr.idr_rt"`

	Type     ctype.Field `c:"bpf_prog.type"`
	Override ctype.Field `c:"bpf_prog.kprobe_override"`
	Size     ctype.Field `c:"bpf_prog.jited_len"`
	Tag      ctype.Field `c:"bpf_prog.tag"`
	Aux      ctype.Field `c:"bpf_prog.aux"`
	Func     ctype.Field `c:"bpf_prog.bpf_func"`

	ID       ctype.Field `c:"bpf_prog_aux.id"`
	Name     ctype.Field `c:"bpf_prog_aux.name"`
	User     ctype.Field `c:"bpf_prog_aux.user"`
	Target   ctype.Field `c:"bpf_prog_aux.attach_func_name"`
	Subs     ctype.Field `c:"bpf_prog_aux.func"`
	NSubs    ctype.Field `c:"bpf_prog_aux.real_func_cnt|bpf_prog_aux.func_cnt"`
	KSym     ctype.Field `c:"bpf_prog_aux.ksym"`
	Prefix   ctype.Field `c:"bpf_prog_aux.ksym_prefix,optional"` // CONFIG_FINEIBT
	UserUID  ctype.Field `c:"user_struct.uid"`
	ProgType ctype.Type  `c:"enum bpf_prog_type"`

	LinkID   ctype.Field `c:"bpf_link.id,optional"` // since v5.8
	LinkType ctype.Field `c:"bpf_link.type,optional"`
	LinkProg ctype.Field `c:"bpf_link.prog,optional"`
	Types    ctype.Type  `c:"enum bpf_link_type,optional"`
}

// Bounds: a program has at most 256 functions (BPF_MAX_SUBPROGS) and hidden
// ones; there are at most some thousand programs where there are many.
const (
	maxBPF     = 1 << 16
	maxBPFSubs = 1 << 10 // of one
	maxBPFSyms = 1 << 17 // of all, and of trampolines
)

// BPFProgram is a loaded program of eBPF.
type BPFProgram struct {
	Addr     mem.VA // of its struct bpf_prog
	ID       uint32 // as bpf(2) and bpftool give it
	Type     string // "socket_filter", "kprobe", "lsm", …
	Name     kernel.Text
	Tag      [8]byte
	UID      uint32      // who loaded it
	Target   kernel.Text // the function that it is made for; "" if none
	Override bool        // it may change what functions return (bpf_override_return)
	Func     mem.VA      // where its code begins; in the kernel's text if it is interpreted
	Size     uint64      // of its code, 0 if it is interpreted
	// Symbols are the addresses of the bpf_ksyms of it and of its functions, the
	// program's own first.
	Symbols []mem.VA
	// Holders are the descriptors that lead to it. A program that is pinned, or
	// attached without a link, needs none.
	Holders []kernel.Owner
}

// BPFLink is an attachment of a program of eBPF.
type BPFLink struct {
	Addr    mem.VA // of its struct bpf_link; else of the struct perf_event or bpf_prog_list
	ID      uint32 // 0 of one that is none
	Type    string // "raw_tracepoint", "kprobe_multi", "perf_event", …
	Prog    mem.VA // its struct bpf_prog
	Target  string // what it is attached to, where that is known
	Holders []kernel.Owner
}

// bpfHolders maps programs, links and events to the descriptors that lead to them.
func (v *View) bpfHolders() (map[mem.VA][]kernel.Owner, error) {
	var ops []mem.VA
	for _, name := range []string{"bpf_prog_fops", "bpf_link_fops", "bpf_link_fops_poll", "perf_fops"} {
		if at, err := v.Symbol(name); err == nil {
			ops = append(ops, at)
		}
	}
	return v.holders(ctype.Field{}, ops...)
}

// BPF lists the programs of eBPF and the links that attach them, by their ids,
// and then what attaches one without a link: events that processes hold, and
// control groups. A kernel without has none.
func (v *View) BPF() (progs []BPFProgram, links []BPFLink, err error) {
	progIDR, err := v.Symbol("prog_idr")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	l, err := layout64[bpfLayout](v.Kernel)
	if err != nil {
		return nil, nil, err
	}
	err = v.settle(func() error {
		progs, links = progs[:0], links[:0]
		symbols := 0
		err := v.XArray(l.IDR.At(progIDR), func(_ uint64, at mem.VA) error {
			if len(progs) >= maxBPF {
				return errBroken("prog_idr", at, fmt.Sprintf("more than %d programs", maxBPF))
			}
			p, err := v.bpfProgram(l, at)
			progs = append(progs, p)
			if symbols += len(p.Symbols); symbols > maxBPFSyms && err == nil {
				err = errBroken("prog_idr", at, fmt.Sprintf("more than %d functions", maxBPFSyms))
			}
			return err
		})
		linkIDR, lerr := v.Symbol("link_idr")
		if err != nil || lerr != nil || !l.LinkID.Valid() {
			return err
		}
		return v.XArray(l.IDR.At(linkIDR), func(_ uint64, at mem.VA) error {
			if len(links) >= maxBPF {
				return errBroken("link_idr", at, fmt.Sprintf("more than %d links", maxBPF))
			}
			k, err := v.bpfLink(l, at)
			links = append(links, k)
			return err
		})
	})
	if err != nil || len(progs) == 0 {
		return progs, links, err
	}
	held, err := v.bpfHolders()
	for i := range progs {
		progs[i].Holders = held[progs[i].Addr]
	}
	for i := range links {
		links[i].Holders = held[links[i].Addr]
	}
	events, eerr := v.perfLinks(progs, links, held)
	groups, gerr := v.groupLinks(progs)
	return progs, slices.Concat(links, events, groups), errors.Join(err, eerr, gerr)
}

// enumName is the name of a value without what all begin with, in lower case;
// its number if it has none.
func enumName(t ctype.Type, value uint64, prefix string) string {
	if name, ok := t.EnumName(int64(value)); ok {
		return strings.ToLower(strings.TrimPrefix(name, prefix))
	}
	return fmt.Sprint(value)
}

func (v *View) bpfProgram(l *bpfLayout, at mem.VA) (BPFProgram, error) {
	p := BPFProgram{Addr: at}
	r := loadsOf(v.Mem)
	p.Type = enumName(l.ProgType, uint64(r.u32(l.Type.At(at))), "BPF_PROG_TYPE_")
	p.Size = uint64(r.u32(l.Size.At(at)))
	p.Func = mem.VA(r.u64(l.Func.At(at)))
	aux := mem.VA(r.u64(l.Aux.At(at)))
	if r.err != nil {
		return p, r.err
	}
	bits, err := v.Mem.Uint(l.Override.At(at), 1)
	if err != nil {
		return p, err
	}
	p.Override = bits>>l.Override.BitOffset&1 != 0
	if _, err := v.Mem.Read(p.Tag[:], l.Tag.At(at)); err != nil {
		return p, err
	}
	p.ID = r.u32(l.ID.At(aux))
	user := mem.VA(r.u64(l.User.At(aux)))
	target := mem.VA(r.u64(l.Target.At(aux)))
	subs, n := mem.VA(r.u64(l.Subs.At(aux))), r.u32(l.NSubs.At(aux))
	if r.err != nil {
		return p, r.err
	}
	name, err := v.Mem.CString(l.Name.At(aux), int(min(l.Name.Size(), maxObject)))
	if err != nil {
		return p, err
	}
	p.Name = kernel.Text(name)
	if user != 0 {
		p.UID = r.u32(l.UserUID.At(user))
	}
	if target != 0 {
		text, err := v.Mem.CString(target, ksymNameLen)
		if err != nil {
			return p, err
		}
		p.Target = kernel.Text(text)
	}
	symbols := func(aux mem.VA) {
		p.Symbols = append(p.Symbols, l.KSym.At(aux))
		if l.Prefix.Valid() {
			p.Symbols = append(p.Symbols, l.Prefix.At(aux))
		}
	}
	symbols(aux)
	if subs == 0 {
		return p, r.err
	}
	if n > maxBPFSubs {
		return p, errBroken("bpf_prog", at, fmt.Sprintf("%d functions", n))
	}
	for i := range mem.VA(n) {
		sub := mem.VA(r.u64(subs + 8*i))
		if r.err != nil {
			break
		}
		symbols(mem.VA(r.u64(l.Aux.At(sub))))
	}
	return p, r.err
}

func (v *View) bpfLink(l *bpfLayout, at mem.VA) (BPFLink, error) {
	k := BPFLink{Addr: at}
	r := loadsOf(v.Mem)
	k.ID = r.u32(l.LinkID.At(at))
	k.Type = enumName(l.Types, uint64(r.u32(l.LinkType.At(at))), "BPF_LINK_TYPE_")
	k.Prog = mem.VA(r.u64(l.LinkProg.At(at)))
	if r.err != nil {
		return k, r.err
	}
	target, err := v.bpfTarget(k.Type, at)
	if errors.Is(err, mem.ErrUnreachable) {
		return k, err
	}
	if err == nil { // else it is being taken away
		k.Target = target
	}
	return k, r.err
}
