package ext4

import (
	"bytes"
	"fmt"

	"vmscope/event"
	"vmscope/mem"
)

// Dirent is an entry of a directory. "." and ".." are entries too.
type Dirent struct {
	Ino  uint32
	Type uint8 // a FileType; 0 where the file system does not keep it
	// Name is as it lies in the block, into which it points: bytes that the guest chose, without '/' and NUL; ciphertext in
	// an encrypted directory, where any byte may be in it.
	Name []byte
}

// The values of Dirent.Type.
const (
	FileTypeUnknown = iota
	FileTypeFile
	FileTypeDir
	FileTypeCharDev
	FileTypeBlockDev
	FileTypeFIFO
	FileTypeSocket
	FileTypeSymlink
)

// Kind is what the entry says its inode is; ok is false where it says nothing.
func (d Dirent) Kind() (kind event.Kind, ok bool) {
	kinds := [...]event.Kind{"", event.File, event.Dir, event.CharDev, event.BlockDev, event.FIFO, event.Socket, event.Lnk}
	if int(d.Type) >= len(kinds) || d.Type == 0 {
		return "", false
	}
	return kinds[d.Type], true
}

// IsDot says whether it is "." or "..", which no user made.
func (d Dirent) IsDot() bool {
	return len(d.Name) == 1 && d.Name[0] == '.' || len(d.Name) == 2 && d.Name[0] == '.' && d.Name[1] == '.'
}

const (
	direntHeader = 8
	minRecLen    = 8
	direntTail   = 12   // the entry that holds a block's checksum
	tailType     = 0xde // its type
)

// Dirents visits the entries in use of a block of a directory that is not encrypted, until visit gives false. The blocks
// that index a large directory have no entries, its root has "." and ".."; the entry that holds a checksum is passed over. Where the block
// contradicts itself the error comes after the entries before. An entry whose name cannot be one ('/' or NUL in it) is
// not visited; its error comes after all others.
func (s *Super) Dirents(block []byte, visit func(Dirent) bool) error {
	return s.dirents(block, s.BlockSize, true, visit)
}

// EncryptedDirents is Dirents for a directory whose names are ciphertext.
func (s *Super) EncryptedDirents(block []byte, visit func(Dirent) bool) error {
	return s.dirents(block, s.BlockSize, false, visit)
}

// DirentsOf is Dirents or EncryptedDirents, as the directory is.
func (s *Super) DirentsOf(in *Inode, block []byte, visit func(Dirent) bool) error {
	return s.dirents(block, s.BlockSize, !in.Encrypted(), visit)
}

func (s *Super) dirents(b []byte, blockSize int, plain bool, visit func(Dirent) bool) error {
	filetype := s.incompat(IncompatFiletype)
	var illegal error
	for off := 0; off < len(b); {
		if len(b)-off < direntHeader {
			return badDirent(off, len(b)-off, 0)
		}
		e := b[off:]
		n, nameLen := int(le.Uint16(e[4:])), int(e[6])
		if blockSize == 1<<16 {
			n = longRecLen(n)
		}
		if n < minRecLen || n%4 != 0 || n > len(e) {
			return badDirent(off, n, nameLen)
		}
		off += n
		ino := le.Uint32(e)
		if ino == 0 {
			continue
		}
		if nameLen == 0 || direntHeader+nameLen > n {
			return badDirent(off-n, n, nameLen)
		}
		d := Dirent{Ino: ino, Name: e[direntHeader : direntHeader+nameLen : direntHeader+nameLen]}
		if filetype {
			d.Type = e[7] & 7 // the upper bits are Lustre's
		}
		if plain && !validName(d.Name) {
			if illegal == nil {
				illegal = fmt.Errorf("ext4: directory entry at %#x: inode %d: name %q: %w", off-n, ino, d.Name, mem.ErrInconsistent)
			}
			continue
		}
		if !visit(d) {
			return nil
		}
	}
	return illegal
}

func badDirent(off, n, nameLen int) error {
	return fmt.Errorf("ext4: directory entry at %#x: length %d, of its name %d: %w", off, n, nameLen, mem.ErrInconsistent)
}

// longRecLen decodes the length of an entry where blocks are 64 KiB: it has two bits more than a number of 16 bits, and
// takes those that are always 0 (kernel: ext4_rec_len_from_disk).
func longRecLen(n int) int {
	if n == 0 || n == 1<<16-1 {
		return 1 << 16
	}
	return n&^3 | n&3<<16
}

func validName(name []byte) bool {
	return bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0
}

// DirBlockOK says whether a block of directory in bears the right checksum, or none is asked for. Leaves carry it in their
// last entry, the blocks of an index behind the room for its entries (kernel: ext4_dirblock_csum, ext4_dx_csum).
func (s *Super) DirBlockOK(in *Inode, b []byte) bool {
	if !s.MetadataCsum() || len(b) != s.BlockSize {
		return true
	}
	tail := b[len(b)-direntTail:]
	if le.Uint32(tail) == 0 && le.Uint16(tail[4:]) == direntTail && tail[6] == 0 && tail[7] == tailType {
		return crc32c(s.seed(in), b[:len(b)-direntTail]) == le.Uint32(tail[8:])
	}
	at, ok := s.dxCount(b)
	if !ok {
		return false
	}
	limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
	end := at + 8*limit // of the room for entries, of which count and limit take the first
	if count > limit || end+8 > len(b) {
		return false
	}
	c := crc32c(s.seed(in), b[:at+8*count])
	c = crc32c(c, b[end:end+4])
	return crc32c(c, zero8[:4]) == le.Uint32(b[end+4:])
}

// dxCount tells where in a block of an index limit and count lie.
func (s *Super) dxCount(b []byte) (int, bool) {
	n := int(le.Uint16(b[4:]))
	if len(b) == 1<<16 {
		n = longRecLen(n)
	}
	if le.Uint32(b) == 0 && n == len(b) { // a node: one empty entry spans the block
		return 8, true
	}
	if n != 12 { // a root: "." and ".."
		return 0, false
	}
	n = int(le.Uint16(b[16:]))
	if len(b) == 1<<16 {
		n = longRecLen(n)
	}
	if n != len(b)-12 || le.Uint32(b[24:]) != 0 || b[29] != 8 {
		return 0, false
	}
	return 32, true
}
