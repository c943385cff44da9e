package ext4

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vmscope/block"
	"vmscope/mem"
)

// Volume is a look at a file system: what the guest would find if it crashed now and mounted again, or what an image
// holds. The journal is applied in memory; nothing is written. It is safe for concurrent use.
//
// On the disk of a running guest, Open takes the journal as it is at that moment; what is at home is read when it is
// asked for. A look is therefore to be short: where the guest writes on meanwhile, parts of it may be of different
// moments, and contradict themselves.
//
// Paths are bytes, parts divided by '/', from the root of the file system whether or not they begin with '/'. Symbolic
// links lead to places in the volume only.
type Volume struct {
	sb   *Super
	base block.Device
	dev  *block.Overlay // base with the journal on top
	rec  Recovery
	fast *fastLook // what fast commits changed; nil if nothing

	last  atomic.Pointer[lastGroup]
	mu    sync.Mutex
	cache [cacheBlocks]cached
}

// Recovery says what applying the journal came to.
type Recovery struct {
	Needed       bool   // the superblock says that the journal is to be replayed: the file system is mounted, or was until it crashed
	Transactions int    // that were applied
	FirstTID     uint32 // of the first and the last of these
	LastTID      uint32
	Blocks       int // that they changed
	FastCommits  int // changes that came from the fast-commit area
	// Err is what ended the recovery before the journal's end or kept some of it from being applied, beyond what an
	// unfinished last transaction does.
	Err error
}

// ErrExternalJournal says that the journal is on another device, which is not at hand. OpenHome reads without it.
var ErrExternalJournal = errors.New("the journal is on another device")

// overlayMemory is how much of the journal is kept in memory; the rest goes to a file without a name.
const (
	overlayMemory = 32 << 20
	overlayFile   = 1 << 40
)

// Open looks at the file system on dev, with its journal applied. Close gives back what it holds, not dev.
func Open(dev block.Device) (*Volume, error) {
	v, err := OpenHome(dev)
	if err != nil || !v.sb.HasJournal() {
		return v, err
	}
	if err := v.recover(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// OpenHome looks at the file system on dev as it is without its journal: what has reached its home place.
func OpenHome(dev block.Device) (*Volume, error) {
	v := &Volume{base: dev, dev: block.NewOverlay(dev, overlayMemory, overlayFile)}
	if err := v.super(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// superTries is how often a superblock is read that a running guest may be writing.
const superTries = 3

// super reads the superblock.
func (v *Volume) super() error {
	for try := 1; ; try++ {
		b := make([]byte, SuperSize)
		if v.dev.Size() < SuperOffset+SuperSize {
			return ErrNoSuper
		}
		if err := block.ReadFull(v.dev, b, SuperOffset); err != nil {
			return err
		}
		sb, err := ParseSuper(b)
		if err == nil && uint64(v.dev.Size())>>sb.blockBits < sb.Blocks {
			err = badSuper("%d blocks of %d on a device of %d bytes", sb.Blocks, sb.BlockSize, v.dev.Size())
		}
		if try < superTries && (err != nil && errors.Is(err, mem.ErrInconsistent) || err == nil && !sb.ChecksumOK) {
			continue
		}
		v.sb = sb
		return err
	}
}

// Close gives back memory and file of the journal.
func (v *Volume) Close() error { return v.dev.Close() }

// Super is the superblock, journal applied. It must not be changed.
func (v *Volume) Super() *Super { return v.sb }

// Recovery tells what was done with the journal.
func (v *Volume) Recovery() Recovery { return v.rec }

// Device is the volume with the journal's blocks on top. What fast commits changed is not in it.
func (v *Volume) Device() block.Device { return v.dev }

// ReadBlock implements BlockReader, journal applied.
func (v *Volume) ReadBlock(p []byte, b uint64) error {
	if b >= v.sb.Blocks {
		return fmt.Errorf("ext4: block %d of %d: %w", b, v.sb.Blocks, mem.ErrInconsistent)
	}
	return block.ReadFull(v.dev, p[:v.sb.BlockSize], int64(b)<<v.sb.blockBits)
}

// The cache keeps blocks of inode tables and group descriptors, each in the one place that its number allows.
const cacheBlocks = 64

type cached struct {
	block uint64 // 0: nothing; descriptors and inodes lie behind block 0
	data  []byte
}

// cachedBytes copies len(p) bytes from off on of a block, which is kept.
func (v *Volume) cachedBytes(p []byte, b uint64, off int) error {
	c := &v.cache[b%cacheBlocks]
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.block != b {
		c.block = 0
		if c.data == nil {
			c.data = make([]byte, v.sb.BlockSize)
		}
		if err := v.ReadBlock(c.data, b); err != nil {
			return err
		}
		c.block = b
	}
	copy(p, c.data[off:])
	return nil
}

// group reads a group's descriptor; the last one is kept.
func (v *Volume) group(g uint32) (Group, error) {
	if last := v.last.Load(); last != nil && last.index == g {
		return last.Group, nil
	}
	block, off, err := v.sb.groupPlace(g)
	if err != nil {
		return Group{}, err
	}
	b := make([]byte, v.sb.DescSize)
	if err := v.cachedBytes(b, block, off); err != nil {
		return Group{}, err
	}
	last := &lastGroup{g, v.sb.ParseGroup(b)}
	v.last.Store(last)
	return last.Group, nil
}

type lastGroup struct {
	index uint32
	Group
}

// homeInode reads the bytes of an inode as they lie in its table. They are the caller's.
func (v *Volume) homeInode(ino uint32) ([]byte, error) {
	if ino == 0 || ino > v.sb.Inodes {
		return nil, fmt.Errorf("ext4: inode %d of %d: %w", ino, v.sb.Inodes, ErrNoInode)
	}
	g, index := v.sb.InodeGroup(ino)
	group, err := v.group(g)
	if err != nil {
		return nil, err
	}
	block, off, err := v.sb.InodePlace(group, index)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, v.sb.InodeSize)
	return raw, v.cachedBytes(raw, block, off)
}

// Inode reads an inode by its number, in use or not.
func (v *Volume) Inode(ino uint32) (Inode, error) {
	if v.fast != nil {
		if raw, ok := v.fast.inodes[ino]; ok {
			return v.sb.ParseInode(ino, raw)
		}
	}
	raw, err := v.homeInode(ino)
	if err != nil {
		return Inode{Number: ino}, err
	}
	return v.sb.ParseInode(ino, raw)
}

// used reads an inode that a name leads to.
func (v *Volume) used(ino uint32) (Inode, error) {
	in, err := v.Inode(ino)
	if err != nil {
		return in, err
	}
	if _, ok := in.Kind(); !ok || in.Links == 0 {
		return in, fmt.Errorf("ext4: inode %d has a name but is not in use (mode %#o, %d links): %w", ino, in.Mode, in.Links, mem.ErrInconsistent)
	}
	return in, nil
}

// Extents walks the blocks of an inode, as Super.Extents does.
func (v *Volume) Extents(in *Inode, data func(Extent) bool, meta func(block uint64) bool) error {
	return v.extentsFrom(in, 0, data, meta)
}

func (v *Volume) extentsFrom(in *Inode, start uint64, data func(Extent) bool, meta func(block uint64) bool) error {
	if v.fast != nil {
		if edits := v.fast.ranges[in.Number]; edits != nil && in.hasMap() {
			return v.editedExtents(in, edits, start, data, meta)
		}
	}
	return v.sb.extentsFrom(v, in, start, data, meta)
}

// Xattrs gives the extended attributes of an inode, as Super.Xattrs does.
func (v *Volume) Xattrs(in *Inode) ([]Xattr, error) { return v.sb.Xattrs(v, in) }

// Target is where a symbolic link leads, as Super.Target says.
func (v *Volume) Target(in *Inode) (string, error) { return v.sb.Target(v, in) }
