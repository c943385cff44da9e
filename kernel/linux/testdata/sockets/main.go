// Command sockets opens sockets in states that shell tools do not bring about,
// says "ready" and sleeps.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

func check(what string, err error) {
	if err != nil {
		fmt.Println(what, err)
		os.Exit(1)
	}
}

func socket(family, style int) int {
	fd, err := syscall.Socket(family, style, 0)
	check("socket", err)
	return fd
}

func listen(fd int, addr syscall.Sockaddr) {
	check("bind", syscall.Bind(fd, addr))
	check("listen", syscall.Listen(fd, 8))
}

func main() {
	local := func(port int) *syscall.SockaddrInet4 {
		return &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	}

	// A server that wants data before it takes a connection: the requests wait
	// in SYN-RECV, of IPv4, IPv6, and IPv4 seen by an IPv6 server.
	for family, addr := range map[int]syscall.Sockaddr{syscall.AF_INET: local(3001), syscall.AF_INET6: &syscall.SockaddrInet6{Port: 3002}} {
		fd := socket(family, syscall.SOCK_STREAM)
		check("defer", syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 60))
		listen(fd, addr)
	}
	check("connect", syscall.Connect(socket(syscall.AF_INET, syscall.SOCK_STREAM), local(3001)))
	check("connect", syscall.Connect(socket(syscall.AF_INET, syscall.SOCK_STREAM), local(3002)))
	loop6 := &syscall.SockaddrInet6{Port: 3002, Addr: [16]byte{15: 1}}
	check("connect", syscall.Connect(socket(syscall.AF_INET6, syscall.SOCK_STREAM), loop6))

	// Connections that nobody has accepted, and one that was closed on one side
	// (FIN-WAIT-2 and CLOSE-WAIT).
	fd := socket(syscall.AF_INET6, syscall.SOCK_STREAM)
	listen(fd, &syscall.SockaddrInet6{Port: 3003})
	for range 3 {
		check("connect", syscall.Connect(socket(syscall.AF_INET, syscall.SOCK_STREAM), local(3003)))
	}
	half := socket(syscall.AF_INET, syscall.SOCK_STREAM)
	check("connect", syscall.Connect(half, local(3003)))
	check("shutdown", syscall.Shutdown(half, syscall.SHUT_WR))

	// UDP: connected, and bound to any port.
	udp := socket(syscall.AF_INET, syscall.SOCK_DGRAM)
	check("connect", syscall.Connect(udp, local(53)))
	check("bind", syscall.Bind(socket(syscall.AF_INET6, syscall.SOCK_DGRAM), &syscall.SockaddrInet6{}))

	// Unix: all types, not accepted, names of the greatest length, a name given
	// by the kernel, a pair, a descriptor held three times.
	for i, style := range []int{syscall.SOCK_STREAM, syscall.SOCK_SEQPACKET} {
		fd := socket(syscall.AF_UNIX, style)
		name := fmt.Sprintf("@long-%d-%0100d", i, i)[:108]
		listen(fd, &syscall.SockaddrUnix{Name: name})
		check("connect", syscall.Connect(socket(syscall.AF_UNIX, style), &syscall.SockaddrUnix{Name: name}))
	}
	gram := socket(syscall.AF_UNIX, syscall.SOCK_DGRAM)
	check("bind", syscall.Bind(gram, &syscall.SockaddrUnix{Name: "relative \t\xff name"}))
	check("connect", syscall.Connect(socket(syscall.AF_UNIX, syscall.SOCK_DGRAM), &syscall.SockaddrUnix{Name: "relative \t\xff name"}))
	_, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	check("socketpair", err)
	_, err = syscall.Dup(gram)
	check("dup", err)
	check("dup2", syscall.Dup2(gram, 900))

	fmt.Println("ready")
	time.Sleep(time.Hour)
}
