package main

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"syscall"
	"unsafe"
)

// codeMarker is what openCode's memory holds, for who looks for it.
const codeMarker = "a marker in held code"

// openCode makes code that does not come from the program's file as it is.
func openCode(kind string) error {
	const rx, rwx = syscall.PROT_READ | syscall.PROT_EXEC, syscall.PROT_READ | syscall.PROT_WRITE | syscall.PROT_EXEC
	switch kind {
	case "anonymous code":
		mem, err := syscall.Mmap(-1, 0, page, rwx, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
		if err == nil {
			copy(mem, codeMarker)
		}
		return err
	case "memfd code":
		name := []byte("held\x00")
		fd, _, errno := syscall.Syscall(319, uintptr(unsafe.Pointer(&name[0])), 0, 0) // memfd_create
		if errno != 0 {
			return errno
		}
		defer syscall.Close(int(fd))
		if _, err := syscall.Write(int(fd), bytes.Repeat([]byte{0x90}, page)); err != nil {
			return err
		}
		mem, err := syscall.Mmap(int(fd), 0, page, rx, syscall.MAP_PRIVATE)
		if err == nil && mem[0] != 0x90 {
			err = fmt.Errorf("it reads %#x", mem[0])
		}
		return err
	case "marked memory": // across pages, which lie anywhere in RAM
		const pages = 16
		mem, err := syscall.Mmap(-1, 0, pages*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
		for i := 1; err == nil && i < pages; i++ {
			copy(mem[i*page-8:], codeMarker)
		}
		return err
	case "patched code":
		at := reflect.ValueOf(unpatched).Pointer()
		mem := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at))), 8)
		first := at &^ (page - 1)
		for _, prot := range []uintptr{rwx, rx} {
			if _, _, errno := syscall.Syscall(syscall.SYS_MPROTECT, first, 2*page, prot); errno != 0 {
				return errno
			}
			if prot == rwx {
				copy(mem, "\x0f\x0b\x0f\x0b\x0f\x0b\x0f\x0b")
			}
		}
		return nil
	case "traced child":
		null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		_, err = syscall.ForkExec("/bin/busybox", []string{"sleep", "1000000"}, &syscall.ProcAttr{
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{Ptrace: true},
		})
		return err
	}
	return fmt.Errorf("not known")
}

// unpatched is overwritten and never called.
//
//go:noinline
func unpatched(n int) int {
	for i := range n {
		n ^= i << 3
	}
	return n
}
