package fsoracle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// Compare sets the tree beside the one that the guest told at the same moment and returns a line for each difference:
// path, inode, generation, kind, mode, owner, size (but of directories, which no event tells), number of links, target and
// device. Content and attributes that differ from those of the last guest's tree must have been announced by an event.
func (r *Replayer) Compare(truth []wire.File) []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	seen := map[*node]bool{}
	changed := map[*inode]bool{} // told of already, by another name
	for _, t := range truth {
		n := find(r.root, string(t.Path))
		if n == nil {
			say("missing: %s %q, inode %d", t.Kind, t.Path, t.Inode)
			continue
		}
		seen[n] = true
		if diff := differences(n, &t); diff != "" {
			say("different: %q: %s", t.Path, diff)
		}
		i := n.inode
		if !i.known || i.number != t.Inode || changed[i] {
			continue
		}
		if t.Sum != i.sum && t.Sum != "" && i.sum != "" && !i.wrote {
			changed[i] = true
			say("silent: %q: its content changed, and there was neither WRITE nor TRUNCATE", t.Path)
		}
		if !i.xattr && !slices.EqualFunc(t.Xattrs, i.xattrs, sameXattr) {
			changed[i] = true
			say("silent: %q: its attributes changed from %s to %s, and there was no XATTR", t.Path, xattrText(i.xattrs), xattrText(t.Xattrs))
		}
	}
	r.root.walk(func(n *node) {
		if !seen[n] {
			say("extra: %s %q, inode %d", n.inode.attr.Kind, n.path(), n.inode.number)
		}
	})
	return lines
}

// Adopt takes over from the guest's tree what no event tells, content and attributes, so that the next Compare knows
// what changed since this moment.
func (r *Replayer) Adopt(truth []wire.File) {
	for _, t := range truth {
		if n := find(r.root, string(t.Path)); n != nil && n.inode.number == t.Inode {
			i := n.inode
			i.sum, i.xattrs, i.known, i.wrote, i.xattr = t.Sum, t.Xattrs, true, false, false
		}
	}
}

func sameXattr(a, b wire.Xattr) bool {
	return string(a.Name) == string(b.Name) && a.Len == b.Len && a.Sum == b.Sum
}

func xattrText(list []wire.Xattr) string {
	var parts []string
	for _, x := range list {
		parts = append(parts, fmt.Sprintf("%q (%d bytes, %s)", x.Name, x.Len, x.Sum))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

// differences names the fields that differ, with what the events and what the guest say.
func differences(n *node, t *wire.File) string {
	var parts []string
	add := func(field string, ours, theirs any) {
		parts = append(parts, fmt.Sprintf("%s %v, the guest says %v", field, ours, theirs))
	}
	f := n.file()
	if f.Inode != t.Inode {
		add("inode", f.Inode, t.Inode)
	} else if f.Generation != t.Generation {
		add("generation", f.Generation, t.Generation)
	}
	if f.Kind != t.Kind {
		add("kind", f.Kind, t.Kind)
		return strings.Join(parts, "; ")
	}
	if f.Mode != t.Mode {
		add("mode", fmt.Sprintf("%o", f.Mode), fmt.Sprintf("%o", t.Mode))
	}
	if f.UID != t.UID || f.GID != t.GID {
		add("owner", fmt.Sprint(f.UID, ":", f.GID), fmt.Sprint(t.UID, ":", t.GID))
	}
	if f.Size != t.Size && f.Kind != string(event.Dir) {
		add("size", f.Size, t.Size)
	}
	if !n.nlinkIs(t.Nlink) {
		add("links", f.Nlink, t.Nlink)
	}
	if string(f.Target) != string(t.Target) {
		add("target", fmt.Sprintf("%q", f.Target), fmt.Sprintf("%q", t.Target))
	}
	if f.Device != t.Device {
		add("device", fmt.Sprintf("%#x", f.Device), fmt.Sprintf("%#x", t.Device))
	}
	return strings.Join(parts, "; ")
}
