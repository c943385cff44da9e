package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

// A player does random file operations. Names are few, so that names, kinds and inodes meet again and again.
type player struct {
	req   *wire.FSOps
	rng   *rand.Rand
	root  string
	step  int    // number of the operation
	last  string // path that the operation touched last
	held  []int  // open files whose names are gone
	names []string
	stamp uint64 // goes into what is written: no two writes are alike
}

// names are what an entry may be called. Some differ in case only, some are no UTF-8 or no good for a line of text.
var names = []string{
	"a", "b", "c", "d", "e", "f", "g", "h", "A", "B", "Ä", "ä",
	"d0", "d1", "d2", "d3", "x.tmp", "passwd", "new\nline", "\xff\xfe", "-> to",
	"a name that is long enough to be the longest of its block and to push what follows " + strings.Repeat("well ", 20),
	strings.Repeat("l", 255),
}

// passed are the errors that an operation may meet by chance.
var passed = []syscall.Errno{
	syscall.ENOENT, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENOSPC, syscall.EINVAL, syscall.EISDIR, syscall.ENOTDIR, syscall.EMLINK,
	syscall.ENAMETOOLONG, syscall.EXDEV, syscall.EPERM, syscall.EOPNOTSUPP, syscall.EBUSY, syscall.ELOOP, syscall.ERANGE, syscall.E2BIG,
	syscall.EDQUOT, syscall.EFBIG, syscall.ENODATA, syscall.ENXIO, syscall.ENOKEY, syscall.EILSEQ,
}

func fsops(req *wire.FSOps) ([]byte, error) {
	p := &player{req: req, root: string(req.Dir), step: req.First, stamp: req.Seed<<32 | uint64(req.First)<<8}
	p.names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return req.MaxName > 0 && len(name) > req.MaxName })
	req.MaxFile = cmp.Or(req.MaxFile, 64<<10)
	req.MaxXattr = cmp.Or(req.MaxXattr, 3000)
	defer func() {
		for _, fd := range p.held {
			syscall.Close(fd)
		}
	}()
	for _, d := range req.Prepare {
		if err := p.prepare(d); err != nil {
			return nil, err
		}
	}
	ops, total, err := p.choice()
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	for range req.Count {
		p.step++
		// Each operation has a generator of its own: a run that is repeated up to a certain operation does the same.
		p.rng = rand.New(rand.NewPCG(req.Seed, uint64(p.step)))
		op, n := ops[0], p.rng.IntN(total)
		for _, op = range ops {
			if n -= op.weight; n < 0 {
				break
			}
		}
		what, err := op.do(p)
		if req.Tell {
			fmt.Fprintf(&log, "%d %s %s: %v\n", p.step, op.name, what, err)
		}
		if err == nil {
			err = p.durable()
		}
		var errno syscall.Errno
		if err != nil && (!errors.As(err, &errno) || !slices.Contains(passed, errno)) {
			return log.Bytes(), fmt.Errorf("operation %d, %s %s: %w", p.step, op.name, what, err)
		}
	}
	return log.Bytes(), nil
}

// choice is the operations that the request allows, with the sum of their weights.
func (p *player) choice() (ops []operation, total int, err error) {
	for _, op := range operations {
		allowed := len(p.req.Only) == 0 || slices.Contains(p.req.Only, op.name)
		if op.many && p.req.Many == 0 || !allowed {
			continue
		}
		ops = append(ops, op)
		total += op.weight
	}
	if total == 0 {
		return nil, 0, fmt.Errorf("no operation of %q is known", p.req.Only)
	}
	return ops, total, nil
}

// durable makes something durable now and then.
func (p *player) durable() error {
	if n := p.req.Fsync; n > 0 && p.rng.IntN(n) == 0 && p.last != "" {
		if err := p.fsync(p.last); err != nil {
			return err
		}
	}
	if n := p.req.FsyncDir; n > 0 && p.rng.IntN(n) == 0 && p.last != "" {
		if err := p.fsync(filepath.Dir(p.last)); err != nil {
			return err
		}
	}
	if n := p.req.Sync; n > 0 && p.rng.IntN(n) == 0 {
		fd, err := syscall.Open(p.root, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		return syncfs(fd)
	}
	return nil
}

func (p *player) fsync(path string) error {
	fd, err := open(path, syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Fsync(fd)
}

// open never waits for the other end of a FIFO and never leaves the file system by a symbolic link.
func open(path string, flags int, perm uint32) (int, error) {
	return syscall.Open(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, perm)
}

// percent is true so many times of a hundred.
func (p *player) percent(n int) bool { return p.rng.IntN(100) < n }

func pick[T any](p *player, list []T) T { return list[p.rng.IntN(len(list))] }

// entries lists a directory in the order of names, whatever order the file system keeps.
func entries(dir string) []fs.DirEntry {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	list, _ := d.ReadDir(-1)
	list = slices.DeleteFunc(list, func(e fs.DirEntry) bool { return e.Name() == "lost+found" })
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list
}

const kept = "keep" // names that start so stay where they are

// dir chooses a directory: the root or one up to five levels below.
func (p *player) dir() string {
	at := p.root
	for range 5 {
		if p.percent(30) {
			break
		}
		subs := slices.DeleteFunc(entries(at), func(e fs.DirEntry) bool { return !e.IsDir() || e.Name() == manyName })
		if len(subs) == 0 {
			break
		}
		at += "/" + pick(p, subs).Name()
	}
	return at
}

// fresh is a path whose last name may or may not exist.
func (p *player) fresh() string {
	p.last = p.dir() + "/" + pick(p, p.names)
	return p.last
}

// entry chooses a name that exists and that may be removed; "" if it finds none.
func (p *player) entry(want func(fs.FileMode) bool) string {
	for range 4 {
		dir := p.dir()
		list := slices.DeleteFunc(entries(dir), func(e fs.DirEntry) bool {
			return !want(e.Type()) || strings.HasPrefix(e.Name(), kept)
		})
		if len(list) > 0 {
			p.last = dir + "/" + pick(p, list).Name()
			return p.last
		}
	}
	return ""
}

func anyKind(fs.FileMode) bool       { return true }
func isFile(m fs.FileMode) bool      { return m.IsRegular() }
func isDir(m fs.FileMode) bool       { return m.IsDir() }
func isNoDir(m fs.FileMode) bool     { return !m.IsDir() }
func isNoSymlink(m fs.FileMode) bool { return m&fs.ModeSymlink == 0 }

// content is n bytes that tell which write they are of, and that compress well.
func (p *player) content(n int) []byte {
	p.stamp++
	line := fmt.Sprintf("write %016x of operation %06d\n", p.stamp, p.step)
	return bytes.Repeat([]byte(line), n/len(line)+1)[:n]
}

// size is how much to write: often nothing, a little, a block, or a few blocks and a bit.
func (p *player) size() int {
	switch p.rng.IntN(7) {
	case 0:
		return 0
	case 1:
		return 1 + p.rng.IntN(60) // fits into an inode, where those hold data
	case 2:
		return 1 + p.rng.IntN(2000)
	case 3:
		return 4096 << p.rng.IntN(2)
	case 4:
		return 4096*p.rng.IntN(4) + p.rng.IntN(4096)
	case 5:
		return p.rng.IntN(20_000)
	}
	return p.rng.IntN(p.req.MaxFile)
}

// prepare makes a directory that stays.
func (p *player) prepare(d wire.KeptDir) error {
	if !strings.HasPrefix(d.Name, kept) {
		return fmt.Errorf("directory %q would not be kept", d.Name)
	}
	path := p.root + "/" + d.Name
	if err := syscall.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make %q: %w", path, err)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if d.Casefold {
		var flags [8]byte
		if err := ioctl(fd, fsIOCGetFlags, flags[:]); err != nil {
			return fmt.Errorf("flags of %q: %w", path, err)
		}
		binary.LittleEndian.PutUint32(flags[:], binary.LittleEndian.Uint32(flags[:])|flagCasefold)
		if err := ioctl(fd, fsIOCSetFlags, flags[:]); err != nil {
			return fmt.Errorf("casefold %q: %w", path, err)
		}
	}
	if d.Encrypt {
		return encrypt(fd)
	}
	return nil
}
