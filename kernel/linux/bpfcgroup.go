package linux

import (
	"encoding/binary"
	"errors"

	"vmscope/ctype"
	"vmscope/mem"
)

// bpfGroupLayout is where control groups keep the programs that are attached to
// them (include/linux/bpf-cgroup-defs.h, kernel/bpf/cgroup.c).
type bpfGroupLayout struct {
	Group    ctype.Field `c:"cgroup_root.cgrp,optional"` // include/linux/cgroup-defs.h
	Children ctype.Field `c:"cgroup.self.children,optional"`
	Sibling  ctype.Field `c:"cgroup.self.sibling,optional"`
	KN       ctype.Field `c:"cgroup.kn,optional"`
	Progs    ctype.Field `c:"cgroup.bpf.progs,optional"` // lists, by the way of attaching
	Node     ctype.Field `c:"bpf_prog_list.node,optional"`
	Prog     ctype.Field `c:"bpf_prog_list.prog,optional"`
}

// maxBPFGroups bounds the control groups that are gone through.
const maxBPFGroups = 1 << 16

// groupLinks are the attachments of programs to control groups that no link makes,
// as service managers attach them: as many as could be read.
func (v *View) groupLinks(progs []BPFProgram) ([]BPFLink, error) {
	l, err := layout[bpfGroupLayout](v.Kernel)
	if err != nil || !l.Group.Valid() || !l.Children.Valid() || !l.Sibling.Valid() || !l.KN.Valid() || !l.Progs.Valid() || !l.Node.Valid() || !l.Prog.Valid() {
		return nil, err
	}
	root, err := v.Symbol("cgrp_dfl_root") // of the unified hierarchy
	if err != nil {
		return nil, nil
	}
	known := make(map[mem.VA]bool, len(progs))
	for _, p := range progs {
		known[p.Addr] = true
	}
	var out []BPFLink
	err = v.settle(func() error {
		out = out[:0]
		groups := []mem.VA{l.Group.At(root)}
		for i := 0; i < len(groups); i++ {
			group := groups[i]
			if err := v.attached(l, group, known, &out); err != nil {
				return err
			}
			if err := v.List(l.Children.At(group), func(node mem.VA) error {
				if len(groups) >= maxBPFGroups {
					return errBroken("cgroup", group, "too many below it")
				}
				groups = append(groups, node-mem.VA(l.Sibling.Offset))
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, mem.ErrUnreachable) {
		return out, err
	}
	return out, nil
}

// attached adds the programs that are attached to one control group.
func (v *View) attached(l *bpfGroupLayout, group mem.VA, known map[mem.VA]bool, out *[]BPFLink) error {
	each := max(8, l.Progs.Size()/uint64(max(1, l.Progs.Type.Len()))) // struct list_head, hlist_head since v6.0
	b := make([]byte, min(l.Progs.Size(), maxObject))
	if _, err := v.Mem.Read(b, l.Progs.At(group)); err != nil {
		return err
	}
	walk := v.HList
	if each == 16 {
		walk = v.List
	}
	for off := uint64(0); off+8 <= uint64(len(b)); off += each {
		head := l.Progs.At(group) + mem.VA(off)
		if first := mem.VA(binary.LittleEndian.Uint64(b[off:])); first == 0 || first == head {
			continue
		}
		if err := walk(head, func(node mem.VA) error {
			at := node - mem.VA(l.Node.Offset)
			prog, err := v.Mem.Pointer(l.Prog.At(at))
			if err != nil || !known[prog] || len(*out) >= maxBPF { // by a link, or gone
				return err
			}
			kn, err := v.Mem.Pointer(l.KN.At(group))
			if err != nil {
				return err
			}
			path, err := v.KernfsPath(kn)
			*out = append(*out, BPFLink{Addr: at, Type: "cgroup", Prog: prog, Target: groupPath(path)})
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// groupPath is the path of a control group by that of its directory.
func groupPath(path string) string {
	if path == "" {
		return "/"
	}
	return path
}
