package linux

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// ownerLayout is what leads from a task to the sockets it holds.
type ownerLayout struct {
	Files   ctype.Field `c:"task_struct.files"`
	FDT     ctype.Field `c:"files_struct.fdt"`
	Max     ctype.Field `c:"fdtable.max_fds"`
	FD      ctype.Field `c:"fdtable.fd"`
	Open    ctype.Field `c:"fdtable.open_fds"`
	Op      ctype.Field `c:"file.f_op"`
	Private ctype.Field `c:"file.private_data"`
	Sock    ctype.Field `c:"socket.sk"`
}

// Bounds of descriptor tables: fs.nr_open can be set to 2^30 at most, stock
// kernels have 2^20.
const (
	maxSlots   = 1 << 26 // of one process
	maxOpen    = 1 << 22 // open ones, of all processes
	maxBitmaps = 1 << 24 // words of bit maps, of all processes
)

// socketOwners maps sockets (struct sock) to the descriptors of processes that
// lead to them.
func (v *View) socketOwners() (map[mem.VA][]kernel.Owner, error) {
	l, err := layout[ownerLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	ops, err := v.Symbol("socket_file_ops")
	if err != nil {
		return nil, err
	}
	return v.holders(l.Sock, ops)
}

// holders maps what files with the given operations stand for (their
// private_data, or what a member of that points to) to the descriptors of
// processes that lead to them.
func (v *View) holders(inner ctype.Field, ops ...mem.VA) (map[mem.VA][]kernel.Owner, error) {
	l, err := layout[ownerLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	tasks, err := v.Tasks()
	r := &ownerReader{v: v, l: l, inner: inner, ops: ops, owners: make(map[mem.VA][]kernel.Owner)}
	var bad mishaps
	bad.add(err)
	for i := range tasks {
		t := &tasks[i]
		if t.KThread() {
			continue
		}
		err := v.settle(func() error { return r.task(t) })
		if errors.Is(err, mem.ErrUnreachable) {
			return r.owners, err
		}
		if v.gone(t) {
			continue
		}
		if err != nil {
			bad.add(fmt.Errorf("descriptors of pid %d: %w", t.TGID, err))
			continue
		}
		for _, h := range r.held {
			r.owners[h.object] = append(r.owners[h.object], kernel.Owner{PID: t.TGID, Comm: t.Comm(), FD: h.fd})
		}
	}
	return r.owners, bad.err()
}

type ownerReader struct {
	v      *View
	l      *ownerLayout
	ops    []mem.VA    // of the files that are looked for
	inner  ctype.Field // of what their private_data leads to: the pointer that counts; itself if it is not valid
	owners map[mem.VA][]kernel.Owner
	held   []heldFile // of the task at hand
	fds    int        // open descriptors met so far
	words  int        // of bit maps met so far
	buf    [64 * 8]byte
}

type heldFile struct {
	object mem.VA
	fd     int
}

// task finds the files that a task holds. One that exits meanwhile holds
// none.
func (r *ownerReader) task(t *Task) error {
	r.held = r.held[:0]
	files, err := r.v.Mem.Pointer(r.l.Files.At(t.Addr))
	if err != nil || files == 0 {
		return err
	}
	fdt, err := r.v.Mem.Pointer(r.l.FDT.At(files))
	if err != nil {
		return err
	}
	n, err := r.v.Mem.Uint32(r.l.Max.At(fdt))
	if err != nil {
		return err
	}
	fd, err := r.v.Mem.Pointer(r.l.FD.At(fdt))
	if err != nil {
		return err
	}
	open, err := r.v.Mem.Pointer(r.l.Open.At(fdt))
	if err != nil {
		return err
	}
	if n > maxSlots {
		return errBroken("fdtable", fdt, fmt.Sprintf("%d descriptors", n))
	}
	word := r.v.Mem.PointerSize()
	for i := uint32(0); i < n; i += 64 {
		if r.words++; r.words > maxBitmaps {
			return errBroken("fdtable", fdt, "more descriptors than there can be")
		}
		left := min(n-i, 64)
		size := 8
		if left <= 32 { // a map of one word of 32 bits ends there
			size = 4
		}
		set, err := r.v.Mem.Uint(open+mem.VA(i/8), size)
		if err != nil {
			return err
		}
		set &= 1<<left - 1
		if set == 0 {
			continue
		}
		// All up to the highest one that is open.
		b := r.buf[:word*bits.Len64(set)]
		if _, err := r.v.Mem.Read(b, fd+mem.VA(word)*mem.VA(i)); err != nil {
			return err
		}
		for ; set != 0; set &= set - 1 {
			k := bits.TrailingZeros64(set)
			if r.fds++; r.fds > maxOpen {
				return errBroken("fdtable", fdt, "more open descriptors than there can be")
			}
			if err := r.file(mem.VA(uintAt(b, uint64(word*k), uint64(word))), int(i)+k); err != nil {
				return err
			}
		}
	}
	return nil
}

// file looks whether a struct file is one of those that are looked for.
func (r *ownerReader) file(at mem.VA, fd int) error {
	if at == 0 { // reserved, or closed just now
		return nil
	}
	op, err := r.v.Mem.Pointer(r.l.Op.At(at))
	if err != nil || !slices.Contains(r.ops, op) {
		return err
	}
	object, err := r.v.Mem.Pointer(r.l.Private.At(at))
	if err == nil && object != 0 && r.inner.Valid() {
		object, err = r.v.Mem.Pointer(r.inner.At(object))
	}
	if err == nil && object != 0 {
		r.held = append(r.held, heldFile{object, fd})
	}
	return err
}
