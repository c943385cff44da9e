package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// sockLayout is what is read of struct sock_common and struct sock
// (include/net/sock.h), which every socket begins with.
type sockLayout struct {
	RemoteV4 ctype.Field `c:"sock_common.skc_daddr"`
	LocalV4  ctype.Field `c:"sock_common.skc_rcv_saddr"`
	RemoteV6 ctype.Field `c:"sock_common.skc_v6_daddr,optional"` // CONFIG_IPV6
	LocalV6  ctype.Field `c:"sock_common.skc_v6_rcv_saddr,optional"`
	DPort    ctype.Field `c:"sock_common.skc_dport"`
	Num      ctype.Field `c:"sock_common.skc_num"`
	Family   ctype.Field `c:"sock_common.skc_family"`
	State    ctype.Field `c:"sock_common.skc_state"`
	Net      ctype.Field `c:"sock_common.skc_net"`
	Node     ctype.Field `c:"sock_common.skc_node"` // and skc_nulls_node, in one union
	Listener ctype.Field `c:"sock_common.skc_listener"`
	SubState ctype.Field `c:"inet_timewait_sock.tw_substate"`

	UID    ctype.Field `c:"sock.sk_uid"`
	Type   ctype.Field `c:"sock.sk_type"`
	Socket ctype.Field `c:"sock.sk_socket"`

	// A struct socket and its inode are made as one.
	Alloc ctype.Field `c:"socket_alloc.socket"`
	Inode ctype.Field `c:"socket_alloc.vfs_inode"`
	Ino   ctype.Field `c:"inode.i_ino"`

	Net2 netLayout
}

// The states of TCP, which the other protocols use too
// (include/net/tcp_states.h), as ss(8) prints them. Part of the kernel's ABI.
const (
	tcpTimeWait   = 6
	tcpNewSynRecv = 12
)

var sockStates = [...]string{1: "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN",
	"CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "SYN-RECV", "BOUND-INACTIVE"}

// Sockets lists the TCP, UDP and unix-domain sockets of all network namespaces:
// those of /proc/net/tcp, tcp6, udp, udp6 and unix in each of them. A TCP socket
// that is bound and neither listens nor connects is in none of the kernel's
// tables and so not listed.
//
// The uid is that of who made the socket. /proc prints 0 instead for those that
// no descriptor leads to any more, until v6.17.
func (v *View) Sockets() ([]kernel.Socket, error) {
	r, err := v.sockets()
	if err != nil {
		return nil, err
	}
	r.note(r.list())
	return r.out, r.bad.err()
}

// sockets is a pass that has not begun.
func (v *View) sockets() (*sockReader, error) {
	l, err := layout[sockLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	n, err := span(l.RemoteV4, l.LocalV4, l.RemoteV6, l.LocalV6, l.DPort, l.Num, l.Family, l.State, l.Net, l.Node, l.Listener)
	if err != nil {
		return nil, err
	}
	return &sockReader{v: v, l: l, sk: object{b: make([]byte, n)}, seen: make(map[mem.VA]bool)}, nil
}

// sockReader is one pass over all tables of sockets.
type sockReader struct {
	v      *View
	l      *sockLayout
	sk     object // the sock_common at hand
	nets   []netNS
	inums  map[mem.VA]uint64         // of nets
	owners map[mem.VA][]kernel.Owner // by struct sock
	seen   map[mem.VA]bool           // tables done: namespaces may share them
	out    []kernel.Socket
	bad    mishaps

	anybodys bool // whose they are is not asked

	buckets uint64 // visited so far
	visited int    // sockets met so far, valid or not
}

// maxSockErrors is how many parts of the tables may fail before the rest is
// given up.
const maxSockErrors = 64

// note keeps an error, so that the rest is read all the same. It reports
// whether to go on.
func (r *sockReader) note(err error) bool {
	r.bad.add(err)
	return len(r.bad.errs)+r.bad.more < maxSockErrors && !errors.Is(err, mem.ErrUnreachable) && !errors.Is(err, errFull)
}

func (r *sockReader) list() error {
	var err error
	if r.nets, err = r.v.netNamespaces(); !r.note(err) {
		return nil
	}
	r.inums = make(map[mem.VA]uint64, len(r.nets))
	for _, n := range r.nets {
		r.inums[n.addr] = n.inum
	}
	if !r.anybodys {
		if r.owners, err = r.v.socketOwners(); !r.note(err) {
			return nil
		}
	}
	if err := r.tcp(); !r.note(err) {
		return nil
	}
	if err := r.udp(); !r.note(err) {
		return nil
	}
	return r.unix()
}

// begin copies the common part of the socket whose chain link is at node.
func (r *sockReader) begin(node mem.VA) error {
	return r.sk.read(r.v, node-mem.VA(r.l.Node.Offset))
}

// add appends a socket, with what is told alike for all kinds of it.
func (r *sockReader) add(s kernel.Socket) error {
	s.Addr = r.sk.at
	s.Owners = r.owners[s.Addr]
	var err error
	s.NetNS, err = r.netInode(r.sk.ptr(r.l.Net))
	r.out = append(r.out, s)
	return err
}

func (r *sockReader) netInode(net mem.VA) (uint64, error) {
	if n, ok := r.inums[net]; ok || net == 0 {
		return n, nil
	}
	// Being taken down: it has left the list, its sockets go last.
	return r.v.netInode(&r.l.Net2, net)
}

// identity reads who made the full socket at sk and its inode.
func (r *sockReader) identity(sk mem.VA) (uid uint32, inode uint64, err error) {
	if uid, err = r.v.Mem.Uint32(r.l.UID.At(sk)); err != nil {
		return 0, 0, err
	}
	inode, err = r.inode(sk)
	return uid, inode, err
}

// inode is the inode number of a full socket, 0 if it has no struct socket:
// not accepted yet, or closed.
func (r *sockReader) inode(sk mem.VA) (uint64, error) {
	socket, err := r.v.Mem.Pointer(r.l.Socket.At(sk))
	if err != nil || socket == 0 {
		return 0, err
	}
	at := r.l.Ino.At(r.l.Inode.At(socket - mem.VA(r.l.Alloc.Offset)))
	return r.v.Mem.Uint(at, int(r.l.Ino.Size()))
}

// state is a state as ss prints it.
func sockState(n uint64) (string, bool) {
	if n == 0 || n >= uint64(len(sockStates)) {
		return "", false
	}
	return sockStates[n], true
}

func (r *sockReader) broken(why string, args ...any) error {
	return errBroken("socket", r.sk.at, fmt.Sprintf(why, args...))
}
