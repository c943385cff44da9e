package ext4

import (
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"unicode/utf8"
)

// maxLinks is how many symbolic links a path may lead over, as in Linux.
const maxLinks = 40

func notDir(in *Inode) error { return fmt.Errorf("inode %d: %w", in.Number, syscall.ENOTDIR) }

// Stat finds what a path leads to, symbolic links followed. Errors are *fs.PathError: fs.ErrNotExist, syscall.ENOTDIR,
// syscall.ELOOP after 40 links, or what kept the volume from being read.
func (v *Volume) Stat(path string) (Inode, error) { return v.find("stat", path, true) }

// Lstat is Stat, but for a symbolic link at the path's end, which is given itself.
func (v *Volume) Lstat(path string) (Inode, error) { return v.find("lstat", path, false) }

// Readlink is where the symbolic link at path leads.
func (v *Volume) Readlink(path string) (string, error) {
	in, err := v.find("readlink", path, false)
	if err != nil {
		return "", err
	}
	if !in.IsSymlink() {
		return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.EINVAL}
	}
	target, err := v.Target(&in)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	return target, nil
}

func (v *Volume) find(op, path string, follow bool) (Inode, error) {
	in, err := v.resolve(path, follow)
	if err != nil {
		return Inode{}, &fs.PathError{Op: op, Path: path, Err: err}
	}
	return in, nil
}

// resolve walks a path. dirs is the way from the root to where it stands, so that ".." does not depend on what a
// directory says of its parent.
func (v *Volume) resolve(path string, follow bool) (Inode, error) {
	root, err := v.used(RootInode)
	if err != nil {
		return root, err
	}
	dirs := []Inode{root}
	at := root
	links := 0
	for rest := path; ; {
		var name string
		// A path that ends in '/' is of a directory, so its last link is followed.
		rest = strings.TrimLeft(rest, "/")
		name, rest, _ = strings.Cut(rest, "/")
		last := rest == "" && !strings.HasSuffix(path, "/")
		switch name {
		case "":
			return at, nil
		case ".", "..":
			if !at.IsDir() {
				return at, syscall.ENOTDIR
			}
			if name == ".." && len(dirs) > 1 {
				dirs = dirs[:len(dirs)-1]
			}
			at = dirs[len(dirs)-1]
			continue
		}
		if !at.IsDir() {
			return at, syscall.ENOTDIR
		}
		if at, err = v.lookup(&at, name); err != nil {
			return at, err
		}
		switch {
		case at.IsDir():
			dirs = append(dirs, at)
		case at.IsSymlink() && (!last || follow):
			if links++; links > maxLinks {
				return at, syscall.ELOOP
			}
			target, err := v.Target(&at)
			if err != nil {
				return at, err
			}
			if target == "" {
				return at, fs.ErrNotExist
			}
			if target[0] == '/' {
				dirs = dirs[:1]
			}
			at = dirs[len(dirs)-1]
			rest = target + "/" + rest
			if last {
				rest = target
			}
		case rest != "" || !last:
			return at, syscall.ENOTDIR
		}
	}
}

// lookup finds a name in a directory. In a casefolded one, a name that differs in case is found if none is the same; case
// is folded simply, letter by letter, where Linux takes the whole of Unicode's normalization too.
func (v *Volume) lookup(dir *Inode, name string) (Inode, error) {
	fold := dir.Flags&FlagCasefold != 0 && !dir.Encrypted() && utf8.ValidString(name)
	var same, folded uint32
	err := v.dirents(dir, func(d Dirent) bool {
		switch {
		case dir.Encrypted():
			if EncryptedName(d.Name) == name {
				same = d.Ino
			}
		case string(d.Name) == name:
			same = d.Ino
		case fold && folded == 0 && strings.EqualFold(string(d.Name), name):
			folded = d.Ino
		}
		return same == 0
	})
	if same == 0 {
		same = folded
	}
	if same != 0 {
		return v.used(same)
	}
	if err != nil {
		return Inode{}, err // the name may be in what could not be read
	}
	return Inode{}, fs.ErrNotExist
}

// cleanPath gives a path the one form in which Walk tells it. ".." stays: what is before it may be a symbolic link.
func cleanPath(path string) string {
	var parts []string
	for p := range strings.SplitSeq(path, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return "/" + strings.Join(parts, "/")
}
