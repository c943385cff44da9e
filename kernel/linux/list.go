package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmscope/mem"
)

// maxList bounds every list of the kernel. It is far above what a guest of any
// size keeps (the most PIDs a kernel can be set to is 2^22) and ends a list
// that the guest makes grow as fast as it is read.
const maxList = 1 << 23

// retries is how often a structure that changed under the reader is read anew
// before it counts as inconsistent. On a live guest one in some ten thousand
// walks of the task list meets a change.
const retries = 8

// errBroken marks a list that did not hold together.
func errBroken(what string, at mem.VA, why string) error {
	return &mem.FaultError{Op: "walk", Space: "kernel", Addr: uint64(at),
		Err: fmt.Errorf("%w: %s: %s", mem.ErrInconsistent, what, why)}
}

// brent notices a walk that comes back to where it was, in constant memory and
// within three times the length of the loop (Brent 1980).
type brent struct {
	mark        mem.VA
	steps, turn int
}

// seen reports whether node closes a loop.
func (b *brent) seen(node mem.VA) bool {
	if node == b.mark && b.steps > 0 {
		return true
	}
	if b.steps == b.turn {
		b.mark, b.steps = node, 0
		b.turn = max(1, b.turn*2)
	}
	b.steps++
	return false
}

// List walks the circular doubly linked list (struct list_head) with the given
// head and calls each with the address of every node. The list must hold
// together: next->prev is the node we came from, and it ends at its head.
//
// A list that does not is an ErrInconsistent at the node where it broke; the
// nodes before have been given to each. An error of each ends the walk.
func (v *View) List(head mem.VA, each func(node mem.VA) error) error {
	buf := new([16]byte)
	node, err := v.Mem.Pointer(head)
	if err != nil {
		return err
	}
	prev := head
	var loop brent
	for n := 0; node != head; n++ {
		switch {
		case n >= maxList:
			return errBroken("list", head, fmt.Sprintf("more than %d nodes", maxList))
		case loop.seen(node):
			return errBroken("list", node, fmt.Sprintf("loops without passing its head %#x", uint64(head)))
		}
		if _, err := v.Mem.Read(buf[:], node); err != nil {
			return err
		}
		if back := mem.VA(binary.LittleEndian.Uint64(buf[8:])); back != prev {
			return errBroken("list", node, fmt.Sprintf("prev is %#x, came from %#x", uint64(back), uint64(prev)))
		}
		if err := each(node); err != nil {
			return err
		}
		prev, node = node, mem.VA(binary.LittleEndian.Uint64(buf[:8]))
	}
	// The way back must agree too, or the tail was cut while we walked.
	last, err := v.Mem.Pointer(head + 8)
	if err != nil {
		return err
	}
	if last != prev {
		return errBroken("list", head, fmt.Sprintf("ends at %#x, but its head says %#x", uint64(prev), uint64(last)))
	}
	return nil
}

// HList walks a singly linked chain (struct hlist_head, hlist_nulls_head, or
// any chain whose link is the first word of a node) from the address of the
// pointer to its first node. A link that is null or odd (the end mark of a
// nulls list) ends it.
func (v *View) HList(head mem.VA, each func(node mem.VA) error) error {
	node, err := v.Mem.Pointer(head)
	if err != nil {
		return err
	}
	var loop brent
	for n := 0; node != 0 && node&1 == 0; n++ {
		if n >= maxList || loop.seen(node) {
			return errBroken("chain", node, fmt.Sprintf("loops or does not end (head %#x)", uint64(head)))
		}
		if err := each(node); err != nil {
			return err
		}
		if node, err = v.Mem.Pointer(node); err != nil {
			return err
		}
	}
	return nil
}

// settle runs f until it no longer meets a structure that changed under it,
// some times at most, and returns the last outcome. f starts from nothing each
// time.
func (v *View) settle(f func() error) (err error) {
	for range retries {
		if err = f(); err == nil || !transient(err) {
			return err
		}
		if c, ok := v.Phys.(*mem.Cache); ok {
			c.Forget() // what was cached is part of the contradiction
		}
	}
	return err
}

// transient reports whether err may come from the guest having changed between
// two reads, so that a second look is worth it.
func transient(err error) bool {
	return errors.Is(err, mem.ErrInconsistent) || errors.Is(err, mem.ErrNotMapped) || errors.Is(err, mem.ErrNoRAM)
}
