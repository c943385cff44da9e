package linux

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// Bounds of the socket tables. The largest table of TCP sockets that a kernel
// makes by itself has 2^19 buckets.
const (
	maxBuckets    = 1 << 24 // of one table
	maxAllBuckets = 1 << 26 // of all
	maxSockets    = 1 << 21 // met in one pass
)

// hashTable is an array of chains of sockets.
type hashTable struct {
	name   string
	at     mem.VA
	n      uint64 // buckets
	stride uint64 // bytes a bucket
	head   uint64 // offset of the pointer to the first node in a bucket
	nulls  bool   // chains end with an odd number that tells the bucket
}

// errFull ends a pass that met more sockets than there can be.
var errFull = errors.New("too many sockets")

// walk calls each with every socket's chain link in t. The buckets are read in
// bulk, for most are empty. A chain that changes while it is walked is walked
// anew; one that never holds together is noted, and the others follow.
func (r *sockReader) walk(t hashTable, each func(node mem.VA) error) error {
	if t.at == 0 || r.seen[t.at] {
		return nil
	}
	r.seen[t.at] = true
	word := uint64(r.v.Mem.PointerSize())
	r.buckets += t.n
	switch {
	case t.n > maxBuckets || r.buckets > maxAllBuckets:
		return errBroken(t.name, t.at, fmt.Sprintf("%d buckets, %d with the tables before", t.n, r.buckets))
	case t.stride < word || t.stride > mem.PageSize || t.head > t.stride-word:
		return fmt.Errorf("the kernel's types have buckets of %d bytes: %w", t.stride, mem.ErrInconsistent)
	}
	const piece = 64 << 10
	buf := make([]byte, min(t.n*t.stride, piece/t.stride*t.stride))
	for i := uint64(0); i < t.n; {
		b := buf[:min(uint64(len(buf)), (t.n-i)*t.stride)]
		if _, err := r.v.Mem.Read(b, t.at+mem.VA(i*t.stride)); err != nil {
			return fmt.Errorf("read the table of %s sockets: %w", t.name, err)
		}
		for off := t.head; off < uint64(len(b)); off += t.stride {
			if first := uintAt(b, off, word); first != 0 && first&1 == 0 {
				if !r.note(r.bucket(t, i+off/t.stride, each)) {
					return nil
				}
			}
		}
		i += uint64(len(b)) / t.stride
	}
	return nil
}

// bucket walks one chain until it holds together.
func (r *sockReader) bucket(t hashTable, i uint64, each func(node mem.VA) error) error {
	head := t.at + mem.VA(i*t.stride+t.head)
	base := len(r.out)
	return r.v.settle(func() error {
		r.out = r.out[:base]
		end, err := r.v.chain(head, func(node mem.VA) error {
			if r.visited++; r.visited > maxSockets {
				return fmt.Errorf("%w: %w in the table of %s sockets at %#x", mem.ErrInconsistent, errFull, t.name, uint64(t.at))
			}
			return each(node)
		})
		// The end mark of a nulls list tells in which bucket the walk ended: a
		// node that moved to another one takes the walk with it.
		if err == nil && t.nulls && uint64(end)>>1&(t.n-1) != i {
			return errBroken(t.name, head, fmt.Sprintf("its end mark is %#x", uint64(end)))
		}
		return err
	})
}

// chain walks a chain of struct hlist_node or hlist_nulls_node from the address
// of the pointer to its first node, and returns what ends it. Each node must
// point back to where the walk came from.
func (v *View) chain(head mem.VA, each func(node mem.VA) error) (end mem.VA, err error) {
	node, err := v.Mem.Pointer(head)
	if err != nil {
		return 0, err
	}
	from, before := head, mem.VA(0)
	word := uint64(v.Mem.PointerSize())
	buf := make([]byte, 2*word)
	var loop brent
	for node != 0 && node&1 == 0 {
		if loop.seen(node) {
			return 0, errBroken("chain", node, fmt.Sprintf("loops (head %#x)", uint64(head)))
		}
		if _, err := v.Mem.Read(buf, node); err != nil {
			return 0, err
		}
		if back := mem.VA(uintAt(buf, word, word)); back != from && !v.midway(node, back, from, before) {
			return 0, errBroken("chain", node, fmt.Sprintf("pprev is %#x, came from %#x", uint64(back), uint64(from)))
		}
		if err := each(node); err != nil {
			return 0, err
		}
		before, from, node = from, node, mem.VA(uintAt(buf, 0, word))
	}
	return node, nil
}

// midway reports whether node, to which from points, still points back as it
// did before the change that the kernel is in the midst of: the way forward is
// changed first. A vCPU may be stopped there for longer than any retrying.
func (v *View) midway(node, back, from, before mem.VA) bool {
	if back == before { // from was put in front of node
		return before != 0
	}
	// What stood between was taken out, and still knows where it stood.
	next, err := v.Mem.Pointer(back)
	if err != nil || next != node {
		return false
	}
	pprev, err := v.Mem.Pointer(back + mem.VA(v.Mem.PointerSize()))
	return err == nil && pprev == from
}
