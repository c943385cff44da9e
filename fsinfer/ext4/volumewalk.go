package ext4

import (
	"fmt"
	"io/fs"

	"vmscope/mem"
)

// maxWalkPath bounds paths of a Walk, bytes: directories of directories can go on for as long as a disk has inodes.
const maxWalkPath = 64 << 10

// Walk visits path and all below it, each directory before what is in it. visit gets the path, and the inode that lies
// there, whose Kind is what counts, not that of the entry. What cannot be read is visited with the error, and an inode of
// which only Number may be set: an entry with that of its inode, a directory once more with that of its entries. A
// directory that is met for the second time is visited with mem.ErrInconsistent and not entered. visit ends the walk by an
// error, which Walk gives; fs.SkipDir passes over a directory's content, fs.SkipAll ends the walk without an error. Symbolic
// links are not followed, but in path.
func (v *Volume) Walk(path string, visit func(path string, in *Inode, err error) error) error {
	in, err := v.Stat(path)
	if err != nil {
		return err
	}
	w := walk{v: v, visit: visit, seen: map[uint32]bool{}, most: maxHeld}
	if err = w.inode(cleanPath(path), &in); err == fs.SkipAll || err == fs.SkipDir {
		err = nil
	}
	return err
}

type walk struct {
	v     *Volume
	visit func(string, *Inode, error) error
	seen  map[uint32]bool // directories; one entered is one that is on the disk
	held  int             // entries, of all directories that it is in
	most  int
}

// maxHeld bounds the entries that a Walk holds: a disk that lies has directories that name one block again and again.
const maxHeld = 1 << 18

func (w *walk) inode(path string, in *Inode) error {
	if !in.IsDir() {
		return w.visit(path, in, nil)
	}
	if w.seen[in.Number] {
		return skipped(w.visit(path, in, fmt.Errorf("ext4: directory %d has two names: %w", in.Number, mem.ErrInconsistent)))
	}
	w.seen[in.Number] = true
	if err := w.visit(path, in, nil); err != nil {
		return skipped(err)
	}
	prefix := path
	if path != "/" {
		prefix += "/"
	}
	// What is in it is visited when all of it was read, so that what a machine that runs does meanwhile shows as little as can
	// be; a part of it where there is too much to hold.
	var list []Entry
	var stop error
	some := func() bool {
		for _, e := range list {
			if stop = w.entry(prefix+e.Name, e); stop != nil {
				break
			}
		}
		w.held -= len(list)
		list = list[:0]
		return stop == nil
	}
	err := w.v.Entries(in, func(e Entry) bool {
		list = append(list, e)
		w.held++
		return w.held < w.most || some()
	})
	if err != nil && stop == nil {
		stop = w.visit(path, in, err)
	}
	if stop == nil {
		some()
	} else {
		w.held -= len(list)
	}
	return skipped(stop)
}

// skipped makes of a directory that is to be passed over nothing.
func skipped(err error) error {
	if err == fs.SkipDir {
		return nil
	}
	return err
}

func (w *walk) entry(path string, e Entry) error {
	in, err := w.v.used(e.Ino)
	if err == nil && len(path) > maxWalkPath {
		err = fmt.Errorf("ext4: path of %d bytes: %w", len(path), mem.ErrInconsistent)
	}
	if err != nil {
		in.Number = e.Ino
		return w.visit(path, &in, err)
	}
	return w.inode(path, &in)
}
