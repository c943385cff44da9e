package main

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// System calls for files that the syscall package has no function for; amd64 numbers.
const (
	atFDCWD           = ^uintptr(99) // -100
	atSymlinkFollow   = 0x400
	atSymlinkNoFollow = 0x100
	oTmpfile          = 0o20000000 | syscall.O_DIRECTORY

	renameNoReplace = 1
	renameExchange  = 2
	renameWhiteout  = 4

	fallocKeepSize      = 1
	fallocPunchHole     = 2
	fallocCollapseRange = 8
	fallocZeroRange     = 16
	fallocInsertRange   = 32

	fsIOCGetFlags = 0x80086601
	fsIOCSetFlags = 0x40086602
	flagCasefold  = 0x40000000
)

func errnoOr(e syscall.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func renameat2(from, to string, flags uintptr) error {
	f, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	t, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, e := syscall.Syscall6(sysRenameat2, atFDCWD, uintptr(unsafe.Pointer(f)), atFDCWD, uintptr(unsafe.Pointer(t)), flags, 0)
	return errnoOr(e)
}

// linkFD gives an open file, perhaps one without any name, a name.
func linkFD(fdPath, to string) error {
	f, err := syscall.BytePtrFromString(fdPath)
	if err != nil {
		return err
	}
	t, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, e := syscall.Syscall6(sysLinkat, atFDCWD, uintptr(unsafe.Pointer(f)), atFDCWD, uintptr(unsafe.Pointer(t)), atSymlinkFollow, 0)
	return errnoOr(e)
}

func syncfs(fd int) error {
	_, _, e := syscall.Syscall(sysSyncfs, uintptr(fd), 0, 0)
	return errnoOr(e)
}

// xattrCall makes one of the calls that take a path, a name or none, and a buffer or none.
func xattrCall(number uintptr, path, name string, buf []byte) (int, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	b := unsafe.Pointer(unsafe.SliceData(buf))
	var r uintptr
	var e syscall.Errno
	if number == sysLlistxattr {
		r, _, e = syscall.Syscall(number, uintptr(unsafe.Pointer(p)), uintptr(b), uintptr(len(buf)))
	} else {
		r, _, e = syscall.Syscall6(number, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(n)), uintptr(b), uintptr(len(buf)), 0, 0)
	}
	return int(r), errnoOr(e)
}

// generation asks for a file handle, which names inode and generation of any kind of file without opening it (ext4 uses
// the generic form: FILEID_INO32_GEN, include/linux/exportfs.h).
func generation(path string) (uint32, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	var handle [8 + 128]byte // u32 bytes, i32 type, f_handle
	binary.LittleEndian.PutUint32(handle[:], 128)
	var mount [8]byte
	_, _, e := syscall.Syscall6(sysNameToHandleAt, atFDCWD, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&handle)), uintptr(unsafe.Pointer(&mount)), 0, 0)
	if e != 0 {
		return 0, e
	}
	if binary.LittleEndian.Uint32(handle[:]) < 8 || binary.LittleEndian.Uint32(handle[4:])|1 != 1 {
		return 0, syscall.EOPNOTSUPP
	}
	return binary.LittleEndian.Uint32(handle[12:]), nil
}

func ioctl(fd int, request uintptr, arg []byte) error {
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(unsafe.SliceData(arg))))
	return errnoOr(e)
}

// isEncrypted asks statx for STATX_ATTR_ENCRYPTED, which is known without opening the file.
func isEncrypted(path string) (bool, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return false, err
	}
	var st [256]byte // struct statx
	_, _, e := syscall.Syscall6(sysStatx, atFDCWD, uintptr(unsafe.Pointer(p)), atSymlinkNoFollow, 0, uintptr(unsafe.Pointer(&st)), 0)
	return binary.LittleEndian.Uint64(st[8:])&0x800 != 0, errnoOr(e)
}
