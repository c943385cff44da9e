package linux

import (
	"fmt"
	"maps"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// bpfAttachLayout is what tells where programs of eBPF are attached. A kernel may
// lack some of it.
type bpfAttachLayout struct {
	RawEvent ctype.Field `c:"bpf_raw_tp_link.btp,optional"` // kernel/bpf/syscall.c
	RawPoint ctype.Field `c:"bpf_raw_event_map.tp,optional"`
	RawName  ctype.Field `c:"tracepoint.name,optional"`

	MultiAddrs ctype.Field `c:"bpf_kprobe_multi_link.addrs,optional"` // kernel/trace/bpf_trace.c
	MultiCount ctype.Field `c:"bpf_kprobe_multi_link.cnt,optional"`

	CGroup    ctype.Field `c:"bpf_cgroup_link.cgroup,optional"` // include/linux/bpf-cgroup-defs.h
	KN        ctype.Field `c:"cgroup.kn,optional"`
	XDP       ctype.Field `c:"bpf_xdp_link.dev,optional"` // net/core/dev.c
	TCX       ctype.Field `c:"tcx_link.dev,optional"`     // include/net/tcx.h
	Interface ctype.Field `c:"net_device.name,optional"`

	PerfFile ctype.Field `c:"bpf_perf_link.perf_file,optional"` // kernel/bpf/syscall.c
	Private  ctype.Field `c:"file.private_data,optional"`
	PerfProg ctype.Field `c:"perf_event.prog,optional"` // include/linux/perf_event.h
	Event    ctype.Field `c:"perf_event.tp_event,optional"`
	Flags    ctype.Field `c:"trace_event_call.flags,optional"` // include/linux/trace_events.h
	Point    ctype.Field `c:"trace_event_call.tp,optional"`
	IsPoint  uint64      `c:"enum(TRACE_EVENT_FL_TRACEPOINT),optional"`
	IsKprobe uint64      `c:"enum(TRACE_EVENT_FL_KPROBE),optional"`
	IsUprobe uint64      `c:"enum(TRACE_EVENT_FL_UPROBE),optional"`

	Call    ctype.Field `c:"trace_probe_event.call,optional"` // kernel/trace/trace_probe.h
	Probes  ctype.Field `c:"trace_probe_event.probes,optional"`
	Sibling ctype.Field `c:"trace_probe.list,optional"`
	Kprobe  ctype.Field `c:"trace_kprobe.tp,optional"` // kernel/trace/trace_kprobe.c
	Where   ctype.Field `c:"trace_kprobe.rp.kp.addr,optional"`
	Returns ctype.Field `c:"trace_kprobe.rp.handler,optional"`
	Uprobe  ctype.Field `c:"trace_uprobe.tp,optional"` // kernel/trace/trace_uprobe.c
	Path    ctype.Field `c:"trace_uprobe.filename,optional"`
	Offset  ctype.Field `c:"trace_uprobe.offset,optional"`
}

// maxAttachPath bounds the path of a file whose code is probed (PATH_MAX).
const maxAttachPath = 4096

// bpfTarget tells what a link attaches its program to, "" if it does not tell. The
// struct bpf_link stands at the start of each kind of link.
func (v *View) bpfTarget(kind string, link mem.VA) (string, error) {
	l, err := layout[bpfAttachLayout](v.Kernel)
	if err != nil {
		return "", err
	}
	r := loadsOf(v.Mem)
	text := func(at mem.VA, most int) (string, error) {
		if r.err != nil || at == 0 {
			return "", r.err
		}
		b, err := v.Mem.CString(at, most)
		return string(b), err
	}
	switch {
	case kind == "raw_tracepoint" && l.RawEvent.Valid() && l.RawPoint.Valid() && l.RawName.Valid():
		return text(r.ptr(l.RawName.At(r.ptr(l.RawPoint.At(r.ptr(l.RawEvent.At(link)))))), ksymNameLen)
	case kind == "kprobe_multi" && l.MultiAddrs.Valid() && l.MultiCount.Valid():
		addrs, n := r.ptr(l.MultiAddrs.At(link)), r.u32(l.MultiCount.At(link))
		if n == 0 || r.err != nil {
			return "", r.err
		}
		target := v.bpfPlace(r.ptr(addrs))
		if n > 1 {
			target += fmt.Sprintf(" and %d more", n-1)
		}
		return target, r.err
	case kind == "cgroup" && l.CGroup.Valid() && l.KN.Valid():
		group := r.ptr(l.CGroup.At(link))
		if group == 0 || r.err != nil {
			return "", r.err // it was removed
		}
		node := r.ptr(l.KN.At(group))
		if r.err != nil {
			return "", r.err
		}
		path, err := v.KernfsPath(node)
		return groupPath(path), err
	case kind == "xdp" && l.XDP.Valid() && l.Interface.Valid():
		return v.interfaceName(l, r.ptr(l.XDP.At(link)), &r)
	case kind == "tcx" && l.TCX.Valid() && l.Interface.Valid():
		return v.interfaceName(l, r.ptr(l.TCX.At(link)), &r)
	case kind == "perf_event" && l.PerfFile.Valid() && l.Private.Valid():
		event := r.ptr(l.Private.At(r.ptr(l.PerfFile.At(link))))
		if r.err != nil {
			return "", r.err
		}
		return v.perfTarget(l, event)
	}
	return "", nil
}

func (v *View) interfaceName(l *bpfAttachLayout, dev mem.VA, r *loads) (string, error) {
	if dev == 0 || r.err != nil {
		return "", r.err
	}
	b, err := v.Mem.CString(l.Interface.At(dev), int(min(l.Interface.Size(), maxObject)))
	return string(b), err
}

// bpfPlace names a place in code that a program is attached to.
func (v *View) bpfPlace(at mem.VA) string {
	s, off, err := v.Symbols.Nearest(at)
	switch {
	case err != nil:
		return fmt.Sprintf("%#x", uint64(at))
	case off == 0:
		return s.Name
	}
	return fmt.Sprintf("%s+%#x", s.Name, off)
}

// perfTarget tells what a struct perf_event counts, if it is a place in code.
func (v *View) perfTarget(l *bpfAttachLayout, event mem.VA) (string, error) {
	if !l.Event.Valid() || !l.Flags.Valid() || !l.Point.Valid() || !l.RawName.Valid() {
		return "", nil
	}
	r := loadsOf(v.Mem)
	call := r.ptr(l.Event.At(event))
	if call == 0 || r.err != nil {
		return "", r.err // it counts time, or what the processor does
	}
	switch flags := uint64(r.u32(l.Flags.At(call))); {
	case r.err != nil:
		return "", r.err
	case flags&l.IsPoint != 0:
		name := r.ptr(l.RawName.At(r.ptr(l.Point.At(call))))
		if r.err != nil {
			return "", r.err
		}
		b, err := v.Mem.CString(name, ksymNameLen)
		return "tracepoint " + string(b), err
	case flags&(l.IsKprobe|l.IsUprobe) != 0 && l.Call.Valid() && l.Probes.Valid() && l.Sibling.Valid():
		probe := r.ptr(l.Probes.At(call-mem.VA(l.Call.Offset))) - mem.VA(l.Sibling.Offset) // the first of them
		if r.err != nil {
			return "", r.err
		}
		if flags&l.IsKprobe != 0 {
			return v.kprobeTarget(l, probe)
		}
		return v.uprobeTarget(l, probe)
	}
	return "", nil
}

// kprobeTarget names the place of the struct trace_kprobe that has a struct
// trace_probe.
func (v *View) kprobeTarget(l *bpfAttachLayout, probe mem.VA) (string, error) {
	if !l.Kprobe.Valid() || !l.Where.Valid() || !l.Returns.Valid() {
		return "", nil
	}
	r := loadsOf(v.Mem)
	at := probe - mem.VA(l.Kprobe.Offset)
	where, returns := r.ptr(l.Where.At(at)), r.ptr(l.Returns.At(at))
	if r.err != nil {
		return "", r.err
	}
	kind := "kprobe "
	if returns != 0 {
		kind = "kretprobe "
	}
	return kind + v.bpfPlace(where), nil
}

// uprobeTarget is kprobeTarget for a place in a program.
func (v *View) uprobeTarget(l *bpfAttachLayout, probe mem.VA) (string, error) {
	if !l.Uprobe.Valid() || !l.Path.Valid() || !l.Offset.Valid() {
		return "", nil
	}
	r := loadsOf(v.Mem)
	at := probe - mem.VA(l.Uprobe.Offset)
	path, off := r.ptr(l.Path.At(at)), r.u64(l.Offset.At(at))
	if r.err != nil {
		return "", r.err
	}
	b, err := v.Mem.CString(path, maxAttachPath)
	return fmt.Sprintf("uprobe %s+%#x", b, off), err
}

// perfLinks are the attachments that a descriptor of an event makes, by itself and
// without a struct bpf_link: of those objects that descriptors lead to.
func (v *View) perfLinks(progs []BPFProgram, links []BPFLink, held map[mem.VA][]kernel.Owner) ([]BPFLink, error) {
	l, err := layout[bpfAttachLayout](v.Kernel)
	if err != nil || !l.PerfProg.Valid() {
		return nil, err
	}
	known := make(map[mem.VA]bool, len(progs)+len(links)) // programs; not links
	for _, p := range progs {
		known[p.Addr] = true
	}
	for _, k := range links {
		if _, ok := known[k.Addr]; !ok {
			known[k.Addr] = false
		}
	}
	var out []BPFLink
	for _, at := range slices.Sorted(maps.Keys(held)) {
		if _, ok := known[at]; ok {
			continue
		}
		prog, err := v.Mem.Pointer(l.PerfProg.At(at))
		if err != nil || !known[prog] {
			continue // it is closed meanwhile, or has none
		}
		target, err := v.perfTarget(l, at)
		if err != nil {
			continue
		}
		out = append(out, BPFLink{Addr: at, Type: "perf_event", Prog: prog, Target: target, Holders: held[at]})
	}
	return out, nil
}
