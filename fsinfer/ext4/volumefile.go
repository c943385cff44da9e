package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"vmscope/block"
	"vmscope/mem"
)

// ErrEncrypted says that content is ciphertext, whose key is not on the disk.
var ErrEncrypted = errors.New("encrypted")

// File is a file's content. It is safe for concurrent use.
type File struct {
	v  *Volume
	in Inode

	inline []byte // content that lies in the inode

	mu sync.Mutex
	// run are extents in order: all that map the file between from and to, blocks of it.
	run      []Extent
	from, to uint64
}

// maxRun is how many extents of a file are kept at once.
const maxRun = 1024

// OpenFile opens the file at path for reading, symbolic links followed.
func (v *Volume) OpenFile(path string) (*File, error) {
	in, err := v.find("open", path, true)
	if err != nil {
		return nil, err
	}
	f, err := v.OpenInode(&in)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return f, nil
}

// OpenInode opens a file by its inode. ErrEncrypted, syscall.EISDIR and syscall.EINVAL (of a device, say) tell that there
// is nothing to be read.
func (v *Volume) OpenInode(in *Inode) (*File, error) {
	f := &File{v: v, in: *in}
	switch {
	case in.IsDir():
		return nil, syscall.EISDIR
	case !in.IsRegular():
		return nil, syscall.EINVAL
	case in.Encrypted():
		return nil, ErrEncrypted
	case in.Inline():
		var err error
		if f.inline, err = v.sb.InlineData(in); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Inode is the file's inode.
func (f *File) Inode() *Inode { return &f.in }

// Size is the length of the content, bytes.
func (f *File) Size() int64 { return f.in.Size }

// ReadAt implements io.ReaderAt. What is not written reads as zeros.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ext4: read at %d", off)
	}
	if off >= f.in.Size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.in.Size-off {
		p, end = p[:f.in.Size-off], io.EOF
	}
	if f.in.Inline() {
		return copy(p, f.inline[off:]), end
	}
	n := 0
	for n < len(p) {
		done, err := f.piece(p[n:], off+int64(n))
		if n += done; err != nil {
			return n, err
		}
	}
	return n, end
}

// piece reads from off on, as far as one extent or one hole goes.
func (f *File) piece(p []byte, off int64) (int, error) {
	bits := f.v.sb.blockBits
	logical := uint64(off) >> bits
	e, mapped, err := f.extent(logical)
	if err != nil {
		return 0, err
	}
	// A range ends at e.Logical+e.Len, whether it is a hole or not.
	left := (e.Logical+uint64(e.Len))<<bits - uint64(off)
	p = p[:min(uint64(len(p)), left)]
	if !mapped || e.Unwritten {
		clear(p)
		return len(p), nil
	}
	at := int64(e.Physical-e.Logical)<<bits + off // wraps where the file lies before its own offsets, and comes back
	if err := block.ReadFull(f.v.dev, p, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

// extent finds what maps block logical of the file. Where nothing does, it gives the hole.
func (f *File) extent(logical uint64) (e Extent, mapped bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if logical < f.from || logical >= f.to {
		if err := f.load(logical); err != nil {
			return e, false, err
		}
	}
	// The first that ends behind logical.
	lo, hi := 0, len(f.run)
	for lo < hi {
		mid := (lo + hi) / 2
		if f.run[mid].Logical+uint64(f.run[mid].Len) > logical {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	end := f.to
	if lo < len(f.run) {
		if e = f.run[lo]; e.Logical <= logical {
			return e, true, nil
		}
		end = e.Logical
	}
	return Extent{Logical: logical, Len: uint32(min(end-logical, 1<<31))}, false, nil
}

// load takes the extents from logical on.
func (f *File) load(logical uint64) error {
	f.run, f.from, f.to = f.run[:0], logical, 1<<63
	err := f.v.extentsFrom(&f.in, logical, func(e Extent) bool {
		end := e.Logical + uint64(e.Len)
		if end <= logical {
			return true
		}
		if len(f.run) == maxRun {
			f.to = e.Logical
			return false
		}
		f.run = append(f.run, e)
		return true
	}, nil)
	if sum := (*ChecksumError)(nil); errors.As(err, &sum) {
		err = nil
	}
	if err != nil {
		f.to = 0
		return err
	}
	if f.to <= logical {
		return fmt.Errorf("ext4: inode %d: block %d of the file is mapped twice: %w", f.in.Number, logical, mem.ErrInconsistent)
	}
	return nil
}

// ReadFile is the content of the file at path, symbolic links followed. A file of more than limit bytes is an error, so
// that a guest cannot choose how much memory is taken.
func (v *Volume) ReadFile(path string, limit int64) ([]byte, error) {
	f, err := v.OpenFile(path)
	if err != nil {
		return nil, err
	}
	if f.Size() > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%d bytes, want at most %d: %w", f.Size(), limit, syscall.EFBIG)}
	}
	b := make([]byte, f.Size())
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return b[:n], &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b, nil
}
