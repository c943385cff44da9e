package fsoracle

import (
	"bytes"
	"encoding/base64"
	"slices"

	"vmscope/event"
	"vmscope/internal/guestlab/wire"
)

// dirHash is the length of what stands before a name's ciphertext in the name that the kernel makes up where it has no key
// (struct fscrypt_nokey_name, fs/crypto/fname.c): two words of the directory's hash.
const dirHash = 8

// WithoutDirHash gives the tree that a guest without the key told as somebody has it who sees the disk alone: the
// name of an encrypted file, and the target of an encrypted symbolic link, is its ciphertext in base64url, without the
// hash that the kernel puts before it; such a link's size is that on the disk. Names of more than 149 bytes, whose
// end the kernel hashes, are left alone.
func WithoutDirHash(tree []wire.File) []wire.File {
	if !slices.ContainsFunc(tree, func(f wire.File) bool { return f.Encrypted }) {
		return tree
	}
	tree = slices.Clone(tree)
	renamed := map[string]string{} // directories, and whether what is in them is encrypted
	encrypted := map[string]bool{}
	for i := range tree { // a directory before what is in it
		f := &tree[i]
		told := string(f.Path)
		if told != "/" {
			cut := bytes.LastIndexByte(f.Path, '/')
			dir, name := told[:cut], told[cut+1:]
			if encrypted[dir] {
				name = ciphertext(name)
			}
			f.Path = []byte(renamed[dir] + "/" + name)
		}
		switch f.Kind {
		case string(event.Dir):
			if told == "/" {
				told = ""
			} else {
				renamed[told] = string(f.Path)
			}
			encrypted[told] = f.Encrypted
		case string(event.Lnk):
			if target := ciphertext(string(f.Target)); f.Encrypted && target != string(f.Target) {
				f.Target = []byte(target)
				f.Size = 2 + int64(base64.RawURLEncoding.DecodedLen(len(f.Target))) // struct fscrypt_symlink_data
			}
		}
	}
	return tree
}

// ciphertext takes the hash from a name without key; one that is none stays.
func ciphertext(name string) string {
	raw, err := base64.RawURLEncoding.DecodeString(name)
	if err != nil || len(raw) < dirHash || len(raw) > dirHash+149 {
		return name
	}
	return base64.RawURLEncoding.EncodeToString(raw[dirHash:])
}
