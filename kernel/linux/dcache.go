package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// dcacheLayout is what is read of struct dentry to look a name up
// (include/linux/dcache.h). Children hang in a list until v6.7, then in a hash
// chain ("dentry: switch the lists of children to hlist").
type dcacheLayout struct {
	RootDir ctype.Field `c:"fs_struct.root.dentry"`
	FS      ctype.Field `c:"task_struct.fs"`

	List    ctype.Field `c:"dentry.d_subdirs,optional"`
	InList  ctype.Field `c:"dentry.d_child,optional"`
	Chain   ctype.Field `c:"dentry.d_children,optional"`
	InChain ctype.Field `c:"dentry.d_sib,optional"`
	Hash    ctype.Field `c:"dentry.d_hash.pprev"`
	Inode   ctype.Field `c:"dentry.d_inode"`
	Name    ctype.Field `c:"dentry.__d_name.name|dentry.d_name.name"`
	Len     ctype.Field `c:"dentry.__d_name.len|dentry.d_name.len"`
}

// RootDentry is the struct dentry of the directory that a process has as its
// root; 0 if it has ended.
func (v *View) RootDentry(t Task) (mem.VA, error) {
	l, err := layout[dcacheLayout](v.Kernel)
	if err != nil {
		return 0, err
	}
	fs, err := v.Mem.Pointer(l.FS.At(t.Addr))
	if err != nil || fs == 0 {
		return 0, err
	}
	return v.Mem.Pointer(l.RootDir.At(fs))
}

// CachedInode follows names down from a directory as far as the kernel has them
// in memory and gives the struct inode of the last; 0 if the kernel does not
// know the file, or knows that there is none. Mounts on the way are not crossed.
func (v *View) CachedInode(dir mem.VA, names ...string) (inode mem.VA, err error) {
	l, err := layout[dcacheLayout](v.Kernel)
	if err != nil {
		return 0, err
	}
	err = v.settle(func() error {
		at := dir
		for _, name := range names {
			if at, err = v.child(l, at, name); err != nil || at == 0 {
				inode = 0
				return err
			}
		}
		inode, err = v.Mem.Pointer(l.Inode.At(at))
		return err
	})
	return inode, err
}

// child finds the dentry of a name in a directory; 0: it is not in memory.
func (v *View) child(l *dcacheLayout, dir mem.VA, name string) (found mem.VA, err error) {
	buf := make([]byte, len(name))
	look := func(at mem.VA) error {
		w := loadsOf(v.Mem)
		if n := w.u32(l.Len.At(at)); w.err != nil || int(n) != len(name) || found != 0 {
			return w.err
		}
		if hashed := w.ptr(l.Hash.At(at)); w.err != nil || hashed == 0 {
			return w.err
		}
		if _, err := v.Mem.Read(buf, w.ptr(l.Name.At(at))); err != nil {
			return err
		}
		if string(buf) == name {
			found = at
		}
		return w.err
	}
	switch {
	case l.Chain.Valid() && l.InChain.Valid():
		err = v.HList(l.Chain.At(dir), func(node mem.VA) error { return look(node - mem.VA(l.InChain.Offset)) })
	case l.List.Valid() && l.InList.Valid():
		err = v.List(l.List.At(dir), func(node mem.VA) error { return look(node - mem.VA(l.InList.Offset)) })
	default:
		err = fmt.Errorf("directories in this kernel's cache of names: %w", errors.ErrUnsupported)
	}
	return found, err
}
