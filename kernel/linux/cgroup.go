package linux

import (
	"errors"
	"fmt"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// cgroupLayout is what is read to tell the control groups of a task
// (include/linux/cgroup-defs.h, kernel/cgroup/cgroup-internal.h,
// include/linux/kernfs.h).
type cgroupLayout struct {
	Default  ctype.Field `c:"css_set.dfl_cgrp"`
	Links    ctype.Field `c:"css_set.cgrp_links"`
	LinkNode ctype.Field `c:"cgrp_cset_link.cgrp_link"`
	LinkTo   ctype.Field `c:"cgrp_cset_link.cgrp"`
	KN       ctype.Field `c:"cgroup.kn"`
	Root     ctype.Field `c:"cgroup.root"`
	Flags    ctype.Field `c:"cgroup.self.flags"`
	ID       ctype.Field `c:"cgroup_root.hierarchy_id"`
	Mask     ctype.Field `c:"cgroup_root.subsys_mask"`
	Name     ctype.Field `c:"cgroup_root.name"`
	Parent   ctype.Field `c:"kernfs_node.__parent|kernfs_node.parent"` // renamed in v6.15
	KName    ctype.Field `c:"kernfs_node.name"`
	KID      ctype.Field `c:"kernfs_node.id"`
	// The numbers of the controllers, which are bits of Mask.
	Controllers ctype.Type `c:"enum cgroup_subsys_id"`
}

// CGroup is the place of a process in one hierarchy of control groups: a line
// of /proc/PID/cgroup.
type CGroup struct {
	Hierarchy   int         `json:"hierarchy"`             // 0: the unified one (v2)
	Controllers []string    `json:"controllers,omitempty"` // of a v1 hierarchy
	Name        kernel.Text `json:"name,omitempty"`        // of a v1 hierarchy: "systemd"
	Path        kernel.Text `json:"path"`                  // seen from the initial cgroup namespace; " (deleted)" as the kernel prints it
}

// cssOnline is CSS_ONLINE; a cgroup without it was removed (cgroup_is_dead).
const cssOnline = 1 << 1

// The kernel gives paths up to PATH_MAX. With its slash a component takes at
// least two bytes.
const (
	maxGroupPath  = 4096
	maxGroupDepth = maxGroupPath / 2
	maxGroupName  = 255 // NAME_MAX
	// maxHierarchies bounds the hierarchies; a kernel has 14 controllers, so
	// more must be named ones.
	maxHierarchies = 256
)

// CGroups lists the control groups of a task, the unified hierarchy first.
//
// A task that is exiting is shown where it was also in v1 hierarchies, where
// the kernel shows "/".
func (v *View) CGroups(task Task) ([]CGroup, error) {
	r, err := v.newReader(task.leads())
	if err != nil {
		return nil, err
	}
	if r.c == nil {
		return nil, fmt.Errorf("control groups of this kernel: %w", errors.ErrUnsupported)
	}
	var out []CGroup
	err = v.settle(func() error {
		m, err := r.lookAgain(task.Addr)
		if err != nil || !m.of(&task) {
			return fmt.Errorf("process %d: %w", task.PID, gone(err))
		}
		out, err = r.groups(m.at(markCGroup))
		return err
	})
	return out, err
}

// groups lists the control groups of a css_set.
func (r *reader) groups(set mem.VA) ([]CGroup, error) {
	cgrp, err := r.v.Mem.Pointer(r.c.Default.At(set))
	if err != nil {
		return nil, err
	}
	path, err := r.groupPath(cgrp, true)
	if err != nil {
		return nil, err
	}
	out := []CGroup{{Path: path}}
	err = r.v.List(r.c.Links.At(set), func(node mem.VA) error {
		to, err := r.v.Mem.Pointer(r.c.LinkTo.At(node - mem.VA(r.c.LinkNode.Offset)))
		if err != nil || to == cgrp {
			return err
		}
		if len(out) == maxHierarchies {
			return errBroken("css_set", set, fmt.Sprintf("in more than %d hierarchies", maxHierarchies))
		}
		g, err := r.group(to)
		out = append(out, g)
		return err
	})
	return out, err
}

// group describes a cgroup of a v1 hierarchy.
func (r *reader) group(cgrp mem.VA) (g CGroup, err error) {
	l := loadsOf(r.v.Mem)
	root := l.ptr(r.c.Root.At(cgrp))
	g.Hierarchy = int(int32(l.u32(r.c.ID.At(root))))
	mask := l.u32(r.c.Mask.At(root))
	if l.err != nil {
		return g, l.err
	}
	g.Controllers = r.controllers(mask)
	name, err := r.v.Mem.CString(r.c.Name.At(root), 64)
	if err != nil {
		return g, err
	}
	g.Name = kernel.Text(name)
	g.Path, err = r.groupPath(cgrp, false)
	return g, err
}

// controllers names the bits of a cgroup_root.subsys_mask as /proc/PID/cgroup
// does: by legacy_name, which differs from the name for io only
// (block/blk-cgroup.c).
func (r *reader) controllers(mask uint32) (names []string) {
	for name, id := range r.c.Controllers.Enumerators() {
		name, ok := strings.CutSuffix(name, "_cgrp_id")
		if ok && id >= 0 && id < 32 && mask>>id&1 != 0 {
			if name == "io" {
				name = "blkio"
			}
			names = append(names, name)
		}
	}
	return names
}

// groupPath is the path of a cgroup in its hierarchy.
func (r *reader) groupPath(cgrp mem.VA, unified bool) (kernel.Text, error) {
	l := loadsOf(r.v.Mem)
	kn := l.ptr(r.c.KN.At(cgrp))
	flags := l.u32(r.c.Flags.At(cgrp))
	if l.err != nil {
		return "", l.err
	}
	path, err := r.kernfsPath(kn)
	if err == nil && unified && flags&cssOnline == 0 {
		path += " (deleted)"
	}
	return kernel.Text(path), err
}

// kernfsPath is the path of a kernfs node below the root of its file system.
func (r *reader) kernfsPath(kn mem.VA) (string, error) {
	if kn == 0 {
		return "", errBroken("cgroup", kn, "it has no kernfs node")
	}
	// Written from its end, as the way leads up.
	var buf [maxGroupPath]byte
	at := len(buf)
	start := kn
	for depth := 0; ; depth++ {
		l := loadsOf(r.v.Mem)
		parent, name := l.ptr(r.c.Parent.At(kn)), l.ptr(r.c.KName.At(kn))
		if l.err != nil {
			return "", l.err
		}
		if parent == 0 {
			break
		}
		s, err := r.v.Mem.CString(name, maxGroupName+1)
		if err != nil {
			return "", err
		}
		if depth == maxGroupDepth || len(s) > maxGroupName || len(s)+1 > at {
			return "", errBroken("kernfs_node", start, "its path does not end")
		}
		at -= copy(buf[at-len(s):], s)
		at--
		buf[at] = '/'
		kn = parent
	}
	if at == len(buf) {
		return "/", nil
	}
	return string(buf[at:]), nil
}

// member is what a Process tells of control groups.
type member struct {
	path, container kernel.Text

	// What the answer hangs on, to notice that the addresses mean something
	// else by now: the ids of kernfs nodes are not given twice.
	cgrp, kn mem.VA
	id       uint64
}

// stamp reads what identifies the default cgroup of a css_set.
func (r *reader) stamp(set mem.VA) (m member, err error) {
	l := loadsOf(r.v.Mem)
	m.cgrp = l.ptr(r.c.Default.At(set))
	m.kn = l.ptr(r.c.KN.At(m.cgrp))
	m.id = l.u64(r.c.KID.At(m.kn))
	return m, l.err
}

// member tells the cgroup and container of the tasks in a css_set. Most tasks
// share a few sets, so answers are kept while one list is read.
func (r *reader) member(set mem.VA) (member, error) {
	now, err := r.stamp(set)
	if err != nil {
		return now, err
	}
	if m, ok := r.members[set]; ok && m.cgrp == now.cgrp && m.kn == now.kn && m.id == now.id {
		return m, nil
	}
	groups, err := r.groups(set)
	if len(groups) == 0 {
		return now, err
	}
	now.path = mainGroup(groups).Path
	now.container = containerOf(groups)
	if err == nil {
		r.members[set] = now
	}
	return now, err
}

// mainGroup picks the cgroup that says most of a process: the one of the
// unified hierarchy, but if that one is not used, then systemd's, else the first
// that is not the root.
func mainGroup(all []CGroup) CGroup {
	best, rank := all[0], 0
	for _, g := range all {
		n := 0
		switch {
		case g.Path == "/":
		case g.Hierarchy == 0:
			n = 3
		case g.Name == "systemd":
			n = 2
		default:
			n = 1
		}
		if n > rank {
			best, rank = g, n
		}
	}
	return best
}
