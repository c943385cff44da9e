package linux

import (
	"errors"
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// areaLayout is what is read of a process's memory map: struct mm_struct and
// vm_area_struct (include/linux/mm_types.h), and what names areas without a
// file (get_vma_name in fs/proc/task_mmu.c).
type areaLayout struct {
	MM       ctype.Field `c:"task_struct.mm"`
	Count    ctype.Field `c:"mm_struct.map_count"`
	StartBrk ctype.Field `c:"mm_struct.start_brk"`
	Brk      ctype.Field `c:"mm_struct.brk"`
	Stack    ctype.Field `c:"mm_struct.start_stack"`
	Context  ctype.Field `c:"mm_struct.context.flags,optional"`

	// A list until v6.1, then a tree: d4af56c5c7c6 ("mm: start tracking VMAs
	// with maple tree") and 763ecb035029 ("mm: remove the vma linked list").
	Tree ctype.Field `c:"mm_struct.mm_mt,optional"`
	List ctype.Field `c:"mm_struct.mmap,optional"`
	Next ctype.Field `c:"vm_area_struct.vm_next,optional"`
	Prev ctype.Field `c:"vm_area_struct.vm_prev,optional"`

	Start   ctype.Field `c:"vm_area_struct.vm_start"`
	End     ctype.Field `c:"vm_area_struct.vm_end"`
	Own     ctype.Field `c:"vm_area_struct.vm_mm"`
	Flags   ctype.Field `c:"vm_area_struct.vm_flags|vm_area_struct.flags"`
	Ops     ctype.Field `c:"vm_area_struct.vm_ops"`
	PgOff   ctype.Field `c:"vm_area_struct.vm_pgoff"`
	File    ctype.Field `c:"vm_area_struct.vm_file"`
	Private ctype.Field `c:"vm_area_struct.vm_private_data"`

	// Names that a process gave to its memory (CONFIG_ANON_VMA_NAME, v5.17).
	AnonName ctype.Field `c:"vm_area_struct.anon_name,optional"`
	Shared   ctype.Field `c:"vm_area_struct.shared"`
	NameText ctype.Field `c:"anon_vma_name.name,optional"`

	OpsName     ctype.Field `c:"vm_operations_struct.name"`
	SpecialName ctype.Field `c:"vm_special_mapping.name"`

	// A file that stands for another (overlayfs, since v6.7: def3ae83da02 ("fs:
	// store real path instead of fake path in backing file f_path")).
	UserMnt    ctype.Field `c:"backing_file.user_path.mnt,optional"`
	UserDentry ctype.Field `c:"backing_file.user_path.dentry,optional"`
	DInode     ctype.Field `c:"dentry.d_inode"`
	// CTime stands for the kernels before v6.6, which call an area the heap also
	// if it only touches it: see heap.
	CTime ctype.Field `c:"inode.i_ctime,optional"`
}

const (
	// maxAreas bounds the areas of one process: vm.max_map_count is 65,530 unless
	// it was raised; distributions raise it to 2^20.
	maxAreas = 1 << 21
	// maxAreaName bounds the name of an area without a file: ANON_VMA_NAME_MAX_LEN
	// is 80.
	maxAreaName = 256

	vmMayShare = 0x80 // VM_MAYSHARE, include/linux/mm.h

	// FMODE_BACKING, include/linux/fs.h: a file that stands for another. It gave
	// its first bit away to those that tell fanotify's wishes (v6.14, and v6.12
	// since some point release).
	fmodeBacking      = 1 << 24
	fmodeBackingFirst = 1 << 25

	mmHasVsyscall  = 1 << 1 // MM_CONTEXT_HAS_VSYSCALL, arch/x86/include/asm/mmu.h
	vsyscallNone   = 2      // vsyscall_mode, arch/x86/entry/vsyscall/vsyscall_64.c
	pageShift      = 12
	rwx            = "rwx"
	namedBySpecial = "special_mapping_name"
	namedByGate    = "gate_vma_name"
)

// areaPlan is what reading a memory map takes in one kernel.
type areaPlan struct {
	areaLayout
	area, mm      int    // bytes to read of each
	special, gate mem.VA // functions that name areas
	vsyscall      mem.VA // the area of the vsyscall page; 0: none
	mode          mem.VA // of vsyscall_mode; 0: none
	backing       uint64 // the bit in file.f_mode; 0: the kernel has none
}

func newAreaPlan(k *Kernel) (*areaPlan, error) {
	l, err := layout[areaLayout](k)
	if err != nil {
		return nil, err
	}
	if err := k.NeedData(); err != nil {
		return nil, err
	}
	p := &areaPlan{areaLayout: *l}
	if !l.Tree.Valid() && !(l.List.Valid() && l.Next.Valid() && l.Prev.Valid()) {
		return nil, fmt.Errorf("this kernel keeps the areas of a process neither in a tree nor in a list that is known: %w", errors.ErrUnsupported)
	}
	if err := p.measure(); err != nil {
		return nil, err
	}
	if l.UserMnt.Valid() && l.UserDentry.Valid() {
		p.backing = fmodeBackingFirst
		if _, _, err := k.firstSymbol("fsnotify_open_perm_and_set_mode", "file_set_fsnotify_mode_from_watchers", "file_set_fsnotify_mode"); err == nil {
			p.backing = fmodeBacking
		}
	}
	p.special, _ = k.Symbol(namedBySpecial)
	p.gate, _ = k.Symbol(namedByGate)
	p.vsyscall, _ = k.Symbol("gate_vma")
	p.mode, _ = k.Symbol("vsyscall_mode")
	return p, nil
}

// measure works out how much of each struct is read.
func (p *areaPlan) measure() (err error) {
	if p.area, err = span(p.Next, p.Prev, p.Start, p.End, p.Own, p.Flags, p.Ops, p.PgOff, p.File, p.Private, p.AnonName); err != nil {
		return err
	}
	p.mm, err = span(p.Count, p.StartBrk, p.Brk, p.Stack, p.Context)
	return err
}

// areas reads memory maps. It keeps buffers and is not safe for concurrent use.
type areas struct {
	*areaPlan
	v        *View
	files    *files
	tree     *mapleWalk // nil: the kernel keeps a list
	area, mm object
	spans    []mapleEntry
	again    []mapleEntry
	only     uint64 // flags that an area must have to be described
}

func (v *View) areas() (*areas, error) {
	plan, err := derived(v.Kernel, newAreaPlan)
	if err != nil {
		return nil, err
	}
	f, err := v.files()
	if err != nil {
		return nil, err
	}
	a := &areas{areaPlan: plan, v: v, files: f}
	if plan.Tree.Valid() {
		if a.tree, err = v.mapleWalk(); err != nil {
			return nil, err
		}
	}
	a.area.b, a.mm.b = make([]byte, plan.area), make([]byte, plan.mm)
	return a, nil
}

// Areas lists the mapped areas of a process, line by line what its
// /proc/PID/maps has. A kernel thread and a process that has ended have none.
//
// The list is of one moment: it is walked twice and must be the same. Areas
// whose file could not be named are in the list and told in the error.
func (v *View) Areas(t Task) ([]kernel.Area, error) {
	a, err := v.areas()
	if err != nil {
		return nil, err
	}
	var out []kernel.Area
	err = v.settle(func() (err error) {
		out, err = a.read(&t, out[:0])
		return err
	})
	if v.gone(&t) {
		return nil, nil
	}
	return out, err
}

func (a *areas) read(t *Task, to []kernel.Area) ([]kernel.Area, error) {
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
	if a.spans, err = a.walk(mm, a.spans[:0]); err != nil {
		return to, err
	}
	var bad mishaps
	for _, s := range a.spans {
		e, err := a.describe(s, mm)
		if err != nil {
			bad.add(fmt.Errorf("area %#x: %w", s.First, err))
		}
		if bad.full() {
			return to, bad.err()
		}
		if e.Perms != "" { // it is an area, whatever else failed
			to = append(to, e)
		}
	}
	a.v.forget() // the second walk must see what is there now
	if a.again, err = a.walk(mm, a.again[:0]); err != nil {
		return to, err
	}
	count, err := a.v.Mem.Uint32(a.Count.At(mm))
	if err != nil {
		return to, err
	}
	now, err := a.v.Mem.Pointer(a.MM.At(t.Addr))
	switch {
	case err != nil:
		return to, err
	case now != mm || !slices.Equal(a.spans, a.again):
		return to, errBroken("memory map", mm, "it changed while it was read")
	case int(count) != len(a.spans):
		bad.add(errBroken("memory map", mm, fmt.Sprintf("it counts %d areas and has %d", int32(count), len(a.spans))))
	}
	gate, ok, err := a.gateArea()
	bad.add(err)
	if ok {
		to = append(to, gate)
	}
	return to, bad.err()
}

// walk gives the areas of an mm_struct with the addresses that they cover.
func (a *areas) walk(mm mem.VA, to []mapleEntry) ([]mapleEntry, error) {
	if a.tree != nil {
		return a.tree.entries(a.Tree.At(mm), to)
	}
	at, err := a.v.Mem.Pointer(a.List.At(mm))
	var prev mem.VA
	var end uint64
	for err == nil && at != 0 {
		if err = a.area.read(a.v, at); err != nil {
			break
		}
		e := mapleEntry{a.area.uint(a.Start), a.area.uint(a.End) - 1, at}
		switch {
		case a.area.ptr(a.Prev) != prev:
			err = errBroken("memory map", at, fmt.Sprintf("vm_prev is %#x, came from %#x", uint64(a.area.ptr(a.Prev)), uint64(prev)))
		case e.First < end || e.Last < e.First || e.Last+1 == 0:
			// That they rise is also what ends a list that loops.
			err = errBroken("memory map", at, fmt.Sprintf("area %#x-%#x behind one that ends at %#x", e.First, e.Last+1, end))
		case len(to) >= maxAreas:
			err = errBroken("memory map", mm, fmt.Sprintf("more than %d areas", maxAreas))
		default:
			to, prev, end = append(to, e), at, e.Last+1
			at = a.area.ptr(a.Next)
		}
	}
	return to, err
}

// describe reads the area that the map has for a run of addresses.
func (a *areas) describe(s mapleEntry, mm mem.VA) (kernel.Area, error) {
	e := kernel.Area{Start: mem.VA(s.First), End: mem.VA(s.Last + 1), Dev: "00:00"}
	if err := a.area.read(a.v, s.Entry); err != nil {
		return e, err
	}
	if o := a.area.ptr(a.Own); o != mm {
		return e, errBroken("area", s.Entry, fmt.Sprintf("it belongs to the memory map %#x, not %#x", uint64(o), uint64(mm)))
	}
	if first, end := a.area.uint(a.Start), a.area.uint(a.End); first != s.First || end != s.Last+1 {
		return e, errBroken("area", s.Entry, fmt.Sprintf("it says %#x-%#x, the map %#x-%#x", first, end, s.First, s.Last+1))
	}
	if (s.First|(s.Last+1))%mem.PageSize != 0 {
		return e, errBroken("area", s.Entry, fmt.Sprintf("%#x-%#x ends amid a page", s.First, s.Last+1))
	}
	return e, a.fill(&e)
}

// fill decodes the area in a.area.
func (a *areas) fill(e *kernel.Area) (err error) {
	flags := a.area.uint(a.Flags)
	if flags&a.only != a.only {
		return nil
	}
	perms := []byte("---p")
	for i := range rwx {
		if flags>>i&1 != 0 {
			perms[i] = rwx[i]
		}
	}
	if flags&vmMayShare != 0 {
		perms[3] = 's'
	}
	e.Perms = string(perms)
	if file := a.area.ptr(a.File); file != 0 {
		e.Offset = a.area.uint(a.PgOff) << pageShift
		return a.mapped(file, e)
	}
	e.Path, err = a.name(e)
	return err
}

// mapped tells of an area's file.
func (a *areas) mapped(file mem.VA, e *kernel.Area) error {
	f := a.files
	if err := f.file.read(a.v, file); err != nil {
		return err
	}
	mnt, dentry, inode := f.file.ptr(f.FMnt), f.file.ptr(f.FDentry), f.file.ptr(f.FInode)
	if f.file.uint(f.FMode)&a.backing != 0 {
		user, err := a.user(file)
		if err != nil {
			return err
		}
		if user.dentry != 0 {
			mnt, dentry = user.vfsmount, user.dentry
			if inode, err = a.v.Mem.Pointer(a.DInode.At(dentry)); err != nil {
				return err
			}
		}
	}
	if err := f.inode.read(a.v, inode); err != nil {
		return err
	}
	dev, err := a.v.Mem.Uint32(f.SDev.At(f.inode.ptr(f.ISB)))
	if err != nil {
		return err
	}
	e.Dev = fmt.Sprintf("%02x:%02x", major(dev), minor(dev))
	e.Inode = f.inode.uint(f.Ino)
	if name, err := a.given(); err != nil || name != "" {
		e.Path = "[anon_shmem:" + name + "]"
		return err
	}
	e.Path, err = f.paths.path(mnt, dentry)
	return err
}

// user is the place of the file that a backing file stands for.
func (a *areas) user(file mem.VA) (p spot, err error) {
	if p.vfsmount, err = a.v.Mem.Pointer(a.UserMnt.At(file)); err != nil {
		return p, err
	}
	p.dentry, err = a.v.Mem.Pointer(a.UserDentry.At(file))
	return p, err
}

// given is the name that the process gave to the area in a.area with
// prctl(PR_SET_VMA). Until v6.1 its place is shared with what areas of files
// need.
func (a *areas) given() (kernel.Text, error) {
	n := a.AnonName
	if !n.Valid() || !a.NameText.Valid() {
		return "", nil
	}
	inUnion := n.Offset >= a.Shared.Offset && n.Offset < a.Shared.Offset+a.Shared.Size()
	if at := a.area.ptr(n); at != 0 && !(inUnion && a.area.ptr(a.File) != 0) {
		b, err := a.v.Mem.CString(a.NameText.At(at), maxAreaName)
		return kernel.Text(b), err
	}
	return "", nil
}

// name tells what the area in a.area, which has no file, is for.
func (a *areas) name(e *kernel.Area) (kernel.Text, error) {
	if ops := a.area.ptr(a.Ops); ops != 0 {
		f, err := a.v.Mem.Pointer(a.OpsName.At(ops))
		if err != nil {
			return "", err
		}
		switch {
		case f == 0:
		case f == a.gate:
			return "[vsyscall]", nil
		case f == a.special:
			at, err := a.v.Mem.Pointer(a.SpecialName.At(a.area.ptr(a.Private)))
			if err != nil {
				return "", err
			}
			if at != 0 {
				b, err := a.v.Mem.CString(at, maxAreaName)
				return kernel.Text(b), err
			}
		default:
			return "", fmt.Errorf("named by a function at %#x that is not known: %w", uint64(f), errors.ErrUnsupported)
		}
	}
	start, end := uint64(e.Start), uint64(e.End)
	stack := a.mm.uint(a.Stack)
	switch {
	case a.heap(start, end):
		return "[heap]", nil
	case start <= stack && end >= stack:
		return "[stack]", nil
	}
	name, err := a.given()
	if err != nil || name == "" {
		return "", err
	}
	return "[anon:" + name + "]", nil
}

// heap reports whether an area is what /proc/PID/maps calls the heap. Kernels
// before v6.6 count areas that only touch it. No member tells that (the test is
// an inline function), so inode.i_ctime, which v6.6 renamed as well, stands for
// it.
func (a *areas) heap(start, end uint64) bool {
	brk, startBrk := a.mm.uint(a.Brk), a.mm.uint(a.StartBrk)
	if a.CTime.Valid() {
		return start <= brk && end >= startBrk
	}
	return start < brk && end > startBrk
}

// gateArea is the line at the end of a process's map that is no area of it: the
// page that all processes share (get_gate_vma in
// arch/x86/entry/vsyscall/vsyscall_64.c and arch/arm/kernel/process.c). A kernel
// without has no such symbol.
func (a *areas) gateArea() (e kernel.Area, ok bool, err error) {
	if a.vsyscall == 0 || a.Context.Valid() && a.mm.uint(a.Context)&mmHasVsyscall == 0 {
		return e, false, nil
	}
	if a.mode != 0 {
		if m, err := a.v.Mem.Uint32(a.mode); err != nil || m == vsyscallNone {
			return e, false, err
		}
	}
	if err := a.area.read(a.v, a.vsyscall); err != nil {
		return e, false, err
	}
	e = kernel.Area{Start: a.area.ptr(a.Start), End: a.area.ptr(a.End), Dev: "00:00"}
	err = a.fill(&e)
	if err == nil && e.Perms != "" && e.Path == "" {
		e.Path = "[vectors]" // arch/arm/kernel/process.c: arch_vma_name
	}
	return e, true, err
}
