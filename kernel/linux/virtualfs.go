package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// procLayout is what is read of an entry of /proc (fs/proc/internal.h).
type procLayout struct {
	Children ctype.Field `c:"proc_dir_entry.subdir"`
	Node     ctype.Field `c:"proc_dir_entry.subdir_node"`
	Parent   ctype.Field `c:"proc_dir_entry.parent"`
	Mode     ctype.Field `c:"proc_dir_entry.mode"`
	Name     ctype.Field `c:"proc_dir_entry.name"`
}

// kernfsLayout is what is read of a node of sysfs or cgroupfs
// (include/linux/kernfs.h).
type kernfsLayout struct {
	Children ctype.Field `c:"kernfs_node.dir.children"`
	Node     ctype.Field `c:"kernfs_node.rb"`
	Parent   ctype.Field `c:"kernfs_node.__parent|kernfs_node.parent"` // renamed in v6.15
	Flags    ctype.Field `c:"kernfs_node.flags"`
	Ops      ctype.Field `c:"kernfs_node.attr.ops"`
	Priv     ctype.Field `c:"kernfs_node.priv"`
	Name     ctype.Field `c:"kernfs_node.name"`
}

// hierarchy is how objects of one type form a tree of directories: each
// directory is the root of a red-black tree of what is in it, and each of these
// names the directory as its parent. The topmost is its own parent, or has none.
type hierarchy struct{ children, node, parent ctype.Field }

// maxDepth bounds how deep directories lie.
const maxDepth = 128

// descend calls visit with all that is below root. Visit says whether that is a
// directory. Since an object names one parent, none is met twice.
func (v *View) descend(h hierarchy, root mem.VA, visit func(at mem.VA) (dir bool, err error)) error {
	dirs := []mem.VA{root}
	for n := 0; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		err := v.RBTree(h.children.At(dir), func(node mem.VA) error {
			at := node - mem.VA(h.node.Offset)
			parent, err := v.Mem.Pointer(h.parent.At(at))
			if err != nil {
				return err
			}
			if parent != dir || at == root {
				return errBroken("directory entry", at, fmt.Sprintf("its parent is %#x, came from %#x", uint64(parent), uint64(dir)))
			}
			if n++; n > maxList {
				return errBroken("directory tree", root, fmt.Sprintf("more than %d entries", maxList))
			}
			sub, err := visit(at)
			if sub {
				dirs = append(dirs, at)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// modeMask and modeDir tell a directory (S_IFMT, S_IFDIR).
const (
	modeMask = 0170000
	modeDir  = 0040000
)

// ProcEntries calls each with the address of every struct proc_dir_entry below
// one: below the symbol proc_root for /proc itself, below a network namespace's
// proc_net for /proc/net. What /proc shows of processes is not among them. A
// tree that changes is an ErrInconsistent at times: begin again then.
func (v *View) ProcEntries(root mem.VA, each func(entry mem.VA, dir bool) error) error {
	l, err := layout[procLayout](v.Kernel)
	if err != nil {
		return err
	}
	return v.descend(hierarchy{l.Children, l.Node, l.Parent}, root, func(at mem.VA) (bool, error) {
		mode, err := v.Mem.Uint(l.Mode.At(at), int(l.Mode.Size()))
		if err != nil {
			return false, err
		}
		dir := mode&modeMask == modeDir
		return dir, each(at, dir)
	})
}

// ProcPath is the path of an entry below /proc: "/net/tcp". What lies below
// proc_net of a network namespace begins with "/net".
func (v *View) ProcPath(entry mem.VA) (string, error) {
	l, err := layout[procLayout](v.Kernel)
	if err != nil {
		return "", err
	}
	return v.treePath(l.Parent, l.Name, entry)
}

// treePath joins the names of an object and its parents, of which the root is
// its own parent or has none.
func (v *View) treePath(parent, name ctype.Field, at mem.VA) (string, error) {
	path := ""
	for range maxDepth {
		up, err := v.Mem.Pointer(parent.At(at))
		if err != nil || up == 0 || up == at {
			return path, err
		}
		text, err := v.Mem.Pointer(name.At(at))
		if err != nil {
			return path, err
		}
		b, err := v.Mem.CString(text, 256)
		if err != nil {
			return path, err
		}
		path = "/" + string(b) + path
		at = up
	}
	return path, errBroken("directory entry", at, fmt.Sprintf("deeper than %d", maxDepth))
}

// KernfsNode is a file or directory of sysfs or of cgroupfs.
type KernfsNode struct {
	Addr mem.VA
	Dir  bool   // else a file
	Ops  mem.VA // of a file: its struct kernfs_ops
	Priv mem.VA // of a directory of sysfs: its kobject
}

// The kinds of nodes: enum kernfs_node_type.
const (
	kernfsDir  = 1
	kernfsFile = 2
	kernfsKind = 0xf
)

// KernfsNodes calls each with every file and directory below a kernfs_node:
// below what sysfs_root_kn points to for /sys. A tree that changes is an
// ErrInconsistent at times: begin again then.
func (v *View) KernfsNodes(root mem.VA, each func(KernfsNode) error) error {
	l, err := layout[kernfsLayout](v.Kernel)
	if err != nil {
		return err
	}
	n, err := span(l.Flags, l.Ops, l.Priv)
	if err != nil {
		return err
	}
	o := object{b: make([]byte, n)}
	return v.descend(hierarchy{l.Children, l.Node, l.Parent}, root, func(at mem.VA) (bool, error) {
		if err := o.read(v, at); err != nil {
			return false, err
		}
		switch o.uint(l.Flags) & kernfsKind {
		case kernfsDir:
			return true, each(KernfsNode{Addr: at, Dir: true, Priv: o.ptr(l.Priv)})
		case kernfsFile:
			return false, each(KernfsNode{Addr: at, Ops: o.ptr(l.Ops), Priv: o.ptr(l.Priv)})
		}
		return false, nil // a symbolic link
	})
}

// KernfsPath is the path of a node below its root.
func (v *View) KernfsPath(node mem.VA) (string, error) {
	l, err := layout[kernfsLayout](v.Kernel)
	if err != nil {
		return "", err
	}
	return v.treePath(l.Parent, l.Name, node)
}

// NetNamespace is a network namespace.
type NetNamespace struct {
	Addr  mem.VA // of its struct net
	Inode uint64 // as /proc/PID/ns/net shows it
}

// NetNamespaces lists the network namespaces, the first one first.
func (v *View) NetNamespaces() ([]NetNamespace, error) {
	all, err := v.netNamespaces()
	out := make([]NetNamespace, len(all))
	for i, n := range all {
		out[i] = NetNamespace{n.addr, n.inum}
	}
	return out, err
}
