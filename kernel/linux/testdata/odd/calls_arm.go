package main

import "syscall"

// System calls that package syscall lacks.
const (
	sysMemfdCreate = 385
	sysPidfdOpen   = 434
)

func mmapCall(size, prot, flags, fd, offset uintptr) uintptr {
	return call("mmap", syscall.SYS_MMAP2, 0, size, prot, flags, fd, offset/4096)
}

func sharedMemory(key, size, flags uintptr) {
	call("shmat", syscall.SYS_SHMAT, call("shmget", syscall.SYS_SHMGET, key, size, flags), 0, 0)
}
