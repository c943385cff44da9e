package main

import "syscall"

// System calls that package syscall lacks.
const (
	sysMemfdCreate = 319
	sysPidfdOpen   = 434
)

func mmapCall(size, prot, flags, fd, offset uintptr) uintptr {
	return call("mmap", syscall.SYS_MMAP, 0, size, prot, flags, fd, offset)
}

func sharedMemory(key, size, flags uintptr) {
	call("shmat", syscall.SYS_SHMAT, call("shmget", syscall.SYS_SHMGET, key, size, flags), 0, 0)
}
