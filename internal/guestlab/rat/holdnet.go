package main

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"vmscope/internal/guestlab/wire"
)

// openSockets listens, then connects, then accepts what has arrived at its own listeners.
func openSockets(h *wire.Hold) error {
	var listeners []int
	for _, spec := range h.Listen {
		fd, addr, err := newSocket(spec)
		if err == nil {
			err = syscall.Bind(fd, addr)
		}
		if err == nil {
			err = syscall.Listen(fd, 16)
		}
		if err != nil {
			return fmt.Errorf("listen %q: %w", spec, err)
		}
		listeners = append(listeners, fd)
	}
	for _, spec := range h.Bind {
		fd, addr, err := newSocket(spec)
		if err == nil {
			err = syscall.Bind(fd, addr)
		}
		if err != nil {
			return fmt.Errorf("bind %q: %w", spec, err)
		}
	}
	for _, spec := range h.Connect {
		fd, addr, err := newSocket(spec)
		if err == nil {
			err = syscall.Connect(fd, addr)
		}
		if err != nil {
			return fmt.Errorf("connect %q: %w", spec, err)
		}
	}
	for _, fd := range listeners {
		if err := acceptAll(fd); err != nil {
			return fmt.Errorf("accept: %w", err)
		}
	}
	return nil
}

func acceptAll(fd int) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	for {
		_, _, err := syscall.Accept(fd)
		switch err {
		case nil, syscall.EINTR:
		case syscall.EAGAIN:
			return nil
		default:
			return err
		}
	}
}

// newSocket makes an unbound socket for a specification such as tcp4:127.0.0.1:80, udp6:[::1]:53, unix:/run/x, unix:@x.
func newSocket(spec string) (fd int, addr syscall.Sockaddr, err error) {
	kind, text, _ := strings.Cut(spec, ":")
	var family, style int
	switch kind {
	case "tcp4":
		family, style = syscall.AF_INET, syscall.SOCK_STREAM
	case "tcp6":
		family, style = syscall.AF_INET6, syscall.SOCK_STREAM
	case "udp4":
		family, style = syscall.AF_INET, syscall.SOCK_DGRAM
	case "udp6":
		family, style = syscall.AF_INET6, syscall.SOCK_DGRAM
	case "unix":
		family, style = syscall.AF_UNIX, syscall.SOCK_STREAM
	case "unixgram":
		family, style = syscall.AF_UNIX, syscall.SOCK_DGRAM
	default:
		return 0, nil, fmt.Errorf("no socket kind %q", kind)
	}
	switch family {
	case syscall.AF_UNIX:
		addr = &syscall.SockaddrUnix{Name: text}
	default:
		ap, err := netip.ParseAddrPort(text)
		if err != nil {
			return 0, nil, err
		}
		if family == syscall.AF_INET {
			addr = &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
		} else {
			addr = &syscall.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
		}
	}
	fd, err = syscall.Socket(family, style, 0)
	return fd, addr, err
}
