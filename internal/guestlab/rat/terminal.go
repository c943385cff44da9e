package main

import (
	"bytes"
	"errors"
	"syscall"
	"unsafe"
)

// openTerminal opens a terminal and makes it carry bytes as they are: a console of a Xen guest, say, or the other end of
// one.
func openTerminal(path string) (port, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return port{}, err
	}
	var t syscall.Termios
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TCGETS, uintptr(unsafe.Pointer(&t))); errno != 0 {
		return port{}, errno
	}
	// cfmakeraw of termios(3).
	t.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.ISTRIP | syscall.INLCR | syscall.IGNCR | syscall.ICRNL | syscall.IXON
	t.Oflag &^= syscall.OPOST
	t.Lflag &^= syscall.ECHO | syscall.ECHONL | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
	t.Cflag = t.Cflag&^(syscall.CSIZE|syscall.PARENB) | syscall.CS8
	t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TCSETS, uintptr(unsafe.Pointer(&t))); errno != 0 {
		return port{}, errno
	}
	return port{fd}, nil
}

// The kernel takes ^O from its own console for the start of a magic SysRq and swallows it with the byte behind it; two of
// them are one that is meant (Linux drivers/tty/hvc/hvc_console.c, __hvc_poll).
var sysRq = []byte{0x0f}

// plain has a kernel's console pass all bytes on as they are.
func plain(b []byte) []byte { return bytes.ReplaceAll(b, sysRq, []byte{sysRq[0], sysRq[0]}) }

// relay carries bytes between a virtio-serial port, whose other end the host holds, and the console of a kernel, until one
// of them ends.
func relay(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: rat relay PORT TERMINAL")
	}
	host, err := openPort(args[0])
	if err != nil {
		return err
	}
	terminal, err := openPort(args[1])
	if err != nil {
		return err
	}
	ended := make(chan error)
	carry := func(to, from port, as func([]byte) []byte) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err == nil {
				_, err = to.Write(as(buf[:n]))
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}
	go carry(host, terminal, func(b []byte) []byte { return b })
	go carry(terminal, host, plain)
	return <-ended
}
