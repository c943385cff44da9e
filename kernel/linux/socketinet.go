package linux

import (
	"fmt"
	"math/bits"
	"net/netip"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// tcpLayout is what is read of struct inet_hashinfo
// (include/net/inet_hashtables.h).
type tcpLayout struct {
	Ehash      ctype.Field `c:"inet_hashinfo.ehash"`
	EhashMask  ctype.Field `c:"inet_hashinfo.ehash_mask"`
	EBucket    uint64      `c:"sizeof(inet_ehash_bucket)"`
	EChain     ctype.Field `c:"inet_ehash_bucket.chain"`
	Lhash2     ctype.Field `c:"inet_hashinfo.lhash2"`
	Lhash2Mask ctype.Field `c:"inet_hashinfo.lhash2_mask"`
	LBucket    uint64      `c:"sizeof(inet_listen_hashbucket)"`
	LChain     ctype.Field `c:"inet_listen_hashbucket.nulls_head"`
	// Gone with cae3873c5b3a ("net: inet: Retire port only listening_hash") in
	// v5.19. Where it is there, the links in lhash2 are others.
	Listening ctype.Field `c:"inet_hashinfo.listening_hash,optional"`
}

// udpLayout is what is read of struct udp_table (include/net/udp.h).
type udpLayout struct {
	Hash   ctype.Field `c:"udp_table.hash"`
	Mask   ctype.Field `c:"udp_table.mask"`
	Bucket uint64      `c:"sizeof(udp_hslot)"`
	Chain  ctype.Field `c:"udp_hslot.head"`
}

// tables gives the distinct tables of the namespaces, or the one that the
// symbol names where namespaces do not tell.
func (r *sockReader) tables(of func(*netNS) mem.VA, symbol string) ([]mem.VA, error) {
	var out []mem.VA
	seen := make(map[mem.VA]bool)
	for i := range r.nets {
		if at := of(&r.nets[i]); at != 0 && !seen[at] {
			seen[at] = true
			out = append(out, at)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	at, err := r.v.Symbol(symbol)
	if err != nil {
		return nil, err
	}
	return []mem.VA{at}, nil
}

// tcp lists TCP sockets: those that listen, then the others.
func (r *sockReader) tcp() error {
	l, err := layout[tcpLayout](r.v.Kernel)
	if err != nil {
		return err
	}
	tables, err := r.tables(func(n *netNS) mem.VA { return n.tcp }, "tcp_hashinfo")
	if err != nil {
		return err
	}
	n, err := span(l.Ehash, l.EhashMask, l.Lhash2, l.Lhash2Mask)
	if err != nil {
		return err
	}
	infos := make([]object, len(tables))
	for i, at := range tables {
		infos[i].b = make([]byte, n)
		if err := infos[i].read(r.v, at); err != nil {
			return fmt.Errorf("read the table of TCP sockets: %w", err)
		}
	}
	each := func(node mem.VA) error { return r.inet("tcp", node) }
	for i := range infos {
		t := hashTable{name: "listening TCP", stride: l.LBucket, head: l.LChain.Offset, nulls: true}
		if l.Listening.Valid() {
			t.at, t.n = l.Listening.At(tables[i]), uint64(l.Listening.Type.Len())
		} else {
			t.at, t.n = infos[i].ptr(l.Lhash2), infos[i].uint(l.Lhash2Mask)+1
		}
		if err := r.hashed(t, each); err != nil {
			return err
		}
	}
	for i := range infos {
		t := hashTable{name: "TCP", at: infos[i].ptr(l.Ehash), n: infos[i].uint(l.EhashMask) + 1,
			stride: l.EBucket, head: l.EChain.Offset, nulls: true}
		if err := r.hashed(t, each); err != nil {
			return err
		}
	}
	return nil
}

// udp lists UDP sockets.
func (r *sockReader) udp() error {
	l, err := layout[udpLayout](r.v.Kernel)
	if err != nil {
		return err
	}
	tables, err := r.tables(func(n *netNS) mem.VA { return n.udp }, "udp_table")
	if err != nil {
		return err
	}
	n, err := span(l.Hash, l.Mask)
	if err != nil {
		return err
	}
	o := object{b: make([]byte, n)}
	for _, at := range tables {
		if err := o.read(r.v, at); err != nil {
			return fmt.Errorf("read the table of UDP sockets: %w", err)
		}
		t := hashTable{name: "UDP", at: o.ptr(l.Hash), n: o.uint(l.Mask) + 1, stride: l.Bucket, head: l.Chain.Offset}
		if err := r.hashed(t, func(node mem.VA) error { return r.inet("udp", node) }); err != nil {
			return err
		}
	}
	return nil
}

// hashed walks a table whose size must be a power of two.
func (r *sockReader) hashed(t hashTable, each func(node mem.VA) error) error {
	if bits.OnesCount64(t.n) != 1 {
		return errBroken(t.name, t.at, fmt.Sprintf("%d buckets", t.n))
	}
	return r.walk(t, each)
}

// The families of sockets (include/linux/socket.h).
const (
	afInet  = 2
	afInet6 = 10
)

// inet decodes the TCP or UDP socket whose chain link is at node.
func (r *sockReader) inet(proto string, node mem.VA) error {
	if err := r.begin(node); err != nil {
		return err
	}
	l, sk := r.l, &r.sk
	s := kernel.Socket{Proto: proto}
	var local, remote netip.Addr
	switch f := sk.uint(l.Family); {
	case f == afInet:
		local, _ = netip.AddrFromSlice(sk.bytes(l.LocalV4))
		remote, _ = netip.AddrFromSlice(sk.bytes(l.RemoteV4))
	case f == afInet6 && l.LocalV6.Valid() && l.RemoteV6.Valid():
		s.Proto += "6"
		local, _ = netip.AddrFromSlice(sk.bytes(l.LocalV6))
		remote, _ = netip.AddrFromSlice(sk.bytes(l.RemoteV6))
	default:
		return r.broken("a %s socket of family %d", proto, f)
	}
	// The own port is a number, the other's is as on the wire.
	s.Local = endpoint(local, uint16(sk.uint(l.Num)))
	s.Remote = endpoint(remote, bits.ReverseBytes16(uint16(sk.uint(l.DPort))))

	var err error
	state := sk.uint(l.State)
	switch {
	case proto == "tcp" && state == tcpTimeWait:
		// Little is left of it: who made it is forgotten. It also stands for
		// FIN-WAIT-2.
		state, err = r.v.Mem.Uint(l.SubState.At(sk.at), 1)
	case proto == "tcp" && state == tcpNewSynRecv:
		// Not a socket yet: the listener's will be its user.
		if at := sk.ptr(l.Listener); at != 0 {
			s.UID, err = r.v.Mem.Uint32(l.UID.At(at))
		}
	default:
		s.UID, s.Inode, err = r.identity(sk.at)
	}
	if err != nil {
		return err
	}
	var ok bool
	if s.State, ok = sockState(state); !ok {
		return r.broken("a %s socket in state %d", proto, state)
	}
	return r.add(s)
}

// endpoint is an address and port as ss -n prints them: IPv6 in brackets, a *
// for no port.
func endpoint(a netip.Addr, port uint16) kernel.Text {
	if port != 0 {
		return kernel.Text(netip.AddrPortFrom(a, port).String())
	}
	if a.Is6() {
		return kernel.Text("[" + a.String() + "]:*")
	}
	return kernel.Text(a.String() + ":*")
}
