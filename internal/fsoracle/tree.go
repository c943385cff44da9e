package fsoracle

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// A node is a name. The root has none and is its own parent.
type node struct {
	name     string
	parent   *node
	children map[string]*node // of a directory
	inode    *inode
}

// An inode is what hard links share.
type inode struct {
	number     uint64
	generation uint32
	attr       event.Attr // Nlink is not kept but counted
	target     string
	device     uint64
	names      int

	// Of a directory: the guest miscounts its links (see Recovered), and how many directories fast commits took out of it.
	miscounted bool
	taken      uint32

	// What no event tells: taken from the guest, to see whether an event said that it changes.
	sum    string
	xattrs []wire.Xattr
	known  bool // sum and xattrs were adopted; false for what was made since
	wrote  bool // WRITE or TRUNCATE since then
	xattr  bool // XATTR since then
}

// nlink is the number of links that the inode ought to have by the tree's shape.
func (n *node) nlink() uint32 {
	if n.inode.attr.Kind != event.Dir {
		return uint32(n.inode.names)
	}
	links := uint32(2)
	for _, c := range n.children {
		if c.inode.attr.Kind == event.Dir {
			links++
		}
	}
	return links
}

// maxDirLinks is EXT4_LINK_MAX (fs/ext4/ext4.h): a directory with more links says 1.
const maxDirLinks = 65000

func (n *node) nlinkIs(said uint32) bool {
	want := n.nlink()
	return said == want || n.inode.miscounted || n.inode.attr.Kind == event.Dir && said == 1 && want >= maxDirLinks
}

// path tells where the node is now.
func (n *node) path() string {
	var parts []string
	for ; n.parent != n && n.parent != nil; n = n.parent {
		parts = append(parts, n.name)
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

func (n *node) below(top *node) bool {
	for ; n != top; n = n.parent {
		if n.parent == n || n.parent == nil {
			return false
		}
	}
	return true
}

func (n *node) attach(parent *node, name string) {
	n.parent, n.name = parent, name
	parent.children[name] = n
}

func (n *node) detach() {
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
}

// walk visits the node and all below it, names in byte order.
func (n *node) walk(visit func(*node)) {
	visit(n)
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n.children[name].walk(visit)
	}
}

func (n *node) file() wire.File {
	i := n.inode
	return wire.File{
		Path: []byte(n.path()), Inode: i.number, Generation: i.generation, Kind: string(i.attr.Kind), Mode: i.attr.Mode,
		UID: i.attr.UID, GID: i.attr.GID, Size: i.attr.Size, Nlink: n.nlink(), Target: []byte(i.target), Device: i.device,
		Sum: i.sum, Xattrs: i.xattrs,
	}
}

// plant makes the tree that a guest told.
func plant(files []wire.File) (*node, map[uint64]*inode, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b wire.File) int { // a directory before what is in it
		return cmp.Or(cmp.Compare(bytes.Count(a.Path, slash), bytes.Count(b.Path, slash)), bytes.Compare(a.Path, b.Path))
	})
	if len(files) == 0 || string(files[0].Path) != "/" {
		return nil, nil, fmt.Errorf("fsoracle: a tree without a root")
	}
	var root *node
	inodes := map[uint64]*inode{}
	for _, f := range files {
		i := inodes[f.Inode]
		if i == nil {
			i = &inode{
				number: f.Inode, generation: f.Generation, target: string(f.Target), device: f.Device,
				attr: event.Attr{Kind: event.Kind(f.Kind), Mode: f.Mode, UID: f.UID, GID: f.GID, Size: f.Size},
			}
			inodes[f.Inode] = i
		} else if f.Kind == string(event.Dir) || f.Kind != string(i.attr.Kind) {
			return nil, nil, fmt.Errorf("fsoracle: %q shares inode %d with what it cannot", f.Path, f.Inode)
		}
		i.names++
		n := &node{inode: i}
		if i.attr.Kind == event.Dir {
			n.children = map[string]*node{}
		}
		if string(f.Path) == "/" {
			root = n
			root.parent = root
			continue
		}
		dir, name, err := split(string(f.Path))
		if err != nil {
			return nil, nil, err
		}
		parent := find(root, dir)
		if parent == nil || parent.children == nil || parent.children[name] != nil {
			return nil, nil, fmt.Errorf("fsoracle: %q has no place in its tree", f.Path)
		}
		n.attach(parent, name)
	}
	for _, f := range files {
		if n := find(root, string(f.Path)); n.children != nil && !n.nlinkIs(f.Nlink) {
			n.inode.miscounted = true // by a recovery before
		}
	}
	return root, inodes, nil
}

var slash = []byte("/")

// split cuts a path at its last slash. Only a path in its plain form is one.
func split(path string) (dir, name string, err error) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 || path[0] != '/' || i == len(path)-1 || strings.Contains(path, "//") {
		return "", "", fmt.Errorf("%q is no plain path", path)
	}
	name = path[i+1:]
	if name == "." || name == ".." || strings.ContainsRune(path, 0) {
		return "", "", fmt.Errorf("%q is no plain path", path)
	}
	if i == 0 {
		return "/", name, nil
	}
	return path[:i], name, nil
}

// find returns the node at a path, or nil.
func find(root *node, path string) *node {
	if path == "/" {
		return root
	}
	n := root
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}
