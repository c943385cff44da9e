package fsoracle

import (
	"fmt"
	"slices"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// Finding is something that cannot be, about one event.
type Finding struct {
	Event event.Event
	Why   string
}

func (f Finding) String() string {
	e := f.Event
	text := fmt.Sprintf("event %d: %s %q", e.Seq, e.Op, e.Path)
	if e.OldPath != "" {
		text = fmt.Sprintf("event %d: %s %q -> %q", e.Seq, e.Op, e.OldPath, e.Path)
	}
	return fmt.Sprintf("%s (inode %d, transaction %d, %s): %s", text, e.Inode, e.TID, e.Source, f.Why)
}

// Replayer does to a tree what events tell. An event that is impossible is a Finding; the replayer then does what comes
// nearest to it, so that one mistake is not told a hundred times.
//
// What it holds against events, beside what stands in CONTRACT.md: an inode number that is linked somewhere is not made
// anew; inode, generation and kind are those of the name; hard links share what they are; the attributes that events
// of a transaction carry are those that the inodes have when the transaction has been told, with the number of links
// counted from the tree's shape. An operation changes only what its name says: CHMOD the mode and
// nothing else. A CHMOD or CHOWN changes something.
type Replayer struct {
	root   *node
	inodes map[uint64]*inode // those that have a name
	seq    uint64

	ring []event.Event // renames onto each other, not yet done

	// What the transaction that is being told said of inodes last; nil: nothing that can be checked.
	batch   batch
	claimed map[*inode]*claim
	order   []*inode // of claimed
}

type batch struct {
	tid    uint64
	source event.Source
}

type claim struct {
	event event.Event
	node  *node
}

// New starts with a tree. If it is one that the guest told, with content and attributes, Adopt takes those over.
func New(tree []wire.File) (*Replayer, error) {
	root, inodes, err := plant(tree)
	if err != nil {
		return nil, err
	}
	return &Replayer{root: root, inodes: inodes, claimed: map[*inode]*claim{}}, nil
}

// Tree is the tree as it is after the events so far.
func (r *Replayer) Tree() []wire.File {
	var list []wire.File
	r.root.walk(func(n *node) { list = append(list, n.file()) })
	return list
}

// Apply takes the next event. Events bear rising numbers, or all of them none (0).
func (r *Replayer) Apply(e event.Event) []Finding {
	a := &applying{Replayer: r, event: e}
	if r.seq != 0 && e.Seq != r.seq+1 {
		a.wrong("its number follows %d", r.seq)
	}
	r.seq = e.Seq
	if len(r.ring) > 0 && (e.Op != event.Rename || e.TID != r.ring[0].TID) {
		a.openRing()
	}
	if b := (batch{e.TID, e.Source}); b != r.batch {
		a.settle()
		r.batch = b
	}
	switch e.Op {
	case event.MkDir, event.MkFile, event.Symlink, event.Mknod:
		a.create()
	case event.Link:
		a.link()
	case event.RmDir, event.RmFile:
		a.remove()
	case event.Rename:
		a.rename()
	case event.Write, event.Truncate, event.Chmod, event.Chown, event.Xattr:
		a.change()
	case event.Mount, event.Unmount, event.Attached:
	case event.Lost:
		a.wrong("events were lost: %s", e.Detail)
	default:
		a.wrong("there is no such operation")
	}
	return a.findings
}

// Finish says that no more events come: what was begun must be complete.
func (r *Replayer) Finish() []Finding {
	a := &applying{Replayer: r}
	if len(r.ring) > 0 {
		a.event = r.ring[0]
		a.openRing()
	}
	a.settle()
	return a.findings
}

// applying is one event on its way into the tree.
type applying struct {
	*Replayer
	event    event.Event
	findings []Finding
}

func (a *applying) wrong(format string, args ...any) {
	a.findings = append(a.findings, Finding{a.event, fmt.Sprintf(format, args...)})
}

// place finds where a new name goes; nil if it can go nowhere.
func (a *applying) place(path string) (parent *node, name string) {
	dir, name, err := split(path)
	if err != nil {
		a.wrong("%v", err)
		return nil, ""
	}
	parent = find(a.root, dir)
	switch {
	case parent == nil:
		a.wrong("directory %q does not exist", dir)
		return nil, ""
	case parent.children == nil:
		a.wrong("%q is a %s, not a directory", dir, parent.inode.attr.Kind)
		return nil, ""
	}
	return parent, name
}

// free is place for a name that must not be there; one that is there makes room.
func (a *applying) free(path string) (parent *node, name string) {
	parent, name = a.place(path)
	if parent != nil && parent.children[name] != nil {
		a.wrong("%q exists", path)
		a.drop(parent.children[name])
	}
	return parent, name
}

// existing finds what the event is about and holds the event's identity against it; nil if there is nothing.
func (a *applying) existing(path string) *node {
	n := find(a.root, path)
	if n == nil {
		a.wrong("%q does not exist", path)
		return nil
	}
	e, i := &a.event, n.inode
	if e.Inode != i.number {
		a.wrong("%q is inode %d", path, i.number)
	} else if e.Generation != i.generation {
		a.wrong("generation %d, but inode %d is of generation %d", e.Generation, i.number, i.generation)
	}
	return n
}

// drop removes a name with all below it.
func (a *applying) drop(n *node) {
	n.walk(func(n *node) {
		if n.inode.names--; n.inode.names == 0 && a.inodes[n.inode.number] == n.inode {
			delete(a.inodes, n.inode.number)
		}
	})
	n.detach()
}

// kinds are what the operations that create may create.
var kinds = map[event.Op][]event.Kind{
	event.MkDir: {event.Dir}, event.MkFile: {event.File}, event.Symlink: {event.Lnk},
	event.Mknod: {event.CharDev, event.BlockDev, event.FIFO, event.Socket},
}

func (a *applying) create() {
	e := &a.event
	parent, name := a.free(e.Path)
	if parent == nil {
		return
	}
	i := &inode{number: e.Inode, generation: e.Generation, target: e.Target, device: e.Device, names: 1}
	switch {
	case e.Attr == nil:
		a.wrong("no attributes")
		i.attr.Kind = kinds[e.Op][0]
	case !slices.Contains(kinds[e.Op], e.Attr.Kind):
		a.wrong("makes a %s", e.Attr.Kind)
		i.attr.Kind = kinds[e.Op][0]
	default:
		i.attr = *e.Attr
	}
	if other := a.inodes[e.Inode]; e.Inode == 0 || other != nil {
		a.wrong("inode %d is in use", e.Inode)
	}
	a.inodes[e.Inode] = i
	n := &node{inode: i}
	if i.attr.Kind == event.Dir {
		n.children = map[string]*node{}
	}
	n.attach(parent, name)
	a.claim(n)
}

func (a *applying) link() {
	e := &a.event
	i := a.inodes[e.Inode]
	switch {
	case i == nil:
		a.wrong("inode %d has no name to link", e.Inode)
		return
	case i.attr.Kind == event.Dir:
		a.wrong("links a directory")
		return
	case i.generation != e.Generation:
		a.wrong("inode %d is of generation %d", e.Inode, i.generation)
	}
	if e.OldPath != "" {
		if old := find(a.root, e.OldPath); old == nil || old.inode != i {
			a.wrong("%q is no name of inode %d", e.OldPath, e.Inode)
		}
	}
	parent, name := a.free(e.Path)
	if parent == nil {
		return
	}
	n := &node{inode: i}
	i.names++
	n.attach(parent, name)
	a.claim(n)
}

func (a *applying) remove() {
	n := a.existing(a.event.Path)
	if n == nil {
		return
	}
	isDir := n.inode.attr.Kind == event.Dir
	switch {
	case n == a.root:
		a.wrong("removes the root")
		return
	case isDir != (a.event.Op == event.RmDir):
		a.wrong("is a %s", n.inode.attr.Kind)
	case len(n.children) > 0:
		a.wrong("%d names are in it", len(n.children))
	}
	if isDir && a.event.Source == event.FastCommit {
		n.parent.inode.taken++
	}
	a.drop(n)
	if n.inode.names > 0 {
		a.claim(n)
	}
}

func (a *applying) change() {
	e := &a.event
	n := a.existing(e.Path)
	if n == nil {
		return
	}
	i := n.inode
	if e.Attr == nil && e.Op != event.Xattr {
		a.wrong("no attributes")
		return
	}
	switch e.Op {
	case event.Write, event.Truncate:
		if i.attr.Kind != event.File {
			a.wrong("is a %s", i.attr.Kind)
			return
		}
		if e.Offset < 0 || e.Length < 0 {
			a.wrong("%d bytes from %d on", e.Length, e.Offset)
		}
		i.attr.Size, i.wrote = e.Attr.Size, true
	case event.Chmod:
		if i.attr.Mode == e.Attr.Mode {
			a.wrong("the mode is %o already", e.Attr.Mode)
		}
		i.attr.Mode = e.Attr.Mode
	case event.Chown:
		if i.attr.UID == e.Attr.UID && i.attr.GID == e.Attr.GID {
			a.wrong("the owner is %d:%d already", e.Attr.UID, e.Attr.GID)
		}
		i.attr.UID, i.attr.GID = e.Attr.UID, e.Attr.GID
	case event.Xattr:
		i.xattr = true
	}
	a.claim(n)
}

// claim keeps what the event says of an inode until the transaction has been told.
func (a *applying) claim(n *node) {
	if a.event.TID == 0 {
		return // no transaction: no moment is known at which it would have to be true
	}
	if a.claimed[n.inode] == nil {
		a.order = append(a.order, n.inode)
	}
	a.claimed[n.inode] = &claim{a.event, n}
}

// settle checks what the events of the transaction that ends here claimed.
func (a *applying) settle() {
	now := a.event
	for _, i := range a.order {
		c := a.claimed[i]
		said := c.event.Attr
		if said == nil || i.names == 0 {
			continue
		}
		a.event = c.event
		a.compareAttr(i, said)
		// A fast commit does not tell of the directory around what it makes.
		linked := a.batch.source != event.FastCommit || said.Kind != event.Dir
		if linked && !c.node.nlinkIs(said.Nlink) {
			a.wrong("%d links at the end of the transaction, the tree says %d", said.Nlink, c.node.nlink())
		}
	}
	a.event = now
	clear(a.claimed)
	a.order = a.order[:0]
}

func (a *applying) compareAttr(i *inode, said *event.Attr) {
	is := i.attr
	switch {
	case said.Kind != is.Kind:
		a.wrong("a %s at the end of the transaction, by the events a %s", said.Kind, is.Kind)
	case said.Mode != is.Mode:
		a.wrong("mode %o at the end of the transaction, by the events %o", said.Mode, is.Mode)
	case said.UID != is.UID || said.GID != is.GID:
		a.wrong("owner %d:%d at the end of the transaction, by the events %d:%d", said.UID, said.GID, is.UID, is.GID)
	case said.Size != is.Size && is.Kind != event.Dir:
		a.wrong("size %d at the end of the transaction, by the events %d", said.Size, is.Size)
	}
}
