package ext4

import (
	"fmt"

	"vmscope/event"
	"vmscope/mem"
)

// maxPath bounds a path, in bytes. A tree may be deeper than the paths that a process may name.
const maxPath = 1 << 16

// maxPaths bounds the paths of one change, in bytes.
const maxPaths = 256 << 20

// dirPath is the path of a directory, as of some moment of an ordering. The root's is "".
type dirPath struct {
	dir   node
	moves int
	path  string
	err   error
}

// path gives the path of a name as things stand now.
func (s *ordering) path(p place) (string, error) {
	if s.bytes > maxPaths {
		return "", fmt.Errorf("transaction %d: more than %d bytes of paths: %w", s.t.tid, maxPaths, mem.ErrInconsistent)
	}
	// Names that change are often of one directory.
	if up := &s.prefix; up.dir != p.dir || up.moves != s.moves {
		*up = dirPath{dir: p.dir, moves: s.moves}
		if p.dir.ino != RootInode {
			at, err := s.locate(p.dir)
			if err == nil {
				up.path, err = joinPath(at, s.locate)
			}
			up.err = err
		}
	}
	if s.prefix.err != nil {
		return "", s.prefix.err
	}
	size := len(s.prefix.path) + 1 + len(p.name)
	s.bytes += size
	if size > maxPath {
		return "", endless(p)
	}
	return s.texts.join(s.prefix.path, p.name), nil
}

func endless(p place) error {
	return fmt.Errorf("directory inode %d: its path has no end: %w", p.dir.ino, mem.ErrInconsistent)
}

// joinPath walks from a name up to the root.
func joinPath(p place, locate func(node) (place, error)) (string, error) {
	var some [16]string
	parts := append(some[:0], p.name)
	size := len(p.name) + 1
	for d := p.dir; d.ino != RootInode; {
		up, err := locate(d)
		if err != nil {
			return "", err
		}
		parts = append(parts, up.name)
		if size += len(up.name) + 1; size > maxPath || len(parts) > maxDepth {
			return "", endless(p)
		}
		d = up.dir
	}
	path := make([]byte, 0, size)
	for i := len(parts) - 1; i >= 0; i-- {
		path = append(append(path, '/'), parts[i]...)
	}
	return string(path), nil
}

// tell makes the event of an operation.
func (s *ordering) tell(o *op, detail string) {
	var path, old string
	var err error
	switch o.kind {
	case opRemove:
		path, err = s.path(o.from)
	case opRename:
		if old, err = s.path(o.from); err == nil {
			path, err = s.path(o.to)
		}
	case opLink:
		path, err = s.path(o.to)
		if p, ok := o.file.name(); ok && err == nil {
			old, _ = s.path(p)
		}
	case opCreate:
		path, err = s.path(o.to)
	}
	if err != nil {
		s.t.untold(err)
		return
	}
	e := s.t.event(o.what(), o.in)
	e.Path, e.OldPath, e.Detail = path, old, detail
	switch e.Op {
	case event.RmFile, event.RmDir:
		e.Attr.Nlink = 0
		if c := s.t.inodes.of(o.ino); c != nil && c.stays() {
			e.Attr.Nlink = c.new.Links
		}
	case event.Symlink:
		e.Target, err = s.t.f.sb.Target(s.t.new, o.in)
		s.t.fail(err)
	case event.Mknod:
		e.Device = o.in.Rdev()
	}
	if o.in.Encrypted() && detail == "" {
		e.Detail = event.Encrypted
	}
}

// what is the event that an operation is told as.
func (o *op) what() event.Op {
	switch o.kind {
	case opRemove:
		if o.in.IsDir() {
			return event.RmDir
		}
		return event.RmFile
	case opRename:
		return event.Rename
	case opLink:
		return event.Link
	}
	switch o.in.Mode & sIFMT {
	case sIFDIR:
		return event.MkDir
	case sIFREG:
		return event.MkFile
	case sIFLNK:
		return event.Symlink
	}
	return event.Mknod
}
