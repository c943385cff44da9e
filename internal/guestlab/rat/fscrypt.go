package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// Encryption of files, by include/uapi/linux/fscrypt.h.
const (
	fsIOCAddEncryptionKey    = 0xc0506617
	fsIOCRemoveEncryptionKey = 0xc0406618
	fsIOCSetEncryptionPolicy = 0x800c6613

	keyIdentifier   = 2 // FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	keySpecSize     = 40
	removeArgSize   = 64
	removalFlags    = keySpecSize // where struct fscrypt_remove_key_arg has them
	removalBusyFlag = 1           // FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY
)

// addKey gives the file system that fd lies on the one key that there is here, and returns what specifies it.
func addKey(fd int) (spec []byte, err error) {
	var arg [80 + 64]byte // struct fscrypt_add_key_arg and the raw key
	binary.LittleEndian.PutUint32(arg[0:], keyIdentifier)
	binary.LittleEndian.PutUint32(arg[keySpecSize:], 64)
	for i := range 64 {
		arg[80+i] = byte(i*7 + 1)
	}
	if err := ioctl(fd, fsIOCAddEncryptionKey, arg[:]); err != nil {
		return nil, fmt.Errorf("add an encryption key: %w", err)
	}
	return arg[:keySpecSize], nil
}

// encrypt sets a version 2 policy on an empty directory: AES-256-XTS for contents, AES-256-CTS for names, which are
// padded to 32 bytes.
func encrypt(fd int) error {
	spec, err := addKey(fd)
	if err != nil {
		return err
	}
	policy := append([]byte{2, 1, 4, 3, 0, 0, 0, 0}, spec[8:24]...)
	if err := ioctl(fd, fsIOCSetEncryptionPolicy, policy); err != nil {
		return fmt.Errorf("set an encryption policy: %w", err)
	}
	return nil
}

// withoutKey runs f while the file system has no key, and names of encrypted files look as they do to a stranger.
func withoutKey(dir string, f func() error) error {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	spec, err := addKey(fd) // it is there; this tells how it is called
	if err != nil {
		return err
	}
	var arg [removeArgSize]byte
	copy(arg[:], spec)
	if err := ioctl(fd, fsIOCRemoveEncryptionKey, arg[:]); err != nil {
		return fmt.Errorf("remove the encryption key: %w", err)
	}
	if arg[removalFlags]&removalBusyFlag != 0 {
		return errors.New("encrypted files are open: their key stays")
	}
	err = f()
	_, again := addKey(fd)
	return errors.Join(err, again)
}
