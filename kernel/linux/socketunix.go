package linux

import (
	"bytes"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// unixLayout is what is read of struct unix_sock (include/net/af_unix.h).
type unixLayout struct {
	Addr ctype.Field `c:"unix_sock.addr"`
	Peer ctype.Field `c:"unix_sock.peer"`
	Len  ctype.Field `c:"unix_address.len"`
	Name ctype.Field `c:"unix_address.name"`
	Path ctype.Field `c:"sockaddr_un.sun_path"`
}

// unixBuckets is UNIX_HASH_SIZE, 2*UNIX_HASH_SIZE before v6.0: the same since
// 2.6.
const unixBuckets = 512

// afUnix is the family of unix-domain sockets (include/linux/socket.h).
const afUnix = 1

// unixTypes are the names of sock.sk_type (include/linux/net.h).
var unixTypes = map[uint64]string{1: "unix", 2: "unix-dgram", 5: "unix-seqpacket"}

// unix lists unix-domain sockets.
func (r *sockReader) unix() error {
	l, err := layout[unixLayout](r.v.Kernel)
	if err != nil {
		return err
	}
	tables, err := r.tables(func(n *netNS) mem.VA { return n.unix }, "unix_socket_table")
	if err != nil {
		return err
	}
	for _, at := range tables {
		t := hashTable{name: "unix", at: at, n: unixBuckets, stride: uint64(r.v.Mem.PointerSize())}
		if err := r.walk(t, func(node mem.VA) error { return r.unixSocket(l, node) }); err != nil {
			return err
		}
	}
	return nil
}

// unixSocket decodes the unix-domain socket whose chain link is at node.
func (r *sockReader) unixSocket(l *unixLayout, node mem.VA) error {
	if err := r.begin(node); err != nil {
		return err
	}
	at := r.sk.at
	if f := r.sk.uint(r.l.Family); f != afUnix {
		return r.broken("a unix socket of family %d", f)
	}
	typ, err := r.v.Mem.Uint(r.l.Type.At(at), int(r.l.Type.Size()))
	if err != nil {
		return err
	}
	var s kernel.Socket
	var ok bool
	if s.Proto, ok = unixTypes[typ]; !ok {
		return r.broken("a unix socket of type %d", typ)
	}
	if s.State, ok = sockState(r.sk.uint(r.l.State)); !ok {
		return r.broken("a unix socket in state %d", r.sk.uint(r.l.State))
	}
	if s.UID, s.Inode, err = r.identity(at); err != nil {
		return err
	}
	if s.Local, err = r.unixName(l, at); err != nil {
		return err
	}
	peer, err := r.v.Mem.Pointer(l.Peer.At(at))
	if err != nil {
		return err
	}
	if peer != 0 {
		if s.Remote, err = r.unixName(l, peer); err != nil {
			return err
		}
		if s.Peer, err = r.inode(peer); err != nil {
			return err
		}
	}
	return r.add(s)
}

// unixName reads the address that the socket at sk is bound to: a path as it
// was given to bind(2), or @ and an abstract name, in which the kernel prints
// each NUL as @ too. "" if it is bound to none.
func (r *sockReader) unixName(l *unixLayout, sk mem.VA) (kernel.Text, error) {
	addr, err := r.v.Mem.Pointer(l.Addr.At(sk))
	if err != nil || addr == 0 {
		return "", err
	}
	n, err := r.v.Mem.Uint32(l.Len.At(addr))
	if err != nil {
		return "", err
	}
	// A sockaddr_un: its family, then the path.
	if min := uint32(l.Path.Offset); n <= min || n > min+uint32(l.Path.Size())+1 {
		return "", errBroken("unix_address", addr, fmt.Sprintf("%d bytes", n))
	}
	b := make([]byte, n-uint32(l.Path.Offset))
	if _, err := r.v.Mem.Read(b, l.Path.At(l.Name.At(addr))); err != nil {
		return "", err
	}
	if b[0] != 0 {
		return kernel.Text(cstr(b)), nil
	}
	return kernel.Text(bytes.ReplaceAll(b, []byte{0}, []byte{'@'})), nil
}
