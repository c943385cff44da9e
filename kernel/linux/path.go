package linux

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// pathLayout is what is read to name a file: struct dentry
// (include/linux/dcache.h), struct mount (fs/mount.h), and what the file systems
// without names need (fs/d_path.c and the d_dname methods it calls).
type pathLayout struct {
	Parent ctype.Field `c:"dentry.d_parent"`
	Hash   ctype.Field `c:"dentry.d_hash.pprev"`
	Name   ctype.Field `c:"dentry.__d_name.name|dentry.d_name.name"` // renamed in v6.17
	Len    ctype.Field `c:"dentry.__d_name.len|dentry.d_name.len"`
	Inode  ctype.Field `c:"dentry.d_inode"`
	Op     ctype.Field `c:"dentry.d_op"`
	Data   ctype.Field `c:"dentry.d_fsdata"`

	MountParent ctype.Field `c:"mount.mnt_parent"`
	MountPoint  ctype.Field `c:"mount.mnt_mountpoint"`
	VFSMount    ctype.Field `c:"mount.mnt"`
	MountRoot   ctype.Field `c:"mount.mnt.mnt_root"`

	Dname  ctype.Field `c:"dentry_operations.d_dname"`
	Ino    ctype.Field `c:"inode.i_ino"`
	INode  ctype.Field `c:"inode.i_private"` // of a namespace: its ns_common
	NSOps  ctype.Field `c:"ns_common.ops"`
	NSName ctype.Field `c:"proc_ns_operations.name"`
	DMABuf ctype.Field `c:"dma_buf.name,optional"`

	FileMnt    ctype.Field `c:"file.f_path.mnt"`
	FileDentry ctype.Field `c:"file.f_path.dentry"`
}

const (
	// maxName bounds one component of a path. NAME_MAX is 255; FUSE allows more,
	// up to PATH_MAX.
	maxName = 4096
	// maxPath bounds a whole path. The kernel itself prints at most PATH_MAX
	// (4096 bytes); deeper directories exist and are named here too.
	maxPath = 64 << 10
)

// dnamer tells how a file system names files that are in no directory: the
// d_dname method of their dentries.
type dnamer int

const (
	noDname     dnamer = iota
	simpleDname        // "/memfd:x (deleted)": memfd, SysV shared memory, /dev/zero, aio
	pipeDname          // "pipe:[ino]"
	sockDname          // "socket:[ino]"
	anonDname          // "anon_inode:[eventfd]"
	nsDname            // "net:[ino]"
	pidDname           // "anon_inode:[pidfd]"
	dmaDname           // "/dmabuf:name"
)

var dnameSymbols = map[string]dnamer{
	"simple_dname": simpleDname, "pipefs_dname": pipeDname, "sockfs_dname": sockDname,
	"anon_inodefs_dname": anonDname, "ns_dname": nsDname, "pidfs_dname": pidDname, "dmabuffs_dname": dmaDname,
}

// pathPlan is what naming files takes in one kernel.
type pathPlan struct {
	pathLayout
	dentry, mount int // bytes to read of each
	dnames        map[mem.VA]dnamer
	locks         []mem.VA // sequence counters of rename_lock and mount_lock
}

func newPathPlan(k *Kernel) (*pathPlan, error) {
	l, err := layout[pathLayout](k)
	if err != nil {
		return nil, err
	}
	if err := k.NeedData(); err != nil {
		return nil, err
	}
	p := &pathPlan{pathLayout: *l, dnames: make(map[mem.VA]dnamer)}
	if err := p.measure(); err != nil {
		return nil, err
	}
	for name, kind := range dnameSymbols {
		if a, err := k.Symbol(name); err == nil {
			p.dnames[a] = kind
		}
	}
	for _, name := range []string{"rename_lock", "mount_lock"} {
		if a, err := k.Symbol(name); err == nil {
			p.locks = append(p.locks, a) // a seqlock_t begins with its counter
		}
	}
	return p, nil
}

// measure works out how much of each struct is read.
func (p *pathPlan) measure() (err error) {
	if p.dentry, err = span(p.Parent, p.Hash, p.Name, p.Len, p.Inode, p.Op, p.Data); err != nil {
		return err
	}
	p.mount, err = span(p.MountParent, p.MountPoint, p.MountRoot)
	return err
}

// paths names files. It keeps buffers between calls and is not safe for
// concurrent use.
//
// Names are as the guest's own initial process sees them: from the real root of
// the mount tree that the file is in, also where the process that has it open
// was chrooted. That is what readlink of /proc/PID/fd/N prints to a reader in
// the initial mount namespace. A file in a tree of another mount namespace (a
// container's) is named from that tree's own root, as /proc does.
type paths struct {
	*pathPlan
	v    *View
	d, m object
	long []byte // a name that stands outside its dentry
	buf  []byte // filled from its end
	pos  int
}

func (v *View) paths() (*paths, error) {
	plan, err := derived(v.Kernel, newPathPlan)
	if err != nil {
		return nil, err
	}
	p := &paths{pathPlan: plan, v: v, buf: make([]byte, 512)}
	p.d.b, p.m.b = make([]byte, plan.dentry), make([]byte, plan.mount)
	return p, nil
}

// file names the open file whose struct file is given: what readlink of
// /proc/PID/fd/N prints.
func (p *paths) file(file mem.VA) (kernel.Text, error) {
	mnt, err := p.v.Mem.Pointer(p.FileMnt.At(file))
	if err != nil {
		return "", err
	}
	dentry, err := p.v.Mem.Pointer(p.FileDentry.At(file))
	if err != nil {
		return "", err
	}
	if mnt == 0 || dentry == 0 {
		return "", errBroken("file", file, "it has no path")
	}
	return p.path(mnt, dentry)
}

// path names a struct path: a dentry in a mount (struct vfsmount), as d_path
// does.
func (p *paths) path(vfsmount, dentry mem.VA) (name kernel.Text, err error) {
	err = p.steady(func() error {
		if err := p.d.read(p.v, dentry); err != nil {
			return err
		}
		kind, err := p.dname(vfsmount, dentry)
		if err != nil {
			return err
		}
		if kind != noDname {
			name, err = p.pseudo(kind, dentry)
			return err
		}
		p.pos = len(p.buf)
		if p.d.uint(p.Hash) == 0 && p.d.ptr(p.Parent) != dentry {
			if err := p.prepend(" (deleted)"); err != nil {
				return err
			}
		}
		_, err = p.climb(vfsmount, dentry, spot{})
		name = p.text()
		return err
	})
	return name, err
}

// inFS names a dentry from the root of its file system, as dentry_path does:
// without mounts, and with "//deleted" behind what was unlinked.
func (p *paths) inFS(dentry mem.VA) (name kernel.Text, err error) {
	err = p.steady(func() error {
		dentry := dentry // each attempt climbs from the bottom
		p.pos = len(p.buf)
		if err := p.d.read(p.v, dentry); err != nil {
			return err
		}
		if p.d.uint(p.Hash) == 0 && p.d.ptr(p.Parent) != dentry {
			if err := p.prepend("//deleted"); err != nil {
				return err
			}
		}
		end := p.pos
		var loop brent
		for {
			parent := p.d.ptr(p.Parent)
			if parent == dentry {
				break
			}
			if loop.seen(dentry) {
				return errBroken("path", dentry, "d_parent loops")
			}
			if err := p.component(); err != nil {
				return err
			}
			dentry = parent
			if err := p.d.read(p.v, dentry); err != nil {
				return err
			}
		}
		if p.pos == end {
			err = p.prepend("/")
		}
		name = p.text()
		return err
	})
	return name, err
}

// below names a dentry in a mount from a root, as __d_path does. ok is false if
// the way up does not pass the root.
func (p *paths) below(root spot, vfsmount, dentry mem.VA) (name kernel.Text, ok bool, err error) {
	err = p.steady(func() error {
		p.pos = len(p.buf)
		if err := p.d.read(p.v, dentry); err != nil {
			return err
		}
		met, err := p.climb(vfsmount, dentry, root)
		ok, name = met, p.text()
		return err
	})
	return name, ok, err
}

// spot is a struct path: where a process has its root.
type spot struct{ vfsmount, dentry mem.VA }

// climb puts the components from a dentry, which has been read into p.d, up to
// the root of the mount tree before what is in the buffer, as prepend_path does
// (fs/d_path.c). It ends early at the spot root and reports whether it met it.
func (p *paths) climb(vfsmount, dentry mem.VA, root spot) (met bool, err error) {
	end := p.pos
	mount := vfsmount - mem.VA(p.VFSMount.Offset)
	if err := p.m.read(p.v, mount); err != nil {
		return false, err
	}
	// The same dentry may be passed twice on the way, in two mounts (mount
	// --bind /a /a/b), but never in one, and no mount twice.
	var names, mounts brent
	crossed := 0
	for !met {
		if met = (spot{mount + mem.VA(p.VFSMount.Offset), dentry}) == root; met {
			break
		}
		if dentry == p.m.ptr(p.MountRoot) {
			up := p.m.ptr(p.MountParent)
			if up == mount {
				break // the root of all, or of a mount that is attached nowhere
			}
			if crossed++; crossed > maxMounts || mounts.seen(mount) {
				return false, errBroken("path", mount, "mnt_parent loops or does not end")
			}
			mount, dentry, names = up, p.m.ptr(p.MountPoint), brent{}
			if err := p.m.read(p.v, mount); err != nil {
				return false, err
			}
		} else {
			parent := p.d.ptr(p.Parent)
			if parent == dentry {
				break // moved out of its mount's tree
			}
			if names.seen(dentry) {
				return false, errBroken("path", dentry, "d_parent loops")
			}
			if err := p.component(); err != nil {
				return false, err
			}
			dentry = parent
		}
		if err := p.d.read(p.v, dentry); err != nil {
			return false, err
		}
	}
	if p.pos == end {
		err = p.prepend("/")
	}
	return met, err
}

// component puts "/" and the name of the dentry in p.d before the buffer.
func (p *paths) component() error {
	name, err := p.name()
	if err != nil {
		return err
	}
	if err := p.prependBytes(name); err != nil {
		return err
	}
	return p.prepend("/")
}

// name is the name of the dentry in p.d. It is valid until the next read.
func (p *paths) name() ([]byte, error) {
	at, n := p.d.ptr(p.Name), p.d.uint(p.Len)
	if n > maxName {
		return nil, errBroken("dentry", p.d.at, fmt.Sprintf("its name has %d bytes", n))
	}
	var name []byte
	if off := uint64(at - p.d.at); off < uint64(len(p.d.b)) && n <= uint64(len(p.d.b))-off {
		name = p.d.b[off : off+n] // a short name stands in the dentry itself: one read
	} else {
		if p.long == nil {
			p.long = make([]byte, maxName)
		}
		name = p.long[:n]
		if _, err := p.v.Mem.Read(name, at); err != nil {
			return nil, err
		}
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return nil, errBroken("dentry", p.d.at, "its name holds a NUL")
	}
	return name, nil
}

// dname tells whether, and how, the dentry in p.d is named by its file system.
func (p *paths) dname(vfsmount, dentry mem.VA) (dnamer, error) {
	op := p.d.ptr(p.Op)
	if op == 0 {
		return noDname, nil
	}
	f, err := p.v.Mem.Pointer(p.Dname.At(op))
	if err != nil || f == 0 {
		return noDname, err
	}
	if p.d.ptr(p.Parent) == dentry {
		// A namespace file that something was bound to has a place in the tree.
		root, err := p.v.Mem.Pointer(vfsmount + mem.VA(p.MountRoot.Offset-p.VFSMount.Offset))
		if err != nil || root == dentry {
			return noDname, err
		}
	}
	kind, ok := p.dnames[f]
	if !ok {
		return noDname, fmt.Errorf("dentry %#x is named by a function at %#x that is not known: %w", uint64(dentry), uint64(f), errors.ErrUnsupported)
	}
	return kind, nil
}

// pseudo names the dentry in p.d, which is in no directory.
func (p *paths) pseudo(kind dnamer, dentry mem.VA) (kernel.Text, error) {
	switch kind {
	case pipeDname:
		return p.numbered("pipe")
	case sockDname:
		return p.numbered("socket")
	case pidDname:
		return "anon_inode:[pidfd]", nil
	case nsDname:
		return p.namespace(p.d.ptr(p.Inode))
	}
	b, err := p.name()
	if err != nil {
		return "", err
	}
	name := kernel.Text(b)
	switch kind {
	case anonDname:
		return "anon_inode:" + name, nil
	case dmaDname:
		buf := p.d.ptr(p.Data)
		var label []byte
		if p.DMABuf.Valid() && buf != 0 {
			at, err := p.v.Mem.Pointer(p.DMABuf.At(buf))
			if err != nil {
				return "", err
			}
			if at != 0 {
				if label, err = p.v.Mem.CString(at, 32); err != nil { // DMA_BUF_NAME_LEN
					return "", err
				}
			}
		}
		return "/" + name + ":" + kernel.Text(label), nil
	}
	return "/" + name + " (deleted)", nil
}

func (p *paths) numbered(what string) (kernel.Text, error) {
	return p.ino(what, p.d.ptr(p.Inode))
}

func (p *paths) ino(what string, inode mem.VA) (kernel.Text, error) {
	n, err := p.v.Mem.Uint(p.Ino.At(inode), int(p.Ino.Size()))
	if err != nil {
		return "", err
	}
	return kernel.Text(what + ":[" + strconv.FormatUint(n, 10) + "]"), nil
}

// namespace names the inode of a namespace, as ns_dname does (fs/nsfs.c).
func (p *paths) namespace(inode mem.VA) (kernel.Text, error) {
	ns, err := p.v.Mem.Pointer(p.INode.At(inode))
	if err != nil {
		return "", err
	}
	ops, err := p.v.Mem.Pointer(p.NSOps.At(ns))
	if err != nil {
		return "", err
	}
	at, err := p.v.Mem.Pointer(p.NSName.At(ops))
	if err != nil {
		return "", err
	}
	name, err := p.v.Mem.CString(at, 32)
	if err != nil {
		return "", err
	}
	return p.ino(string(name), inode)
}

// text is what the buffer holds.
func (p *paths) text() kernel.Text { return kernel.Text(p.buf[p.pos:]) }

func (p *paths) prepend(s string) error {
	if err := p.room(len(s)); err != nil {
		return err
	}
	p.pos -= len(s)
	copy(p.buf[p.pos:], s)
	return nil
}

func (p *paths) prependBytes(b []byte) error {
	if err := p.room(len(b)); err != nil {
		return err
	}
	p.pos -= len(b)
	copy(p.buf[p.pos:], b)
	return nil
}

// room makes room for n more bytes before those in the buffer.
func (p *paths) room(n int) error {
	used := len(p.buf) - p.pos
	if n <= p.pos {
		return nil
	}
	if used+n > maxPath {
		return fmt.Errorf("a path of more than %d bytes: %w", maxPath, errors.ErrUnsupported)
	}
	b := make([]byte, min(maxPath, max(2*len(p.buf), used+n)))
	copy(b[len(b)-used:], p.buf[p.pos:])
	p.buf, p.pos = b, len(b)-used
	return nil
}

// steady runs f until no rename and no mount took place meanwhile, as the
// kernel itself does when it names a file: both write-lock a sequence counter,
// which is odd while they work. On a dump taken amid a rename the counter stays
// odd; then what f found counts.
//
// On a source that is read through a mem.Cache the counters are cached like all
// else and prove less.
func (p *paths) steady(f func() error) (err error) {
	for range retries {
		before, odd := p.sequence()
		err = f()
		after, _ := p.sequence()
		if before == after && !odd {
			return err
		}
		p.v.forget()
		if before != after {
			err = errors.Join(errBroken("path", 0, "renames or mounts went on while it was read"), err)
		}
	}
	return err
}

// sequence reads the counters of the locks.
func (p *paths) sequence() (now [2]uint32, odd bool) {
	for i, a := range p.locks {
		now[i], _ = p.v.Mem.Uint32(a)
		odd = odd || now[i]&1 != 0
	}
	return now, odd
}
