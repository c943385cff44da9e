package ext4

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"vmscope/block"
	"vmscope/event"
)

// Entry is a name in a directory.
type Entry struct {
	Name string // as the guest chose it; of an encrypted one, EncryptedName
	Ino  uint32
	Kind event.Kind // as the entry says, which may lie; "" where it says nothing
	// Encrypted says that Name is not what the guest calls it.
	Encrypted bool
}

// dirChunk is how much of a directory is read at once, bytes.
const dirChunk = 256 << 10

// Entries visits what is in a directory, "." and ".." aside, in the order of the disk, until visit gives false. The error
// comes after all that could be read.
func (v *Volume) Entries(dir *Inode, visit func(Entry) bool) error {
	return v.dirents(dir, func(d Dirent) bool {
		kind, _ := d.Kind()
		return visit(Entry{Name: ShowName(dir, d), Ino: d.Ino, Kind: kind, Encrypted: dir.Encrypted()})
	})
}

// dirents visits the entries but "." and "..", those of fast commits in place of older ones.
func (v *Volume) dirents(dir *Inode, visit func(Dirent) bool) error {
	if !dir.IsDir() {
		return notDir(dir)
	}
	if v.fast == nil {
		return v.homeDirents(dir, visit)
	}
	edits := v.fast.names.fast.edits(dir.Number)
	more := true
	err := v.homeDirents(dir, func(d Dirent) bool {
		if _, ok := edits[nameOf(dir, d)]; ok {
			return true
		}
		more = visit(d)
		return more
	})
	for _, name := range slices.Sorted(maps.Keys(edits)) {
		ino := edits[name].is
		if ino == 0 || !more {
			continue
		}
		d := Dirent{Ino: ino, Type: v.typeOf(ino), Name: []byte(name)}
		if dir.Encrypted() {
			d.Name, _ = base64.RawURLEncoding.DecodeString(name) // back from EncryptedName
		}
		more = visit(d)
	}
	return err
}

func (v *Volume) typeOf(ino uint32) uint8 {
	in, err := v.Inode(ino)
	if err != nil {
		return FileTypeUnknown
	}
	switch in.Mode & sIFMT {
	case sIFREG:
		return FileTypeFile
	case sIFDIR:
		return FileTypeDir
	case sIFCHR:
		return FileTypeCharDev
	case sIFBLK:
		return FileTypeBlockDev
	case sIFIFO:
		return FileTypeFIFO
	case sIFSOCK:
		return FileTypeSocket
	case sIFLNK:
		return FileTypeSymlink
	}
	return FileTypeUnknown
}

func (v *Volume) homeDirents(dir *Inode, visit func(Dirent) bool) error {
	more := true
	each := func(d Dirent) bool {
		if d.IsDot() {
			return true
		}
		more = visit(d)
		return more
	}
	if dir.Inline() {
		return v.sb.InlineDirents(dir, each)
	}
	var (
		first error // of what is wrong; the rest is read nevertheless
		buf   []byte
		size  = v.sb.BlockSize
		end   = v.sb.blocksFor(dir.Size)
	)
	note := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	err := v.Extents(dir, func(e Extent) bool {
		for e.Len > 0 && e.Logical < end && !e.Unwritten {
			n := min(uint64(e.Len), end-e.Logical, uint64(dirChunk/size))
			if want := int(n) * size; len(buf) < want {
				buf = make([]byte, want)
			}
			chunk := buf[:int(n)*size]
			if err := block.ReadFull(v.dev, chunk, int64(e.Physical)<<v.sb.blockBits); err != nil {
				note(err)
				return false
			}
			for i := 0; i < len(chunk) && more; i += size {
				b := chunk[i : i+size]
				if err := v.sb.DirentsOf(dir, b, each); err != nil {
					note(fmt.Errorf("directory %d, block %d: %w", dir.Number, e.Physical+uint64(i/size), err))
				} else if first == nil && !v.sb.DirBlockOK(dir, b) {
					note(&ChecksumError{What: "directory", Inode: dir.Number, Block: e.Physical + uint64(i/size)})
				}
			}
			if !more {
				return false
			}
			e.Logical, e.Physical, e.Len = e.Logical+n, e.Physical+n, e.Len-uint32(n)
		}
		return true
	}, nil)
	if !more {
		return nil
	}
	return errors.Join(err, first)
}

// ReadDir lists a directory, symbolic links followed. Entries that could be read are given beside an error.
func (v *Volume) ReadDir(path string) ([]Entry, error) {
	dir, err := v.Stat(path)
	if err != nil {
		return nil, err
	}
	var list []Entry
	err = v.Entries(&dir, func(e Entry) bool {
		list = append(list, e)
		return true
	})
	if err != nil {
		err = &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	return list, err
}
