package ext4

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"vmscope/mem"
)

// maxTarget is the longest target of a symbolic link, PATH_MAX of Linux.
const maxTarget = 4096

// Target is where a symbolic link leads: bytes that the guest chose. An encrypted target is given as by EncryptedName.
func (s *Super) Target(r BlockReader, in *Inode) (string, error) {
	if !in.IsSymlink() {
		return "", fmt.Errorf("ext4: inode %d: no symbolic link: %w", in.Number, mem.ErrInconsistent)
	}
	if in.Size > maxTarget {
		return "", fmt.Errorf("ext4: inode %d: symbolic link of %d bytes: %w", in.Number, in.Size, mem.ErrInconsistent)
	}
	var b []byte
	switch {
	case in.fastLink():
		b = in.Block[:in.Size]
	case in.Inline():
		var err error
		if b, err = s.InlineData(in); err != nil {
			return "", err
		}
	default:
		b = make([]byte, in.Size)
		if err := s.readStart(r, in, b); err != nil {
			return "", err
		}
	}
	if in.Encrypted() {
		// kernel: struct fscrypt_symlink_data, a length and the ciphertext.
		if len(b) < 2 || int(le.Uint16(b)) > len(b)-2 {
			return "", fmt.Errorf("ext4: inode %d: encrypted symbolic link of %d bytes: %w", in.Number, len(b), mem.ErrInconsistent)
		}
		return EncryptedName(b[2 : 2+le.Uint16(b)]), nil
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b), nil
}

// EncryptedName is a form of an encrypted name that can be shown and looked up: its ciphertext in the alphabet that Linux
// takes for the purpose (base64url). Linux without the key shows another, with a hash in front.
func EncryptedName(ciphertext []byte) string { return base64.RawURLEncoding.EncodeToString(ciphertext) }

// ShowName is the name of an entry of directory dir as it is shown: EncryptedName of ciphertext, else the name itself.
func ShowName(dir *Inode, d Dirent) string {
	if dir.Encrypted() && !d.IsDot() {
		return EncryptedName(d.Name)
	}
	return string(d.Name)
}
