package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"vmscope/internal/guestlab/wire"
)

// tellSockets reads /proc/net once in every network namespace that some process is in.
func tellSockets(tell func(any), pid int) error {
	list, err := pids(pid)
	if err != nil {
		return err
	}
	owners := socketOwners()
	seen := map[uint64]bool{}
	for _, pid := range list {
		dir := fmt.Sprintf("/proc/%d/", pid)
		ns, ok := bracketed(string(link(dir + "ns/net")))
		if !ok || seen[ns] {
			continue
		}
		seen[ns] = true
		for _, proto := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
			text, err := os.ReadFile(dir + "net/" + proto)
			if err != nil {
				continue // ended, or a kernel without this protocol
			}
			first := true
			for line := range strings.Lines(string(text)) {
				if first { // the heading
					first = false
					continue
				}
				read := inetSocket
				if proto == "unix" {
					read = unixSocket
				}
				s, err := read(strings.TrimSuffix(line, "\n"))
				if err != nil {
					return fmt.Errorf("%s socket %q: %w", proto, line, err)
				}
				s.Proto, s.NetNS = proto, ns
				if s.Inode != 0 {
					s.Owners = owners[s.Inode]
				}
				tell(s)
			}
		}
	}
	return nil
}

// socketOwners finds who holds which socket by looking at all descriptors.
func socketOwners() map[uint64][]wire.Owner {
	owners := map[uint64][]wire.Owner{}
	list, _ := numbers("/proc")
	for _, pid := range list {
		fds, _ := numbers(fmt.Sprintf("/proc/%d/fd", pid))
		for _, fd := range fds {
			target := string(link(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)))
			if !strings.HasPrefix(target, "socket:") {
				continue
			}
			if ino, ok := bracketed(target); ok {
				owners[ino] = append(owners[ino], wire.Owner{PID: pid, FD: fd})
			}
		}
	}
	return owners
}

// inetSocket reads "sl local rem st tx:rx tr:when retrnsmt uid timeout inode ...".
func inetSocket(line string) (s wire.Socket, err error) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return s, fmt.Errorf("%d fields", len(f))
	}
	if s.Local, err = hexAddrPort(f[1]); err != nil {
		return s, err
	}
	if s.Remote, err = hexAddrPort(f[2]); err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(f[3], 16, 8)
	if err != nil {
		return s, err
	}
	s.State, s.UID = int(state), u32(f[7])
	s.Inode, err = strconv.ParseUint(f[9], 10, 64)
	return s, err
}

// hexAddrPort reads an address as /proc/net prints it: 32-bit words, each in the processor's byte order, here little
// endian; the port as a plain number.
func hexAddrPort(text string) (string, error) {
	addr, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(addr)
	if err != nil || len(raw)%4 != 0 {
		return "", fmt.Errorf("address %q", text)
	}
	for i := 0; i < len(raw); i += 4 {
		raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
	}
	ip, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return "", fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(ip, uint16(n)).String(), nil
}

// unixSocket reads "num: refcount protocol flags type state inode [path]"; a path may hold spaces.
func unixSocket(line string) (s wire.Socket, err error) {
	rest := line
	next := func() (word string) {
		rest = strings.TrimLeft(rest, " ")
		word, rest, _ = strings.Cut(rest, " ")
		return word
	}
	next() // the kernel address, hashed
	refs, err := strconv.ParseUint(next(), 16, 32)
	if err != nil {
		return s, err
	}
	next() // protocol, always 0
	if s.Flags, err = strconv.ParseUint(next(), 16, 64); err != nil {
		return s, err
	}
	kind, err := strconv.ParseUint(next(), 16, 16)
	if err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(next(), 16, 8)
	if err != nil {
		return s, err
	}
	s.Refs, s.Type, s.State = int(refs), int(kind), int(state)
	rest = strings.TrimLeft(rest, " ")
	inode, path, named := strings.Cut(rest, " ")
	if named {
		s.Path = []byte(path)
	}
	s.Inode, err = strconv.ParseUint(inode, 10, 64)
	return s, err
}
