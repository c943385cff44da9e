package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// An operation tells what it touched and what came of it.
type operation struct {
	name   string
	weight int
	many   bool // needs the large directory
	do     func(*player) (what string, err error)
}

var operations = []operation{
	{"create", 20, false, createFile},
	{"append", 6, false, appendTo},
	{"overwrite", 5, false, overwrite},
	{"truncate", 4, false, truncate},
	{"fallocate", 3, false, fallocate},
	{"unlink", 7, false, unlink},
	{"mkdir", 9, false, mkdir},
	{"rmdir", 3, false, rmdir},
	{"remove", 1, false, remove},
	{"rename", 9, false, renameAny},
	{"replace", 4, false, replace},
	{"movedir", 4, false, moveDir},
	{"exchange", 3, false, exchange},
	{"ring", 2, false, ring},
	{"whiteout", 1, false, whiteout},
	{"link", 4, false, hardLink},
	{"symlink", 4, false, symlink},
	{"mknod", 3, false, mknod},
	{"chmod", 3, false, chmod},
	{"chown", 3, false, chown},
	{"setxattr", 4, false, setXattr},
	{"removexattr", 2, false, removeXattr},
	{"nameless", 3, false, nameless},
	{"tmpfile", 2, false, tmpfile},
	{"again", 4, false, again},
	{"reuse", 3, false, reuse},
	{"utimes", 1, false, utimes},
	{"many", 4, true, many},
}

var modes = []uint32{0o644, 0o600, 0o755, 0o400, 0o4711, 0o2755, 0}

func createFile(p *player) (string, error) {
	path := p.fresh()
	fd, err := open(path, syscall.O_WRONLY|syscall.O_CREAT|pick(p, []int{0, 0, syscall.O_TRUNC, syscall.O_EXCL}), pick(p, modes))
	if err != nil {
		return path, err
	}
	defer syscall.Close(fd)
	return path, p.write(fd, 0)
}

// write writes something somewhere from off on; now and then far behind, so that a hole remains.
func (p *player) write(fd int, off int64) error {
	if p.percent(8) {
		off += int64(p.rng.IntN(1 << 22))
	}
	if n := p.size(); n > 0 {
		_, err := syscall.Pwrite(fd, p.content(n), off)
		return err
	}
	return nil
}

// onFile runs f on an existing regular file, open for writing.
func (p *player) onFile(f func(fd int, size int64) (string, error)) (string, error) {
	path := p.entry(isFile)
	fd, err := open(path, syscall.O_RDWR, 0)
	if err != nil {
		return path, err
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return path, err
	}
	what, err := f(fd, st.Size)
	return path + " " + what, err
}

func appendTo(p *player) (string, error) {
	return p.onFile(func(fd int, size int64) (string, error) { return fmt.Sprint(size), p.write(fd, size) })
}

func overwrite(p *player) (string, error) {
	return p.onFile(func(fd int, size int64) (string, error) {
		if size == 0 {
			return "nothing", nil
		}
		off := p.rng.Int64N(size)
		n := min(size-off, 1+p.rng.Int64N(9000))
		_, err := syscall.Pwrite(fd, p.content(int(n)), off)
		return fmt.Sprint(off, n), err
	})
}

func truncate(p *player) (string, error) {
	return p.onFile(func(fd int, size int64) (string, error) {
		to := p.rng.Int64N(size + 1)
		switch p.rng.IntN(4) {
		case 0:
			to = 0
		case 1:
			to = size + p.rng.Int64N(50_000)
		}
		return fmt.Sprint(size, to), syscall.Ftruncate(fd, to)
	})
}

func fallocate(p *player) (string, error) {
	return p.onFile(func(fd int, size int64) (string, error) {
		mode := pick(p, []uint32{0, fallocKeepSize, fallocPunchHole | fallocKeepSize, fallocZeroRange, fallocCollapseRange, fallocInsertRange})
		off, n := p.rng.Int64N(size+4096), 1+p.rng.Int64N(20_000)
		if mode&(fallocCollapseRange|fallocInsertRange) != 0 { // whole blocks only
			off, n = off&^4095, n&^4095+4096
		}
		return fmt.Sprint(mode, off, n), syscall.Fallocate(fd, mode, off, n)
	})
}

func unlink(p *player) (string, error) {
	path := p.entry(isNoDir)
	return path, syscall.Unlink(path)
}

func mkdir(p *player) (string, error) {
	path := p.fresh()
	return path, syscall.Mkdir(path, pick(p, modes)|0o700)
}

func rmdir(p *player) (string, error) {
	path := p.entry(isDir)
	return path, syscall.Rmdir(path)
}

func remove(p *player) (string, error) {
	path := p.entry(isDir)
	if path == "" {
		return path, nil
	}
	return path, os.RemoveAll(path)
}

func renameAny(p *player) (string, error) {
	from := p.entry(anyKind)
	to := p.fresh()
	return from + " " + to, renameat2(from, to, pick(p, []uintptr{0, 0, renameNoReplace}))
}

// replace renames over a name that exists, as programs do that write a new version of a file beside the old one.
func replace(p *player) (string, error) {
	to := p.entry(isNoDir)
	if p.percent(40) {
		from := p.entry(isNoDir)
		return from + " " + to, syscall.Rename(from, to)
	}
	from := filepath.Dir(to) + "/.new"
	fd, err := open(from, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, 0o644)
	if err != nil {
		return from, err
	}
	err = p.write(fd, 0)
	if p.percent(30) {
		err = errors.Join(err, syscall.Fsync(fd))
	}
	syscall.Close(fd)
	if err != nil {
		return from, err
	}
	return from + " " + to, syscall.Rename(from, to)
}

func moveDir(p *player) (string, error) {
	from := p.entry(isDir)
	to := p.fresh()
	if p.percent(30) { // over an empty directory, if it is one
		to = p.entry(isDir)
	}
	return from + " " + to, syscall.Rename(from, to)
}

func exchange(p *player) (string, error) {
	a, b := p.entry(anyKind), p.entry(anyKind)
	return a + " " + b, renameat2(a, b, renameExchange)
}

// ring lets three names change places.
func ring(p *player) (string, error) {
	a, b, c := p.entry(anyKind), p.entry(anyKind), p.entry(anyKind)
	tmp := p.root + "/.ring"
	what := a + " " + b + " " + c
	if err := renameat2(a, tmp, renameNoReplace); err != nil {
		return what, err
	}
	for _, move := range [][2]string{{b, a}, {c, b}, {tmp, c}} {
		if err := renameat2(move[0], move[1], renameNoReplace); err != nil {
			return what, errors.Join(err, os.RemoveAll(tmp))
		}
	}
	return what, nil
}

// whiteout leaves a character device 0:0 where the file was, as overlay file systems do.
func whiteout(p *player) (string, error) {
	from := p.entry(isNoDir)
	to := p.fresh()
	return from + " " + to, renameat2(from, to, renameWhiteout)
}

func hardLink(p *player) (string, error) {
	from := p.entry(isNoDir)
	to := p.fresh()
	return from + " " + to, syscall.Link(from, to)
}

func symlink(p *player) (string, error) {
	n := 1 + p.rng.IntN(59) // in the inode
	if p.percent(30) {
		n = 60 + p.rng.IntN(900) // in a block
	}
	if limit := p.req.MaxName; limit > 0 {
		n = min(n, limit)
	}
	target := strings.Repeat(fmt.Sprintf("../%d/", p.step), n/4+1)[:n]
	path := p.fresh()
	return path, syscall.Symlink(target, path)
}

func mknod(p *player) (string, error) {
	path := p.fresh()
	kind := pick(p, []uint32{syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK})
	dev := 0
	if kind == syscall.S_IFCHR || kind == syscall.S_IFBLK {
		minor := pick(p, []int{0, 3, 255, 256, 70_000, 1<<20 - 1})
		dev = 240<<8 | minor&0xff | minor&^0xff<<12
	}
	return path, syscall.Mknod(path, kind|pick(p, modes), dev)
}

func chmod(p *player) (string, error) {
	path := p.entry(isNoSymlink)
	return path, syscall.Chmod(path, pick(p, modes)|uint32(p.rng.IntN(0o200)))
}

func chown(p *player) (string, error) {
	path := p.entry(anyKind)
	return path, syscall.Lchown(path, int(pick(p, []uint32{0, 1000, 65534, 70_000, 4_000_000_000})), pick(p, []int{0, 1000, 100_000}))
}

var attributes = []string{"user.a", "user.b", "trusted.c", "security.d", "user.a_longer_name"}

func setXattr(p *player) (string, error) {
	path := p.entry(anyKind)
	n := p.rng.IntN(40)
	switch p.rng.IntN(4) {
	case 0:
		n = p.rng.IntN(900)
	case 1:
		n = p.rng.IntN(p.req.MaxXattr)
	}
	name := pick(p, attributes)
	_, err := xattrCall(sysLsetxattr, path, name, p.content(n))
	return fmt.Sprint(path, " ", name, " ", n), err
}

func removeXattr(p *player) (string, error) {
	for range 6 {
		path := p.entry(anyKind)
		if list, err := xattrs(path); err == nil && len(list) > 0 {
			name := string(pick(p, list).Name)
			_, err := xattrCall(sysLremovexattr, path, name, nil)
			return path + " " + name, err
		}
	}
	return "nothing", nil
}

// nameless removes a file's name while it is open and goes on writing.
func nameless(p *player) (string, error) {
	if len(p.held) > 3 || len(p.held) > 0 && p.percent(40) {
		fd := p.held[0]
		p.held = p.held[1:]
		err := p.write(fd, 0)
		return "close", errors.Join(err, syscall.Close(fd))
	}
	path := p.entry(isFile)
	fd, err := open(path, syscall.O_RDWR, 0)
	if err != nil {
		return path, err
	}
	p.held = append(p.held, fd)
	if err := syscall.Unlink(path); err != nil {
		return path, err
	}
	return path, p.write(fd, 0)
}

// tmpfile makes a file without a name and gives it one, mostly.
func tmpfile(p *player) (string, error) {
	dir := p.dir()
	fd, err := syscall.Open(dir, syscall.O_RDWR|syscall.O_CLOEXEC|oTmpfile, 0o640)
	if err != nil {
		return dir, err
	}
	if p.percent(20) && len(p.held) < 4 {
		p.held = append(p.held, fd)
		return dir, p.write(fd, 0)
	}
	defer syscall.Close(fd)
	if err := p.write(fd, 0); err != nil {
		return dir, err
	}
	path := p.fresh()
	return path, linkFD(fmt.Sprintf("/proc/self/fd/%d", fd), path)
}

// again removes a name and makes it anew at once, as the same kind or as another. The inode is often the same, too.
func again(p *player) (string, error) {
	want := isNoDir
	if p.percent(20) {
		want = anyKind
	}
	path := p.entry(want)
	if path == "" {
		return path, nil
	}
	if err := os.RemoveAll(path); err != nil {
		return path, err
	}
	switch p.rng.IntN(4) {
	case 0:
		return path, syscall.Mkdir(path, 0o755)
	case 1:
		return path, syscall.Symlink("again", path)
	}
	fd, err := open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL, 0o644)
	if err != nil {
		return path, err
	}
	defer syscall.Close(fd)
	return path, p.write(fd, 0)
}

// reuse removes a few files and makes as many elsewhere, which get their inodes.
func reuse(p *player) (string, error) {
	n := 2 + p.rng.IntN(4)
	for range n {
		if err := syscall.Unlink(p.entry(isNoDir)); err != nil {
			break
		}
	}
	var first error
	for range n {
		if _, err := pick(p, []func(*player) (string, error){createFile, mkdir, symlink})(p); err != nil && first == nil {
			first = err
		}
	}
	return fmt.Sprint(n), first
}

func utimes(p *player) (string, error) {
	path := p.entry(isNoSymlink)
	return path, syscall.UtimesNano(path, []syscall.Timespec{syscall.NsecToTimespec(int64(p.rng.Uint32()) * 1e9), syscall.NsecToTimespec(int64(p.rng.Uint32()) * 1e9)})
}

const manyName = kept + "many" // the large directory

func manyPath(p *player, i int) string {
	return fmt.Sprintf("%s/%s/entry number %05d of the large directory", p.root, manyName, i)
}

// many makes a large directory, and then removes, renames and makes names in it.
func many(p *player) (string, error) {
	dir := p.root + "/" + manyName
	n := p.req.Many
	if err := syscall.Mkdir(dir, 0o755); err == nil {
		for i := range n {
			if err := makeEmpty(manyPath(p, i)); err != nil {
				return dir, err
			}
		}
		return fmt.Sprint(dir, " ", n), nil
	} else if !errors.Is(err, fs.ErrExist) {
		return dir, err
	}
	start, count := p.rng.IntN(n), 1+p.rng.IntN(min(n, 100))
	for i := start; i < min(start+count, n); i++ {
		path := manyPath(p, i)
		p.last = path
		var err error
		switch p.rng.IntN(4) {
		case 0:
			err = makeEmpty(path)
		case 1:
			err = syscall.Unlink(path)
		case 2:
			err = syscall.Rename(path, manyPath(p, p.rng.IntN(2*n)))
		case 3:
			err = syscall.Chmod(path, pick(p, modes))
		}
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return path, err
		}
	}
	return fmt.Sprint(start, count), nil
}

func makeEmpty(path string) error {
	fd, err := open(path, syscall.O_WRONLY|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	return syscall.Close(fd)
}
