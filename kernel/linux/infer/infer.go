// Package infer works out where the members of some of a Linux kernel's structs
// lie, for kernels that do not tell: from their memory alone, enough to list
// processes and modules.
//
// What the kernel's source says of a member (the pid of the idle task is 0; a
// task hangs in its parent's list of children) must hold in all objects at hand,
// and in one place of them only. A member of which that cannot be shown is left
// out. None is guessed: where the source has two members side by side that
// usually hold the same (cred and real_cred), their order in the source counts only if
// what lies around them, or code that reads one of them, bears it out.
//
// What is read was written by the guest. One that lies gets wrong answers, as it
// would by lying in its own description of types; the work is bounded.
package infer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"vmscope/ctype"
	"vmscope/mem"
)

// Kernel is what must be known of a kernel.
type Kernel struct {
	Mem *mem.Space // its address space; as with all Spaces, mapped memory is read inside mem.Guard
	// Symbol gives the address of a function, and of a variable if the kernel tells
	// it; those that it does not tell are looked for.
	Symbol func(name string) (mem.VA, error)
	Text   mem.VA // of _stext, behind which the variables lie
	Arch   string // as uname -m prints it
}

// Result is what was found out.
type Result struct {
	// Types has the structs with the members that were found, no others. Their sizes
	// are what the members take: the true ones may be greater.
	Types   *ctype.Types
	Members []string // "task_struct.pid", …: sorted
	// Unproved says of what was sought and not found why not.
	Unproved []error
	// Variables are those that were looked for, and found, because no symbol tells
	// where they are: init_task, modules.
	Variables map[string]mem.VA
	// OffsReal and OffsBoot are where the kernel has how far the time of day, and
	// the boot-time clock, are ahead of its monotonic clock, in nanoseconds; 0: not
	// found.
	OffsReal, OffsBoot mem.VA
}

// ErrUnproved says that nothing in memory proves where a member lies.
var ErrUnproved = errors.New("not proved")

// Run looks for the members. A guest that runs may change under it what it
// compares: what was not found may be found by another Run. An error says that
// neither processes nor modules can be listed by what was found, or is ctx's.
func Run(ctx context.Context, k Kernel) (*Result, error) { return newLook(ctx, k).run() }

func newLook(ctx context.Context, k Kernel) *look {
	return &look{ctx: ctx, k: k, w: k.Mem.PointerSize(), left: maxRead, found: make(map[string]mem.VA)}
}

func (l *look) run() (*Result, error) {
	b := newBook(l.w)
	tasks := l.taskMembers(b)
	modules := l.moduleMembers(b)
	if tasks != nil && modules != nil {
		return nil, errors.Join(l.ctx.Err(), tasks, modules)
	}
	r := &Result{Members: b.names(), Variables: l.found, Unproved: append(l.gaps, tasks, modules)}
	r.Unproved = slices.DeleteFunc(r.Unproved, func(err error) bool { return err == nil })
	var err error
	if r.OffsReal, r.OffsBoot, err = l.clock(); err != nil {
		r.Unproved = append(r.Unproved, err)
	}
	if r.Types, err = b.types(); err != nil {
		return nil, err
	}
	if err := l.ctx.Err(); err != nil { // it has cut the search short
		return nil, err
	}
	return r, nil
}

// maxRead bounds what one Run reads, bytes. A kernel of 500 tasks takes some 10 MiB.
const maxRead = 256 << 20

// look is one Run.
type look struct {
	ctx   context.Context
	k     Kernel
	w     int               // bytes of a pointer
	left  int               // of maxRead
	gaps  []error           // what was not found
	found map[string]mem.VA // variables that no symbol tells
	data  *image            // what lies behind the text; nil: not looked at yet
}

func unproved(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrUnproved)
}

// gap notes that a member was not found.
func (l *look) gap(format string, args ...any) { l.gaps = append(l.gaps, unproved(format, args...)) }

var errTooMuch = errors.New("more to read than any kernel needs")

// spend takes n bytes off what may be read. All that is read asks here, so that it
// ends with the context.
func (l *look) spend(n int) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if l.left -= n; l.left < 0 {
		return fmt.Errorf("%w: %w", mem.ErrInconsistent, errTooMuch)
	}
	return nil
}

// word loads a pointer. It counts for more than it reads: it walks page tables.
func (l *look) word(at mem.VA) (uint64, error) {
	if err := l.spend(64); err != nil {
		return 0, err
	}
	v, err := l.k.Mem.Pointer(at)
	return uint64(v), err
}

// object is a copy of memory from an address on.
type object struct {
	at mem.VA
	b  []byte
	w  int // bytes of a pointer
}

// object copies n bytes, or as many as there are; fewer than least are an error.
func (l *look) object(at mem.VA, n, least int) (object, error) {
	if err := l.spend(n); err != nil {
		return object{}, err
	}
	b := make([]byte, n)
	n, err := l.k.Mem.Read(b, at)
	if n < least {
		return object{}, err
	}
	return object{at, b[:n], l.w}, nil
}

// u64 and u32 are 0 outside the copy.
func (o *object) u64(off int) uint64 {
	if off < 0 || off+8 > len(o.b) {
		return 0
	}
	return binary.LittleEndian.Uint64(o.b[off:])
}

func (o *object) u32(off int) uint32 {
	if off < 0 || off+4 > len(o.b) {
		return 0
	}
	return binary.LittleEndian.Uint32(o.b[off:])
}

// word is what has the size of a pointer.
func (o *object) word(off int) uint64 {
	if o.w == 4 {
		return uint64(o.u32(off))
	}
	return o.u64(off)
}

func (o *object) ptr(off int) mem.VA { return mem.VA(o.word(off)) }

// kernel32 is where addresses of a kernel of 32 bits begin that leaves 3 GiB to
// processes. (Modules of 32-bit Arm lie in the 16 MiB below.)
const kernel32 = 0xc0000000 - 16<<20

// inKernel reports whether v may be an address of the kernel's.
func (l *look) inKernel(v uint64) bool {
	if l.w == 4 {
		return v >= kernel32 && v < 1<<32
	}
	return v>>56 == 0xff
}

// pointer reports whether v may be the address of a kernel object: an aligned one,
// and none that stands for an error (include/linux/err.h).
func (l *look) pointer(v uint64) bool {
	last := ^uint64(0) >> (64 - 8*l.w)
	return l.inKernel(v) && v%uint64(l.w) == 0 && v <= last-4096
}

// ring walks a circular list (struct list_head) and gives its nodes, without the
// head. Each must lead back to the one before: so none comes twice, unless the
// guest changes the list as fast as it is read.
func (l *look) ring(head mem.VA, most int) ([]mem.VA, error) {
	var out []mem.VA
	for prev := head; ; {
		next, err := l.word(prev)
		if err != nil {
			return nil, err
		}
		if !l.pointer(next) {
			return nil, fmt.Errorf("list at %#x: %w", uint64(head), mem.ErrInconsistent)
		}
		node := mem.VA(next)
		back, err := l.word(node + mem.VA(l.w))
		if err != nil {
			return nil, err
		}
		switch {
		case mem.VA(back) != prev:
			return nil, fmt.Errorf("list at %#x: node %#x does not lead back: %w", uint64(head), next, mem.ErrInconsistent)
		case node == head:
			return out, nil
		case len(out) == most:
			return nil, fmt.Errorf("list at %#x: more than %d nodes: %w", uint64(head), most, mem.ErrInconsistent)
		}
		out = append(out, node)
		prev = node
	}
}

// only is the one element of a list.
func only[T any](what string, all []T) (one T, err error) {
	if len(all) != 1 {
		return one, unproved("%s: %d places fit", what, len(all))
	}
	return all[0], nil
}
