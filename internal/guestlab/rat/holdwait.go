package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// waitForSockets starts threads that wait for sockets for good: for a connection, and for what one of several files has
// (poll, epoll).
func waitForSockets() error {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	listener, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := syscall.Bind(listener, &syscall.SockaddrUnix{Name: fmt.Sprintf("@waits%d", os.Getpid())}); err != nil {
		return err
	}
	if err := syscall.Listen(listener, 1); err != nil {
		return err
	}
	set, err := syscall.EpollCreate1(0)
	if err != nil {
		return err
	}
	if err := syscall.EpollCtl(set, syscall.EPOLL_CTL_ADD, pair[0], &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
		return err
	}
	startThread([]byte("accepts"), func() { syscall.Accept(listener) })
	startThread([]byte("polls"), func() {
		p := struct {
			fd              int32
			events, returns int16
		}{fd: int32(pair[1]), events: 1} // POLLIN
		syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
	})
	startThread([]byte("epolls"), func() { syscall.EpollWait(set, make([]syscall.EpollEvent, 1), -1) })
	return nil
}
