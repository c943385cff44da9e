package linux

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// mountLayout is what is read of mounts: struct mount and mnt_namespace
// (fs/mount.h), super_block (include/linux/fs.h).
type mountLayout struct {
	NSProxy ctype.Field `c:"task_struct.nsproxy"`
	FS      ctype.Field `c:"task_struct.fs"`
	RootMnt ctype.Field `c:"fs_struct.root.mnt"`
	RootDir ctype.Field `c:"fs_struct.root.dentry"`
	MntNS   ctype.Field `c:"nsproxy.mnt_ns"`

	// A list until v6.8, then a tree by id: 2eea9ce4310d ("mounts: keep list of
	// mounts in an rbtree").
	List  ctype.Field `c:"mnt_namespace.list,optional"`
	Tree  ctype.Field `c:"mnt_namespace.mounts.rb_node,optional"`
	Event ctype.Field `c:"mnt_namespace.event"`
	Link  ctype.Field `c:"mount.mnt_list,optional"`
	Node  ctype.Field `c:"mount.mnt_node,optional"`

	VFS    ctype.Field `c:"mount.mnt"`
	Root   ctype.Field `c:"mount.mnt.mnt_root"`
	SB     ctype.Field `c:"mount.mnt.mnt_sb"`
	Flags  ctype.Field `c:"mount.mnt.mnt_flags"`
	Map    ctype.Field `c:"mount.mnt.mnt_idmap|mount.mnt.mnt_userns,optional"` // idmapped mounts: v5.12; renamed in v6.2
	Parent ctype.Field `c:"mount.mnt_parent"`
	Dev    ctype.Field `c:"mount.mnt_devname"`
	ID     ctype.Field `c:"mount.mnt_id"`
	Group  ctype.Field `c:"mount.mnt_group_id"`
	Master ctype.Field `c:"mount.mnt_master"`
	// The flags of propagation moved out of mnt_flags in v6.17.
	TFlags ctype.Field `c:"mount.mnt_t_flags,optional"`

	SDev     ctype.Field `c:"super_block.s_dev"`
	SFlags   ctype.Field `c:"super_block.s_flags"`
	SUUID    ctype.Field `c:"super_block.s_uuid"`
	SType    ctype.Field `c:"super_block.s_type"`
	SubType  ctype.Field `c:"super_block.s_subtype"`
	SOp      ctype.Field `c:"super_block.s_op"`
	TypeName ctype.Field `c:"file_system_type.name"`
	ShowPath ctype.Field `c:"super_operations.show_path"`
	DInode   ctype.Field `c:"dentry.d_inode"`
}

// maxMounts bounds the mounts of one namespace; sysctl fs.mount-max allows
// 100,000 unless it was raised.
const maxMounts = 1 << 20

// Bits of vfsmount.mnt_flags (include/linux/mount.h), mount.mnt_t_flags
// (fs/mount.h) and super_block.s_flags (include/linux/fs.h).
const (
	mntReadOnly   = 0x40
	mntShared     = 0x1000
	mntUnbindable = 0x2000
	mntCursor     = 0x10000000 // no mount: the place of somebody who reads mountinfo (v5.8 to v6.7)

	tShared     = 1
	tUnbindable = 2

	sbReadOnly = 1
	sbMandLock = 1 << 6
)

type flagName struct {
	bit  uint64
	name string
}

// mountOptions are in the order in which mountinfo has them (show_mnt_opts in
// fs/proc_namespace.c).
var mountOptions = []flagName{
	{0x01, "nosuid"}, {0x02, "nodev"}, {0x04, "noexec"}, {0x08, "noatime"},
	{0x10, "nodiratime"}, {0x20, "relatime"}, {0x80, "nosymfollow"},
}

// superOptions are those of show_sb_opts, in its order.
var superOptions = []flagName{
	{1 << 4, "sync"}, {1 << 7, "dirsync"}, {sbMandLock, "mand"}, {1 << 25, "lazytime"},
}

func options(flags, readOnly uint64, names []flagName) string {
	out := []string{"rw"}
	if flags&readOnly != 0 {
		out[0] = "ro"
	}
	for _, n := range names {
		if flags&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return strings.Join(out, ",")
}

// mountPlan is what reading mounts takes in one kernel.
type mountPlan struct {
	mountLayout
	mount, super int // bytes to read of each
	noMap        []mem.VA
	superNames   []flagName
	nsShow       mem.VA // show_path of namespace files
	nfsShow      mem.VA
}

func newMountPlan(k *Kernel) (*mountPlan, error) {
	l, err := layout[mountLayout](k)
	if err != nil {
		return nil, err
	}
	if err := k.NeedData(); err != nil {
		return nil, err
	}
	p := &mountPlan{mountLayout: *l, superNames: superOptions}
	if !(l.List.Valid() && l.Link.Valid()) && !(l.Tree.Valid() && l.Node.Valid()) {
		return nil, fmt.Errorf("this kernel keeps the mounts of a namespace neither in a list nor in a tree that is known: %w", errors.ErrUnsupported)
	}
	if err := p.measure(); err != nil {
		return nil, err
	}
	for _, name := range []string{"nop_mnt_idmap", "init_user_ns"} {
		if a, err := k.Symbol(name); err == nil {
			p.noMap = append(p.noMap, a)
		}
	}
	// Mandatory locks went with f7e33bdbd6d1 ("fs: remove mandatory file locking
	// support") in v5.15; the flag may still be set, but is not shown.
	if _, err := k.Symbol("locks_mandatory_locked"); err != nil {
		p.superNames = slices.DeleteFunc(slices.Clone(superOptions), func(f flagName) bool { return f.bit == sbMandLock })
	}
	p.nsShow, _ = k.Symbol("nsfs_show_path")
	p.nfsShow, _ = k.Symbol("nfs_show_path")
	return p, nil
}

// measure works out how much of each struct is read.
func (p *mountPlan) measure() (err error) {
	if p.mount, err = span(p.Root, p.SB, p.Flags, p.Map, p.Parent, p.Dev, p.ID, p.Group, p.Master, p.TFlags); err != nil {
		return err
	}
	p.super, err = span(p.SDev, p.SFlags, p.SType, p.SubType, p.SOp)
	return err
}

// mounts reads mounts. It keeps buffers and is not safe for concurrent use.
type mounts struct {
	*mountPlan
	v            *View
	paths        *paths
	mount, super object
}

// Mounts lists the mounts that a process sees, as its /proc/PID/mountinfo does,
// in the same order: those of its mount namespace that lie below its root, with
// targets from that root. A process that has ended has none.
//
// Options are the mount's own; SuperOptions those that all file systems share
// (a file system's own are not read). Mounts that could not be read are told in
// the error beside the others.
func (v *View) Mounts(t Task) ([]kernel.Mount, error) {
	plan, err := derived(v.Kernel, newMountPlan)
	if err != nil {
		return nil, err
	}
	p, err := v.paths()
	if err != nil {
		return nil, err
	}
	m := &mounts{mountPlan: plan, v: v, paths: p}
	m.mount.b, m.super.b = make([]byte, plan.mount), make([]byte, plan.super)
	var out []kernel.Mount
	err = v.settle(func() (err error) {
		out, err = m.read(&t, out[:0])
		return err
	})
	if v.gone(&t) {
		return nil, nil
	}
	return out, err
}

// read lists the mounts of t's namespace. The namespace counts its changes: if
// the count is the same after as before, the list is of one moment.
func (m *mounts) read(t *Task, to []kernel.Mount) ([]kernel.Mount, error) {
	ns, root, err := m.where(t)
	if err != nil || ns == 0 || root.dentry == 0 {
		return to, err
	}
	before, err := m.v.Mem.Uint64(m.Event.At(ns))
	if err != nil {
		return to, err
	}
	var nodes []mem.VA
	if err := m.paths.steady(func() (err error) {
		nodes, err = m.list(ns, nodes[:0])
		return err
	}); err != nil {
		return to, err
	}
	var bad mishaps
	for _, at := range nodes {
		e, seen, err := m.describe(at, root)
		if err != nil {
			bad.add(fmt.Errorf("mount at %#x: %w", uint64(at), err))
		}
		if bad.full() {
			return to, bad.err()
		}
		if seen {
			to = append(to, e)
		}
	}
	after, err := m.v.now().Uint64(m.Event.At(ns))
	if err == nil && after != before {
		err = errBroken("mount namespace", ns, "it changed while it was read")
	}
	bad.add(err)
	return to, bad.err()
}

// where is the mount namespace of a process, and its root directory.
func (m *mounts) where(t *Task) (ns mem.VA, root spot, err error) {
	proxy, err := m.v.Mem.Pointer(m.NSProxy.At(t.Addr))
	if err != nil || proxy == 0 {
		return 0, root, err
	}
	if ns, err = m.v.Mem.Pointer(m.MntNS.At(proxy)); err != nil {
		return 0, root, err
	}
	fs, err := m.v.Mem.Pointer(m.FS.At(t.Addr))
	if err != nil || fs == 0 {
		return 0, root, err
	}
	if root.vfsmount, err = m.v.Mem.Pointer(m.RootMnt.At(fs)); err != nil {
		return 0, root, err
	}
	root.dentry, err = m.v.Mem.Pointer(m.RootDir.At(fs))
	return ns, root, err
}

// list gives the addresses of the mounts of a namespace.
func (m *mounts) list(ns mem.VA, to []mem.VA) ([]mem.VA, error) {
	add := func(off uint64) func(mem.VA) error {
		return func(node mem.VA) error {
			if len(to) >= maxMounts {
				return errBroken("mount namespace", ns, fmt.Sprintf("more than %d mounts", maxMounts))
			}
			to = append(to, node-mem.VA(off))
			return nil
		}
	}
	if m.List.Valid() && m.Link.Valid() {
		err := m.v.List(m.List.At(ns), add(m.Link.Offset))
		return to, err
	}
	err := m.v.RBTree(m.Tree.At(ns), add(m.Node.Offset))
	return to, err
}

// describe reads a mount. seen is false for one that lies outside the root.
func (m *mounts) describe(at mem.VA, root spot) (e kernel.Mount, seen bool, err error) {
	if err := m.mount.read(m.v, at); err != nil {
		return e, false, err
	}
	flags := m.mount.uint(m.Flags)
	if flags&mntCursor != 0 {
		return e, false, nil
	}
	dentry := m.mount.ptr(m.Root)
	if e.Target, seen, err = m.paths.below(root, m.VFS.At(at), dentry); err != nil || !seen {
		return e, false, err
	}
	if err := m.super.read(m.v, m.mount.ptr(m.SB)); err != nil {
		return e, false, err
	}
	parent, err := m.v.Mem.Uint32(m.ID.At(m.mount.ptr(m.Parent)))
	if err != nil {
		return e, false, err
	}
	dev := uint32(m.super.uint(m.SDev))
	e.Addr = at
	e.ID, e.Parent = int(int32(m.mount.uint(m.ID))), int(int32(parent))
	e.Dev = fmt.Sprintf("%d:%d", major(dev), minor(dev))
	e.Options = options(flags, mntReadOnly, mountOptions)
	if p := m.mount.ptr(m.Map); m.Map.Valid() && p != 0 && !slices.Contains(m.noMap, p) {
		e.Options += ",idmapped"
	}
	if major(dev) != 0 && m.SUUID.Size() == 16 { // those without a disk have one that nobody knows
		var id [16]byte
		if _, err := m.v.Mem.Read(id[:], m.SUUID.At(m.super.at)); err == nil && id != [16]byte{} {
			e.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
		}
	}
	e.SuperOptions = options(m.super.uint(m.SFlags), sbReadOnly, m.superNames)
	if e.Propagation, err = m.propagation(flags); err != nil {
		return e, true, err
	}
	if e.Root, err = m.rootOf(dentry); err != nil {
		return e, true, err
	}
	if e.Type, err = m.typeOf(); err != nil {
		return e, true, err
	}
	e.Source = "none"
	if name := m.mount.ptr(m.Dev); name != 0 {
		b, err := m.v.Mem.CString(name, maxName)
		if err != nil {
			return e, true, err
		}
		e.Source = kernel.Text(b)
	}
	return e, true, nil
}

// propagation says with whom the mount shares what is mounted below it.
func (m *mounts) propagation(flags uint64) (string, error) {
	shared, unbindable := flags&mntShared != 0, flags&mntUnbindable != 0
	if m.TFlags.Valid() {
		t := m.mount.uint(m.TFlags)
		shared, unbindable = t&tShared != 0, t&tUnbindable != 0
	}
	var out []string
	if shared {
		out = append(out, fmt.Sprintf("shared:%d", int32(m.mount.uint(m.Group))))
	}
	if master := m.mount.ptr(m.Master); master != 0 {
		id, err := m.v.Mem.Uint32(m.Group.At(master))
		if err != nil {
			return "", err
		}
		out = append(out, fmt.Sprintf("master:%d", int32(id)))
	}
	if unbindable {
		out = append(out, "unbindable")
	}
	return strings.Join(out, " "), nil
}

// rootOf names what of its file system a mount shows.
func (m *mounts) rootOf(dentry mem.VA) (kernel.Text, error) {
	var show mem.VA
	if op := m.super.ptr(m.SOp); op != 0 {
		var err error
		if show, err = m.v.Mem.Pointer(m.ShowPath.At(op)); err != nil {
			return "", err
		}
	}
	switch {
	case show == 0:
	case show == m.nsShow:
		inode, err := m.v.Mem.Pointer(m.DInode.At(dentry))
		if err != nil {
			return "", err
		}
		return m.paths.namespace(inode)
	case show == m.nfsShow:
		return "/", nil
	}
	// kernfs (cgroup) shows the path from the reader's cgroup namespace, which
	// for the initial one is that of the dentry.
	return m.paths.inFS(dentry)
}

// typeOf names the file system's type, with the subtype of FUSE.
func (m *mounts) typeOf() (kernel.Text, error) {
	at, err := m.v.Mem.Pointer(m.TypeName.At(m.super.ptr(m.SType)))
	if err != nil {
		return "", err
	}
	name, err := m.v.Mem.CString(at, maxName)
	if err != nil {
		return "", err
	}
	if sub := m.super.ptr(m.SubType); sub != 0 {
		b, err := m.v.Mem.CString(sub, maxName)
		if err != nil {
			return "", err
		}
		if len(b) > 0 {
			name = append(append(name, '.'), b...)
		}
	}
	return kernel.Text(name), nil
}
