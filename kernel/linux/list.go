package linux

import (
	"errors"
	"fmt"
	"time"

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

// maxRepairs bounds how often one walk of a list steps aside because the list
// changed just there.
const maxRepairs = 1 << 10

// List walks the circular doubly linked list (struct list_head) with the given
// head and calls each with the address of every node. The list must hold
// together: next->prev is the node we came from, and it ends at its head. What
// a running guest adds or removes where the walk just is does not disturb it:
// of a list that changes, every node that stays in it is given, and others may
// be.
//
// A list that does not hold together is an ErrInconsistent at the node where it
// broke; the nodes before have been given to each. An error of each ends the
// walk.
func (v *View) List(head mem.VA, each func(node mem.VA) error) error {
	near := v.Mem.Near()
	return walk(&near, head, each)
}

// walk is List, for an each that reads through the same Near: the nodes lie in
// the objects that it reads.
func walk(near *mem.Near, head mem.VA, each func(node mem.VA) error) error {
	node, err := near.Pointer(head)
	if err != nil {
		return err
	}
	word := mem.VA(near.PointerSize())
	// The last two nodes that were passed: of them the last may leave the list
	// before the next is looked at.
	prev, prev2 := head, mem.VA(0)
	var loop brent
	for n, repairs := 0, 0; ; {
		back, err := near.Pointer(node + word)
		if err != nil {
			return err
		}
		if back != prev {
			now, err := near.Pointer(prev)
			switch {
			case err != nil:
				return err
			case repairs == maxRepairs:
			case now != node: // something came between, or node left
				if on, err := near.Pointer(prev + word); err == nil && on == prev2 || prev == head {
					node = now
					repairs++
					continue
				}
			case back == prev2 && prev != head && prev != node: // prev left
				if to, err := near.Pointer(prev2); err == nil && to == node {
					prev, prev2 = prev2, 0
					repairs++
					continue
				}
			}
			if node == head {
				return errBroken("list", head, fmt.Sprintf("ends at %#x, but its head says %#x", uint64(prev), uint64(back)))
			}
			return errBroken("list", node, fmt.Sprintf("prev is %#x, came from %#x", uint64(back), uint64(prev)))
		}
		if node == head {
			return nil
		}
		switch {
		case n >= maxList:
			return errBroken("list", head, fmt.Sprintf("more than %d nodes", maxList))
		case loop.seen(node):
			return errBroken("list", node, fmt.Sprintf("loops without passing its head %#x", uint64(head)))
		}
		n++
		if err := each(node); err != nil {
			return err
		}
		prev2, prev = prev, node
		if node, err = near.Pointer(node); err != nil {
			return err
		}
	}
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

// maxNaps bounds how often a View waits for its guest, so that one full of
// contradictions is not waited for again and again.
const maxNaps = 100

// settle runs f until it no longer meets a structure that changed under it,
// some times at most, and returns the last outcome. f starts from nothing each
// time. A guest's vCPU may have lost its host CPU in the middle of an update:
// the later attempts come after a moment.
func (v *View) settle(f func() error) (err error) {
	for i := range retries {
		if err = f(); err == nil || !transient(err) {
			return err
		}
		if i >= retries/2 && v.naps.Add(1) <= maxNaps {
			time.Sleep(time.Millisecond)
		}
		v.forget() // what was cached is part of the contradiction
	}
	return err
}

// transient reports whether err may come from the guest having changed between
// two reads, so that a second look is worth it.
func transient(err error) bool {
	return errors.Is(err, mem.ErrInconsistent) || errors.Is(err, mem.ErrNotMapped) || errors.Is(err, mem.ErrNoRAM)
}
