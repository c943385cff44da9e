package main

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// kexec goes over into another kernel at once: nothing is unmounted, the memory of this kernel stays as it is.
func kexec(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: rat kexec KERNEL INITRD COMMAND-LINE")
	}
	kernel, err := os.Open(args[0])
	if err != nil {
		return err
	}
	initrd, err := os.Open(args[1])
	if err != nil {
		return err
	}
	line, err := syscall.ByteSliceFromString(args[2])
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(sysKexecFileLoad, kernel.Fd(), initrd.Fd(), uintptr(len(line)), uintptr(unsafe.Pointer(&line[0])), 0, 0)
	if errno != 0 {
		return errno
	}
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_KEXEC)
}
