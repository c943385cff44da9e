package linux

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// fileLayout is what is read of a process's open files: struct files_struct and
// fdtable (include/linux/fdtable.h), file and inode (include/linux/fs.h).
type fileLayout struct {
	Files ctype.Field `c:"task_struct.files"`
	FDT   ctype.Field `c:"files_struct.fdt"`

	Max     ctype.Field `c:"fdtable.max_fds"`
	FD      ctype.Field `c:"fdtable.fd"`
	Open    ctype.Field `c:"fdtable.open_fds"`
	OnExec  ctype.Field `c:"fdtable.close_on_exec"`
	FInode  ctype.Field `c:"file.f_inode"`
	FMnt    ctype.Field `c:"file.f_path.mnt"`
	FDentry ctype.Field `c:"file.f_path.dentry"`
	FFlags  ctype.Field `c:"file.f_flags"`
	FMode   ctype.Field `c:"file.f_mode"`
	FPos    ctype.Field `c:"file.f_pos"`

	IMode ctype.Field `c:"inode.i_mode"`
	Ino   ctype.Field `c:"inode.i_ino"`
	ISB   ctype.Field `c:"inode.i_sb"`
	SDev  ctype.Field `c:"super_block.s_dev"`
}

const (
	// maxFDs bounds the descriptors of one process that are listed, which is
	// what sysctl fs.nr_open allows unless it was raised. What is beyond is told
	// in the error.
	maxFDs = 1 << 20
	// maxFiles bounds the descriptors of all processes together.
	maxFiles = 1 << 21

	oCloExec = 0x80000 // O_CLOEXEC, include/uapi/asm-generic/fcntl.h

	fmodeRead  = 1 // FMODE_READ, include/linux/fs.h
	fmodeWrite = 2 // FMODE_WRITE
)

// filePlan is what reading files takes in one kernel.
type filePlan struct {
	fileLayout
	file, inode, table int // bytes to read of each
}

func newFilePlan(k *Kernel) (*filePlan, error) {
	l, err := layout[fileLayout](k)
	if err != nil {
		return nil, err
	}
	p := &filePlan{fileLayout: *l}
	if p.file, err = span(l.FInode, l.FMnt, l.FDentry, l.FFlags, l.FMode, l.FPos); err != nil {
		return nil, err
	}
	if p.inode, err = span(l.IMode, l.Ino, l.ISB); err != nil {
		return nil, err
	}
	p.table, err = span(l.Max, l.FD, l.Open, l.OnExec)
	return p, err
}

// files reads open files. It keeps buffers and is not safe for concurrent use.
type files struct {
	*filePlan
	v                  *View
	paths              *paths
	file, inode, table object
	dev                uint32 // the last device number and its text: they repeat
	devText            string
}

func (v *View) files() (*files, error) {
	plan, err := derived(v.Kernel, newFilePlan)
	if err != nil {
		return nil, err
	}
	p, err := v.paths()
	if err != nil {
		return nil, err
	}
	f := &files{filePlan: plan, v: v, paths: p}
	f.file.b, f.inode.b, f.table.b = make([]byte, plan.file), make([]byte, plan.inode), make([]byte, plan.table)
	return f, nil
}

// Files lists the open files of a process in the order of their descriptors.
// A process that has ended has none.
//
// Each file is as it was at one moment; a descriptor that is closed meanwhile is
// left out, one that is opened meanwhile may be. Files that could not be read
// are told in the error beside the others.
func (v *View) Files(t Task) ([]kernel.File, error) {
	f, err := v.files()
	if err != nil {
		return nil, err
	}
	return f.of(t, nil)
}

// AllFiles lists the open files of all processes. Threads that have descriptor
// tables of their own are not asked: /proc/PID/fd has the leader's.
func (v *View) AllFiles() ([]kernel.File, error) {
	f, err := v.files()
	if err != nil {
		return nil, err
	}
	tasks, err := v.Tasks()
	var bad mishaps
	bad.add(err)
	var out []kernel.File
	for _, t := range tasks {
		if out, err = f.of(t, out); err != nil {
			if errors.Is(err, mem.ErrUnreachable) {
				return out, err
			}
			bad.add(fmt.Errorf("files of pid %d: %w", t.PID, err))
		}
		if len(out) > maxFiles {
			bad.add(fmt.Errorf("more than %d open files, the rest is left out: %w", maxFiles, errors.ErrUnsupported))
			break
		}
	}
	return out, bad.err()
}

// of appends the open files of t to a list.
func (f *files) of(t Task, to []kernel.File) ([]kernel.File, error) {
	base := len(to)
	err := f.v.settle(func() (err error) {
		to, err = f.read(&t, to[:base])
		return err
	})
	if f.v.gone(&t) {
		return to[:base], nil
	}
	return to, err
}

// gone reports whether a task is no longer where it was: what was read of it,
// with an error or without, may be what others have made of its memory.
func (v *View) gone(t *Task) bool {
	l, err := known[taskLayout](v.Kernel)
	if err != nil {
		return false
	}
	s := v.now()
	near := s.Near()
	var now Task
	if err := now.read(&near, l, t.Addr); err != nil {
		return !errors.Is(err, mem.ErrUnreachable)
	}
	if now.PID != t.PID || now.TGID != t.TGID {
		return true
	}
	if !l.Exit.Valid() {
		return false
	}
	dead, err := s.Uint32(l.Exit.At(t.Addr))
	return err == nil && dead != 0
}

// read appends the open files of t. It fails at once if the descriptor table is
// not to be understood; files that fail are told after all others.
func (f *files) read(t *Task, to []kernel.File) ([]kernel.File, error) {
	own, err := f.v.Mem.Pointer(f.Files.At(t.Addr))
	if err != nil || own == 0 {
		return to, err
	}
	fdt, err := f.v.Mem.Pointer(f.FDT.At(own))
	if err != nil {
		return to, err
	}
	if err := f.table.read(f.v, fdt); err != nil {
		return to, err
	}
	open, err := f.bitmap(f.Open)
	if err != nil {
		return to, err
	}
	onExec, err := f.bitmap(f.OnExec)
	if err != nil {
		return to, err
	}
	var bad mishaps
	if n := f.table.uint(f.Max); n > maxFDs {
		bad.add(fmt.Errorf("a table of %d descriptors, read up to %d: %w", n, maxFDs, errors.ErrUnsupported))
	}
	fds := f.table.ptr(f.FD)
	for w := range open {
		for set := open[w]; set != 0 && !bad.full(); set &= set - 1 {
			n := 64*w + bits.TrailingZeros64(set)
			to = append(to, kernel.File{PID: t.PID, Comm: t.Comm(), FD: n})
			e := &to[len(to)-1]
			there, err := f.entry(fds+mem.VA(f.v.Mem.PointerSize()*n), e)
			if err != nil {
				bad.add(fmt.Errorf("fd %d: %w", n, err))
			}
			if !there {
				to = to[:len(to)-1]
				continue
			}
			if onExec[w]>>(n%64)&1 != 0 {
				e.Flags |= oCloExec
			}
		}
	}
	// A table that was replaced is not written any more: what was read of it is
	// of no moment.
	for _, p := range []struct{ at, was mem.VA }{{f.Files.At(t.Addr), own}, {f.FDT.At(own), fdt}} {
		if now, err := f.v.now().Pointer(p.at); err != nil || now != p.was {
			return to, errors.Join(errBroken("files", p.at, "the table of descriptors was replaced"), err)
		}
	}
	return to, bad.err()
}

// bitmap reads one of the bitmaps of the table in f.table, which have a bit for
// each descriptor.
func (f *files) bitmap(field ctype.Field) ([]uint64, error) {
	n := f.table.uint(f.Max)
	if n == 0 || n%uint64(8*f.v.Mem.PointerSize()) != 0 {
		return nil, errBroken("fdtable", f.table.at, fmt.Sprintf("max_fds is %d", n))
	}
	n = min(n, maxFDs) / 8
	b := make([]byte, (n+7)&^7)
	if _, err := f.v.Mem.Read(b[:n], f.table.ptr(field)); err != nil {
		return nil, err
	}
	words := make([]uint64, len(b)/8)
	for i := range words {
		words[i] = uintAt(b, uint64(8*i), 8)
	}
	return words, nil
}

// entry reads the file in a slot of the table. The slot must hold the same file
// after as before; one that was emptied meanwhile is not there.
func (f *files) entry(slot mem.VA, e *kernel.File) (there bool, err error) {
	file, err := f.v.Mem.Pointer(slot)
	for range retries {
		if err != nil || file == 0 {
			// A bit without a file is a descriptor that is being opened.
			return false, err
		}
		ferr := f.describe(file, e)
		now, err := f.v.Mem.Pointer(slot)
		if err == nil && now == file {
			return e.Addr != 0, ferr
		}
		f.v.forget()
		file = now
	}
	return false, errBroken("fdtable", slot, "the file in it changes all the time")
}

// describe reads a struct file. e.Addr is set once there is something to show.
func (f *files) describe(file mem.VA, e *kernel.File) error {
	e.Addr = 0
	if err := f.file.read(f.v, file); err != nil {
		return err
	}
	if err := f.inode.read(f.v, f.file.ptr(f.FInode)); err != nil {
		return err
	}
	dev, err := f.v.Mem.Uint32(f.SDev.At(f.inode.ptr(f.ISB)))
	if err != nil {
		return err
	}
	e.Addr = file
	e.Type = fileType(f.inode.uint(f.IMode))
	e.Inode = f.inode.uint(f.Ino)
	if dev != f.dev || f.devText == "" {
		f.dev, f.devText = dev, fmt.Sprintf("%d:%d", major(dev), minor(dev))
	}
	e.Dev = f.devText
	e.Pos = int64(f.file.uint(f.FPos))
	e.Flags = uint32(f.file.uint(f.FFlags)) &^ oCloExec // that is of the descriptor
	e.Mode = [...]string{"", "r", "w", "u"}[f.file.uint(f.FMode)&(fmodeRead|fmodeWrite)]
	if e.Path, err = f.paths.path(f.file.ptr(f.FMnt), f.file.ptr(f.FDentry)); err != nil {
		return err
	}
	// Since v6.16 the inode that these share calls itself a regular file and
	// stat(2) hides it.
	if strings.HasPrefix(string(e.Path), "anon_inode:") {
		e.Type = "anon"
	}
	return nil
}

// fileType names the type bits of an inode's mode as lsof does
// (include/uapi/linux/stat.h).
func fileType(mode uint64) string {
	switch mode & 0o170000 {
	case 0:
		return "anon"
	case 0o010000:
		return "FIFO"
	case 0o020000:
		return "CHR"
	case 0o040000:
		return "DIR"
	case 0o060000:
		return "BLK"
	case 0o100000:
		return "REG"
	case 0o120000:
		return "LINK"
	case 0o140000:
		return "SOCK"
	}
	return fmt.Sprintf("%#o", mode&0o170000)
}

// major and minor part a dev_t of the kernel (include/linux/kdev_t.h).
func major(dev uint32) uint32 { return dev >> 20 }
func minor(dev uint32) uint32 { return dev & (1<<20 - 1) }
