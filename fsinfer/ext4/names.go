package ext4

import (
	"cmp"
	"slices"
	"strings"

	"vmscope/event"
)

// op is one net change of a name.
type op struct {
	kind     opKind
	ino      uint32
	from, to place
	in       *Inode // state behind the change; of a removal, before it
	sole     bool   // no other operation takes the name that it frees
	ordered
}

type opKind uint8

const (
	opRemove opKind = iota
	opRename
	opCreate
	opLink
)

// takes says whether the operation needs a name to be free.
func (o *op) takes() bool { return o.kind != opRemove }

// frees says whether a name is free behind the operation.
func (o *op) frees() bool { return o.kind == opRemove || o.kind == opRename }

// names pairs names that went with names that came, and tells them in an order in which each step is possible.
func (t *txn) names() {
	if len(t.removed) == 0 && len(t.added) == 0 {
		return
	}
	removed, added := sorted(t.removed, &t.room.removedInOrder), sorted(t.added, &t.room.addedInOrder)
	ops, inodes := slices.Grow(t.room.ops, max(len(removed), len(added))), 0 // what is renamed is in both
	for gone, come := removed, added; len(gone) > 0 || len(come) > 0; inodes++ {
		var ino uint32
		switch {
		case len(gone) == 0:
			ino = come[0].ino
		case len(come) == 0:
			ino = gone[0].ino
		default:
			ino = min(gone[0].ino, come[0].ino)
		}
		i, j := leading(gone, ino), leading(come, ino)
		ops = t.pair(ops, ino, gone[:i:i], come[:j:j])
		gone, come = gone[i:], come[j:]
	}
	t.events = slices.Grow(t.events, len(ops))
	t.room.ops = ops
	t.order = newOrdering(t, ops, inodes)
	t.order.run()
}

// sorted puts edits in the order of inodes, and those of each inode in one that is always the same. It may take room for them.
func sorted(edits []edit, room *[]edit) []edit {
	if slices.IsSortedFunc(edits, compareEdits) {
		return edits
	}
	// Edits are large, and most inodes have one.
	keys := make([]uint64, len(edits))
	for i := range edits {
		keys[i] = uint64(edits[i].ino)<<32 | uint64(i)
	}
	*room = slices.Grow(*room, len(edits))[:len(edits)]
	out := *room
	for i, k := range radixSorted(keys) {
		out[i] = edits[uint32(k)]
	}
	for rest := out; len(rest) > 0; {
		n := leading(rest, rest[0].ino)
		if n > 1 {
			slices.SortFunc(rest[:n], compareEdits)
		}
		rest = rest[n:]
	}
	return out
}

// radixSorted sorts by the upper half of keys, and leaves in their order those that are alike there. It may use keys as it likes.
func radixSorted(keys []uint64) []uint64 {
	differ := uint64(0)
	for _, k := range keys {
		differ |= k ^ keys[0]
	}
	const digit = 11 // bits
	to := make([]uint64, len(keys))
	for shift := 32; differ>>shift != 0; shift += digit {
		var at [1 << digit]int
		for _, k := range keys {
			at[k>>shift&(1<<digit-1)]++
		}
		sum := 0
		for i, n := range at {
			at[i], sum = sum, sum+n
		}
		for _, k := range keys {
			d := k >> shift & (1<<digit - 1)
			to[at[d]] = k
			at[d]++
		}
		keys, to = to, keys
	}
	return keys
}

func compareEdits(a, b edit) int {
	return cmp.Or(cmp.Compare(a.ino, b.ino), cmp.Compare(a.dir.ino, b.dir.ino), strings.Compare(a.name, b.name))
}

// leading counts the first edits of one inode.
func leading(edits []edit, ino uint32) int {
	n := 0
	for n < len(edits) && edits[n].ino == ino {
		n++
	}
	return n
}

// pair makes of one inode's edits what the guest did, and appends it to ops.
func (t *txn) pair(ops []op, ino uint32, gone, come []edit) []op {
	old, now, err := t.states(ino)
	if err != nil {
		t.fail(err)
	}
	one := live(old) && live(now) && same(old, now)
	if one && len(gone) == 0 && t.f.parents.of(ino) == 0 && t.source != event.Home {
		// A file without a name got one (O_TMPFILE and linkat), or one whose inode a fast commit told before its name.
		one = false
	}
	if t.source == event.Home {
		// An inode may have come before its first name, or gone before its last.
		id, named := t.f.home.files[ino]
		one = named && live(now) && id == identityOf(now)
		if named && id != identityOf(old) {
			old = &Inode{Number: ino, Generation: id.generation, Mode: id.kind}
		}
	}
	first := opCreate
	if one {
		first = opLink
		if now.IsDir() && len(come) > len(gone) && len(gone) == 0 {
			// A directory has one name. The other is one that the disk will lose soon, or has lost unseen.
			if p, err := t.f.dirPlace(t.old, ino); err == nil {
				gone = append(gone, edit{place: p, ino: ino})
			}
		}
		n := min(len(gone), len(come))
		for i := range n {
			ops = append(ops, op{kind: opRename, ino: ino, from: gone[i].place, to: come[i].place, in: now, sole: gone[i].sole})
		}
		gone, come = gone[n:], come[n:]
	}
	for i := range gone {
		ops = append(ops, op{kind: opRemove, ino: ino, from: gone[i].place, in: old, sole: gone[i].sole})
	}
	for i := range come {
		kind := first
		if i > 0 {
			kind = opLink
		}
		ops = append(ops, op{kind: kind, ino: ino, to: come[i].place, in: now})
	}
	return ops
}

// states gives an inode before and behind the change.
func (t *txn) states(ino uint32) (old, now *Inode, err error) {
	if c := t.inodes.of(ino); c != nil {
		return &c.old, &c.new, nil
	}
	if t.scratch == nil {
		t.scratch = make([]byte, t.f.sb.BlockSize)
	}
	in, err := t.old.inode(t.scratch, ino)
	if err != nil {
		in.Number = ino
	}
	in.InBody = nil
	return &in, &in, err
}
