package linux

import (
	"errors"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// Uprobe is a probe that the kernel puts into the code of every process that
// maps a file.
type Uprobe struct {
	Addr   mem.VA // of the struct uprobe
	Inode  mem.VA // of the file, its struct inode
	Offset uint64 // in the file, bytes
}

// uprobeLayout is what is read of struct uprobe (kernel/events/uprobes.c).
type uprobeLayout struct {
	Node   ctype.Field `c:"uprobe.rb_node"`
	Inode  ctype.Field `c:"uprobe.inode"`
	Offset ctype.Field `c:"uprobe.offset"`
}

// Uprobes lists the probes in programs of user mode. A kernel without them has
// none.
func (v *View) Uprobes() ([]Uprobe, error) {
	root, err := v.Symbol("uprobes_tree")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := layout64[uprobeLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var out []Uprobe
	err = v.settle(func() error {
		out = out[:0]
		return v.RBTree(root, func(node mem.VA) error {
			at := node - mem.VA(l.Node.Offset)
			w := loadsOf(v.Mem)
			out = append(out, Uprobe{at, w.ptr(l.Inode.At(at)), w.u64(l.Offset.At(at))})
			return w.err
		})
	})
	return out, err
}
