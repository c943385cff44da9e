package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"math"

	"vmscope/fsinfer"
	"vmscope/mem"
)

// Look implements fsinfer.Looker: the tree behind the last transaction that was told.
func (f *FS) Look() fsinfer.Look {
	v := f.before()
	return &treeLook{f: f, v: v, table: tableReader{v: v, scratch: make([]byte, f.sb.BlockSize)}, buf: make([]byte, f.sb.BlockSize)}
}

type treeLook struct {
	f     *FS
	v     *view
	table tableReader
	buf   []byte
}

// inode reads an inode that a name may lead to. InBody is void with the next read.
func (l *treeLook) inode(number uint64) (in Inode, err error) {
	if number == 0 || number > uint64(l.f.sb.Inodes) {
		return in, fmt.Errorf("inode %d of %d: %w", number, l.f.sb.Inodes, mem.ErrInconsistent)
	}
	ino := uint32(number)
	if l.f.home.tree != nil { // the tables on the disk are ahead of what was told
		in, err = l.v.inode(l.buf, ino)
	} else {
		var raw []byte
		if raw, err = l.table.inode(ino); err == nil {
			in, err = l.f.sb.ParseInode(ino, raw)
		}
	}
	if err == nil && !live(&in) {
		err = fmt.Errorf("inode %d is not in use: %w", ino, mem.ErrInconsistent)
	}
	return in, err
}

// Names implements fsinfer.Look.
func (l *treeLook) Names(dir uint64, visit func(name string, inode uint64) bool) error {
	if tree := l.f.home.tree; tree != nil {
		for name, ino := range tree[uint32(min(dir, math.MaxUint32))] {
			if !visit(name, uint64(ino)) {
				break
			}
		}
		return nil
	}
	in, err := l.inode(dir)
	if err != nil {
		return err
	}
	if !in.IsDir() {
		return fmt.Errorf("inode %d is no directory: %w", dir, mem.ErrInconsistent)
	}
	in.InBody = bytes.Clone(in.InBody)
	err = l.f.scan(l.v, &in, 0, nil, func(name string, d Dirent) bool { return visit(name, uint64(d.Ino)) })
	return wrapDir(in.Number, contradicts(err))
}

// marks makes numbers of sets of extended attributes. No guest can know which.
var marks = maphash.MakeSeed()

// File implements fsinfer.Look.
func (l *treeLook) File(inode uint64) (fsinfer.File, error) {
	in, err := l.inode(inode)
	if err != nil {
		return fsinfer.File{}, err
	}
	out := fsinfer.File{
		Generation: in.Generation, Attr: in.Attr(), Device: in.Rdev(), Encrypted: in.Encrypted(),
		Modified: in.Mtime.nanoseconds(), Changed: in.Ctime.nanoseconds(),
	}
	list, err := l.f.sb.Xattrs(l.v, &in)
	if list = plainXattrs(list); len(list) > 0 {
		var h maphash.Hash
		h.SetSeed(marks)
		for _, x := range list {
			maphash.WriteComparable(&h, x.Name)
			maphash.WriteComparable(&h, len(x.Value))
			h.Write(x.Value)
		}
		out.Xattrs = h.Sum64()
	}
	if in.IsSymlink() {
		var terr error
		out.Target, terr = l.f.sb.Target(l.v, &in)
		err = errors.Join(err, terr)
	}
	return out, contradicts(err)
}

// contradicts puts wrong checksums into the class of errors that they are of: what was read is given nevertheless.
func contradicts(err error) error {
	if bad := (*ChecksumError)(nil); errors.As(err, &bad) {
		return fmt.Errorf("%w: %w", err, mem.ErrInconsistent)
	}
	return err
}

func (t Timestamp) nanoseconds() int64 { return t.Sec*1e9 + int64(t.Nsec) }
