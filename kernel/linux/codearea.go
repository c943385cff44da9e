package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// CodeArea is an area of a process's memory that it may execute.
type CodeArea struct {
	kernel.Area
	// Special says that the kernel itself made it: [vdso], [uprobes].
	Special bool
	// Inode is the struct inode of the file whose pages are mapped, Cache its
	// struct address_space, Links how many names the file has; all are 0 for
	// memory without a file.
	Inode, Cache mem.VA
	Links        uint32
	// Paged says that the pages are those of the page cache, in units of 4 KiB:
	// not those of a device or of a file of huge pages.
	Paged bool
}

// codeAreaLayout is what is read for it besides areaLayout.
type codeAreaLayout struct {
	FInode ctype.Field `c:"file.f_inode"`
	Cache  ctype.Field `c:"file.f_mapping"`
	Links  ctype.Field `c:"inode.i_nlink"`
}

// Flags of vm_area_struct (include/linux/mm.h).
const (
	vmExec    = 0x4
	vmPFNMap  = 0x400
	vmIO      = 0x4000
	vmHugeTLB = 0x400000
)

// CodeAreas lists the areas of a process that it may execute, without the page
// that all processes share ([vsyscall]). A kernel thread and a process that has
// ended have none.
//
// Unlike that of Areas the list is not of one moment: a process that maps and
// unmaps all the time can be looked at, too. What could not be read, also after
// some attempts, is told in the error beside the others.
func (v *View) CodeAreas(t Task) ([]CodeArea, error) {
	a, err := v.areas()
	if err != nil {
		return nil, err
	}
	l, err := layout64[codeAreaLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	a.only = vmExec
	var out []CodeArea
	err = v.settle(func() (err error) {
		out, err = a.code(l, &t, out[:0])
		return err
	})
	if v.gone(&t) {
		return nil, nil
	}
	return out, err
}

func (a *areas) code(l *codeAreaLayout, t *Task, to []CodeArea) ([]CodeArea, error) {
	if t.KThread() {
		return to, nil
	}
	mm, err := a.v.Mem.Pointer(a.MM.At(t.Addr))
	if err != nil || mm == 0 {
		return to, err
	}
	if err := a.mm.read(a.v, mm); err != nil {
		return to, err
	}
	var bad mishaps
	a.spans, err = a.walk(mm, a.spans[:0])
	bad.add(err)
	for _, s := range a.spans {
		c, err := a.codeArea(l, s, mm)
		if err != nil {
			bad.add(fmt.Errorf("area %#x: %w", s.First, err))
		}
		if bad.full() {
			break
		}
		if c.Perms != "" {
			to = append(to, c)
		}
	}
	return to, bad.err()
}

// codeArea reads an area; one that may not be executed has no Perms.
func (a *areas) codeArea(l *codeAreaLayout, s mapleEntry, mm mem.VA) (c CodeArea, err error) {
	if c.Area, err = a.describe(s, mm); c.Perms == "" {
		return c, err
	}
	file, flags := a.area.ptr(a.File), a.area.uint(a.Flags)
	if file == 0 {
		if ops := a.area.ptr(a.Ops); ops != 0 {
			name, nerr := a.v.Mem.Pointer(a.OpsName.At(ops))
			c.Special = name != 0 && name == a.special
			err = errors.Join(err, nerr)
		}
		return c, err
	}
	w := loadsOf(a.v.Mem)
	c.Inode, c.Cache = w.ptr(l.FInode.At(file)), w.ptr(l.Cache.At(file))
	c.Links = w.u32(l.Links.At(c.Inode))
	c.Paged = flags&(vmPFNMap|vmIO|vmHugeTLB) == 0
	return c, errors.Join(err, w.err)
}
