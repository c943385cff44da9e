package ext4

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmscope/mem"
)

// parents knows for each inode the directory that names it: four bytes an inode, and more only for files with several
// names. The names themselves are read from the disk when they are needed.
type parents struct {
	perGroup uint32
	first    [][]uint32          // by group, as long as the group's highest known inode
	count    []uint32            // by group: names that were noted, roughly
	far      map[uint32]uint32   // of inodes far behind the others of their group
	more     map[uint32][]uint32 // further directories of inodes with several names
	moreLen  int
	read     map[uint32]bool // directories that came ahead of the crawl, with all their names
	next     uint32          // the crawl is past all inodes below
	total    uint32
	names    nameCache
}

// of gives the directory of an inode, 0 if it is not known.
func (p *parents) of(ino uint32) uint32 {
	if ino == 0 {
		return 0
	}
	g, i := (ino-1)/p.perGroup, (ino-1)%p.perGroup
	switch {
	case int(g) >= len(p.first):
		return 0
	case int(i) < len(p.first[g]):
		return p.first[g][i]
	case len(p.far) == 0:
		return 0
	}
	return p.far[ino]
}

// A group fills from its start. A name for an inode far behind those that are known goes into a map, so that few names that
// a guest makes up cost little memory.
const (
	nearInodes  = 256
	nearEachOne = 32
)

func (p *parents) set(ino, dir uint32) {
	if ino == 0 {
		return
	}
	g, i := (ino-1)/p.perGroup, (ino-1)%p.perGroup
	if int(g) >= len(p.first) {
		return
	}
	s := p.first[g]
	if int(i) < len(s) {
		s[i] = dir
		return
	}
	if dir == 0 {
		delete(p.far, ino)
		return
	}
	if p.count[g] < 1<<24 {
		p.count[g]++
	}
	if i >= nearInodes+nearEachOne*p.count[g] {
		p.far[ino] = dir
		return
	}
	if int(i) >= cap(s) {
		// By little, to keep to the four bytes.
		s = slices.Grow(s, int(i)-len(s)+1+int(i)/8)
	}
	from := len(s)
	s = s[:i+1]
	p.first[g] = s
	if len(p.far) > 0 {
		for k := from; k < len(s); k++ {
			n := g*p.perGroup + uint32(k) + 1
			if d, ok := p.far[n]; ok {
				s[k] = d
				delete(p.far, n)
			}
		}
	}
	s[i] = dir
}

// maxMore bounds the names beyond the first of each inode: 16 MiB.
const maxMore = 1 << 22

// add notes one more name of an inode.
func (p *parents) add(ino, dir uint32) {
	if p.of(ino) == 0 {
		p.set(ino, dir)
		return
	}
	if p.moreLen < maxMore {
		p.more[ino] = append(p.more[ino], dir)
		p.moreLen++
	}
}

// remove forgets one name.
func (p *parents) remove(ino, dir uint32) {
	rest := p.more[ino]
	if i := slices.Index(rest, dir); i >= 0 {
		rest = slices.Delete(rest, i, i+1)
		p.moreLen--
	} else if p.of(ino) == dir {
		if len(rest) == 0 {
			p.set(ino, 0)
			return
		}
		p.set(ino, rest[len(rest)-1])
		rest = rest[:len(rest)-1]
		p.moreLen--
	}
	if len(rest) == 0 {
		delete(p.more, ino)
	} else {
		p.more[ino] = rest
	}
}

// known reports whether the names in a directory were counted.
func (p *parents) known(dir uint32) bool { return dir < p.next || p.read[dir] }

// learn takes over into the index what an operation did.
func (f *FS) learn(t *txn, o *op) {
	p := &f.parents
	p.names.drop(o.ino)
	if o.kind == opRemove || o.kind == opRename {
		if p.known(o.from.dir.ino) {
			p.remove(o.ino, o.from.dir.ino)
		}
	}
	if o.kind != opRemove {
		if p.known(o.to.dir.ino) {
			p.add(o.ino, o.to.dir.ino)
		}
		if o.in.IsDir() {
			p.names.put(o.ino, o.to.dir.ino, strings.Clone(o.to.name))
		}
	}
	if o.kind == opCreate && o.in.IsDir() && !p.known(o.ino) {
		p.read[o.ino] = true // all its names come as changes
	}
	f.learnHome(o)
}

// count notes the names in a directory.
func (f *FS) count(v *view, in *Inode) error {
	return f.scan(v, in, 0, func(ino uint32) bool {
		if ino <= f.sb.Inodes && ino != 0 {
			f.parents.add(ino, in.Number)
		}
		return false
	}, nil)
}

// Crawl implements fsinfer.Crawler: it looks through about n more inodes for directories.
func (f *FS) Crawl(ctx context.Context, n int) (done, total uint64, err error) {
	p := &f.parents
	v := f.before()
	scratch := make([]byte, f.sb.BlockSize)
	t := tableReader{v: v, scratch: scratch}
	var errs []error
	for n > 0 && p.next <= p.total {
		if err := ctx.Err(); err != nil {
			return uint64(p.next), uint64(p.total), err
		}
		g, index := f.sb.InodeGroup(p.next)
		stop := f.usedInodes(v, scratch, g)
		if index >= stop {
			p.next = (g + 1) * f.sb.InodesPerGroup
			if p.next++; p.next <= g { // wrapped
				p.next = p.total + 1
			}
			n -= 64
			continue
		}
		ino := p.next
		raw, err := t.inode(ino)
		if err == nil && isDir(raw) && (ino >= f.sb.FirstInode || ino == RootInode) && !p.read[ino] {
			in, perr := f.sb.ParseInode(ino, slices.Clone(raw))
			if err = perr; live(&in) {
				err = errors.Join(err, f.count(v, &in))
			}
			n -= 8
		}
		if err != nil && len(errs) < 16 {
			errs = append(errs, fmt.Errorf("directory inode %d: %w", ino, err))
		}
		delete(p.read, ino)
		p.next++
		n--
	}
	return uint64(min(p.next-1, p.total)), uint64(p.total), errors.Join(errs...)
}

// isDir says whether an inode looks like a directory's.
func isDir(raw []byte) bool { return le.Uint16(raw)&sIFMT == sIFDIR }

// tableReader reads inodes one behind another, many at a time.
type tableReader struct {
	v       *view
	scratch []byte
	ahead   []byte // what lies on the disk from block start on
	start   uint64
	b       uint64
	data    []byte // of block b
}

// readAhead is how much of an inode table is read at once, bytes.
const readAhead = 64 << 10

// inode gives the bytes of an inode, valid until the next call.
func (t *tableReader) inode(ino uint32) ([]byte, error) {
	f := t.v.fs
	if raw := t.v.fc.inode(ino); raw != nil {
		return raw, nil
	}
	b, off, err := f.inodePlace(ino)
	if err != nil {
		return nil, err
	}
	if t.data == nil || b != t.b {
		if t.data, err = t.block(b); err != nil {
			t.data = nil
			return nil, err
		}
		t.b = b
	}
	return t.data[off : off+f.sb.InodeSize], nil
}

func (t *tableReader) block(b uint64) ([]byte, error) {
	f, bs := t.v.fs, uint64(t.v.fs.sb.BlockSize)
	if f.store.has(b) || b >= f.sb.Blocks {
		return t.v.peek(t.scratch, b)
	}
	if n := uint64(len(t.ahead)) / bs; b < t.start || b-t.start >= n {
		t.ahead = slices.Grow(t.ahead[:0], readAhead)[:max(readAhead, int(bs))]
		most := min(uint64(len(t.ahead))/bs, f.sb.Blocks-b)
		n = 1
		for _, _, table := f.tableBlock(b + n); n < most && table && !f.store.has(b+n); _, _, table = f.tableBlock(b + n) {
			n++ // nothing else: a device may know that it has not what was there
		}
		t.start, t.ahead = b, t.ahead[:n*bs]
		if got, err := f.dev.ReadAt(t.ahead, int64(b*bs)); got < len(t.ahead) {
			t.ahead = t.ahead[:0]
			return nil, fmt.Errorf("block %d: %w", b, err)
		}
	}
	return t.ahead[(b-t.start)*bs:][:bs], nil
}

// usedInodes is how many inodes of a group were ever used.
func (f *FS) usedInodes(v *view, scratch []byte, g uint32) uint32 {
	n := f.sb.InodesPerGroup
	if !f.sb.hasGroupFlags() {
		return n
	}
	b, off := f.sb.GroupBlock(g)
	data, err := v.peek(scratch, b)
	if err != nil {
		return n
	}
	d := f.sb.ParseGroup(data[off:])
	if d.Flags&GroupInodeUninit != 0 {
		return 0
	}
	return n - min(n, d.ItableUnused)
}

// dirPlace tells where a directory stands, as of view v.
func (f *FS) dirPlace(v *view, ino uint32) (place, error) {
	if dir, name, ok := f.parents.names.find(ino); ok {
		return place{node{ino: dir}, name}, nil
	}
	up := f.parents.of(ino)
	if up == 0 {
		var err error
		if up, err = f.dotdot(v, ino); err != nil {
			return place{}, err
		}
	}
	name, err := f.nameIn(v, up, ino)
	if err != nil {
		return place{}, err
	}
	f.parents.names.put(ino, up, name)
	return place{node{ino: up}, name}, nil
}

// nameIn finds the name that directory dir has for an inode.
func (f *FS) nameIn(v *view, dir, ino uint32) (string, error) {
	if f.home.tree != nil {
		if name, ok := f.home.nameOf(dir, ino); ok {
			return name, nil
		}
		return "", fmt.Errorf("inode %d has no name in inode %d yet", ino, dir)
	}
	in, err := v.inode(make([]byte, f.sb.BlockSize), dir)
	if err != nil {
		return "", err
	}
	if !live(&in) || !in.IsDir() {
		return "", fmt.Errorf("inode %d is in inode %d, which is no directory: %w", ino, dir, mem.ErrInconsistent)
	}
	name, found := "", false
	err = f.scan(v, &in, ino, func(i uint32) bool { return i == ino }, func(s string, _ Dirent) bool {
		name, found = s, true
		return false
	})
	if !found {
		return "", errors.Join(fmt.Errorf("directory inode %d does not name inode %d: %w", dir, ino, mem.ErrInconsistent), err)
	}
	return name, nil
}

// dotdot reads the parent that a directory names itself.
func (f *FS) dotdot(v *view, ino uint32) (uint32, error) {
	in, err := v.inode(make([]byte, f.sb.BlockSize), ino)
	if err != nil {
		return 0, err
	}
	up := uint32(0)
	switch {
	case !live(&in) || !in.IsDir():
		return 0, fmt.Errorf("inode %d is no directory: %w", ino, mem.ErrInconsistent)
	case in.Inline():
		up = InlineParent(&in)
	default:
		var first uint64
		err = f.sb.Extents(v, &in, func(e Extent) bool {
			if e.Logical == 0 {
				first = e.Physical
			}
			return false
		}, nil)
		if first == 0 {
			return 0, errors.Join(fmt.Errorf("directory inode %d has no first block: %w", ino, mem.ErrInconsistent), err)
		}
		var data []byte
		if data, err = v.peek(make([]byte, f.sb.BlockSize), first); err == nil {
			err = f.sb.DirentsOf(&in, data, func(d Dirent) bool {
				if string(d.Name) == ".." {
					up = d.Ino
				}
				return up == 0
			})
		}
	}
	if up == 0 || up > f.sb.Inodes || up == ino {
		return 0, errors.Join(fmt.Errorf("directory inode %d has parent %d: %w", ino, up, mem.ErrInconsistent), err)
	}
	return up, nil
}

// nameCache remembers where directories stand that were asked for lately.
type nameCache map[uint32]cachedName

type cachedName struct {
	dir  uint32
	name string
}

const maxNames = 4096

func (c nameCache) find(ino uint32) (uint32, string, bool) {
	n, ok := c[ino]
	return n.dir, n.name, ok
}

func (c nameCache) put(ino, dir uint32, name string) {
	if len(c) >= maxNames {
		for old := range c { // any
			delete(c, old)
			break
		}
	}
	c[ino] = cachedName{dir, name}
}

func (c nameCache) drop(ino uint32) { delete(c, ino) }
