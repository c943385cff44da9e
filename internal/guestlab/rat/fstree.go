package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

// fileKinds are the words of package event for the types of a mode.
var fileKinds = map[uint32]string{
	syscall.S_IFREG: "file", syscall.S_IFDIR: "dir", syscall.S_IFLNK: "symlink", syscall.S_IFCHR: "chardev",
	syscall.S_IFBLK: "blockdev", syscall.S_IFIFO: "fifo", syscall.S_IFSOCK: "socket",
}

// fstree tells all that lies below a directory, a directory before what is in it, names in byte order.
func fstree(req *wire.FSTree) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	var walk func(path string) error
	walk = func(path string) error {
		f, err := describe(string(req.Dir)+path, req.Content)
		if err != nil {
			return err
		}
		f.Path = []byte(path)
		if path == "" {
			f.Path = []byte("/")
		}
		if err := enc.Encode(f); err != nil || f.Kind != "dir" {
			return err
		}
		names, err := readNames(string(req.Dir) + path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := walk(path + "/" + name); err != nil {
				return err
			}
		}
		return nil
	}
	all := func() error { return walk("") }
	if req.Locked {
		err := withoutKey(string(req.Dir), all)
		return out.Bytes(), err
	}
	err := all()
	return out.Bytes(), err
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func describe(path string, content bool) (wire.File, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return wire.File{}, fmt.Errorf("lstat %q: %w", path, err)
	}
	f := wire.File{Inode: st.Ino, Kind: fileKinds[st.Mode&syscall.S_IFMT], Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Size: st.Size, Nlink: uint32(st.Nlink)}
	var err error
	if f.Generation, err = generation(path); err != nil {
		return f, fmt.Errorf("handle of %q: %w", path, err)
	}
	if f.Encrypted, err = isEncrypted(path); err != nil {
		return f, fmt.Errorf("statx %q: %w", path, err)
	}
	switch f.Kind {
	case "symlink":
		target, err := os.Readlink(path)
		if err != nil {
			return f, err
		}
		f.Target = []byte(target)
	case "chardev", "blockdev":
		// glibc's gnu_dev_major and gnu_dev_minor.
		major := st.Rdev>>8&0xfff | st.Rdev>>32&^0xfff
		f.Device = major<<32 | st.Rdev&0xff | st.Rdev>>12&0xffffff00
	case "file":
		if content {
			if f.Sum, err = contentSum(path); err != nil {
				return f, err
			}
		}
	}
	f.Xattrs, err = xattrs(path)
	return f, err
}

func contentSum(path string) (string, error) {
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.ENOKEY) {
		return "", nil // encrypted, and nobody gave the key
	}
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

func xattrs(path string) ([]wire.Xattr, error) {
	buf := make([]byte, 64<<10)
	n, err := xattrCall(sysLlistxattr, path, "", buf)
	if err == syscall.EOPNOTSUPP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the attributes of %q: %w", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	list := make([]wire.Xattr, 0, len(names))
	for _, name := range names {
		n, err := xattrCall(sysLgetxattr, path, name, buf)
		if err == syscall.EOPNOTSUPP || err == syscall.ENODATA {
			continue // of a class that has no value here
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %q of %q: %w", name, path, err)
		}
		sum := sha256.Sum256(buf[:n])
		list = append(list, wire.Xattr{Name: []byte(name), Len: n, Sum: hex.EncodeToString(sum[:8])})
	}
	return list, nil
}
