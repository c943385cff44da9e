package main

import (
	"syscall"
	"unsafe"
)

// System calls that package syscall lacks.
const (
	sysMemfdCreate = 356
	sysPidfdOpen   = 434
)

func mmapCall(size, prot, flags, fd, offset uintptr) uintptr {
	return call("mmap", syscall.SYS_MMAP2, 0, size, prot, flags, fd, offset/4096)
}

// sharedMemory goes by ipc(2), as there is no call for each on 32 bits.
func sharedMemory(key, size, flags uintptr) {
	const shmat, shmget = 21, 23
	var at uintptr
	call("shmat", syscall.SYS_IPC, shmat, call("shmget", syscall.SYS_IPC, shmget, key, size, flags), 0, uintptr(unsafe.Pointer(&at)), 0)
}
