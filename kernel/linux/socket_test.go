package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/kernel"
	"vmscope/mem"
)

func TestEndpoint(t *testing.T) {
	for _, c := range []struct {
		addr string
		port uint16
		want kernel.Text
	}{
		{"0.0.0.0", 22, "0.0.0.0:22"}, {"127.0.0.1", 0, "127.0.0.1:*"}, {"::", 80, "[::]:80"}, {"::", 0, "[::]:*"},
		{"2001:db8::1", 443, "[2001:db8::1]:443"}, {"::ffff:10.0.0.1", 65535, "[::ffff:10.0.0.1]:65535"},
	} {
		if got := endpoint(netip.MustParseAddr(c.addr), c.port); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

// netWorld is a world with sockets in it.
type netWorld struct {
	*world
	l     *sockLayout
	ns    mem.VA
	inode uint64
}

func newNetWorld(t testing.TB) *netWorld {
	w := newWorld(t)
	n := &netWorld{world: w, l: layoutOf[sockLayout](w), inode: 7000}
	n.ns = w.alloc(8192)
	w.put(n.ns, n.l.Net2.Inum, 4026531840)
	return n
}

// reader starts a pass over sockets.
func (n *netWorld) reader() *sockReader {
	size, err := span(n.l.RemoteV6, n.l.LocalV6, n.l.Net, n.l.Node, n.l.Listener)
	if err != nil {
		n.t.Fatal(err)
	}
	return &sockReader{v: n.v, l: n.l, sk: object{b: make([]byte, size)}, seen: make(map[mem.VA]bool)}
}

// sock makes a socket and returns its chain link.
func (n *netWorld) sock(family, state uint64, local, remote string, lport, rport uint64) (sk, node mem.VA) {
	l := n.l
	sk = n.alloc(2048)
	n.put(sk, l.Family, family)
	n.put(sk, l.State, state)
	n.put(sk, l.Net, uint64(n.ns))
	n.put(sk, l.Num, lport)
	n.put(sk, l.DPort, rport>>8|rport&0xff<<8)
	n.put(sk, l.UID, 1000)
	for _, a := range []struct {
		text string
		at   mem.VA
	}{{local, l.LocalV4.At(sk)}, {remote, l.RemoteV4.At(sk)}} {
		if family == afInet && a.text != "" {
			ip := netip.MustParseAddr(a.text).As4()
			copy(n.b[a.at:], ip[:])
		}
	}
	if family == afInet6 {
		ip := netip.MustParseAddr(local).As16()
		copy(n.b[l.LocalV6.At(sk):], ip[:])
		ip = netip.MustParseAddr(remote).As16()
		copy(n.b[l.RemoteV6.At(sk):], ip[:])
	}
	both := n.alloc(2048) // a struct socket_alloc
	n.inode++
	n.put(l.Inode.At(both), l.Ino, n.inode)
	n.put(sk, l.Socket, uint64(l.Alloc.At(both)))
	return sk, l.Node.At(sk)
}

func sockLines(list []kernel.Socket) []string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%s %s %s %s %d %d %d", s.Proto, s.State, s.Local, s.Remote, s.Inode, s.UID, s.NetNS))
	}
	return out
}

func TestInetSockets(t *testing.T) {
	n := newNetWorld(t)
	const buckets = 16
	at := n.alloc(8 * buckets)
	for i := range uint64(buckets) {
		n.put64(at+mem.VA(8*i), i<<1|1)
	}
	_, listen := n.sock(afInet, 10, "0.0.0.0", "0.0.0.0", 22, 0)
	_, estab := n.sock(afInet, 1, "10.0.0.1", "10.0.0.2", 22, 40000)
	wait, waits := n.sock(afInet, tcpTimeWait, "10.0.0.1", "10.0.0.3", 22, 40001)
	n.put(wait, n.l.SubState, 5)
	listener, _ := n.sock(afInet6, 10, "::", "::", 80, 0)
	req, request := n.sock(afInet6, tcpNewSynRecv, "2001:db8::1", "2001:db8::2", 80, 50000)
	n.put(req, n.l.Listener, uint64(listener))
	n.put(req, n.l.UID, 0xdead) // no member of a request
	orphan, orphans := n.sock(afInet, 4, "10.0.0.1", "10.0.0.4", 22, 40002)
	n.put(orphan, n.l.Socket, 0)
	n.chain(at+8*2, 2<<1|1, listen, estab, waits)
	n.chain(at+8*15, 15<<1|1, request, orphans)

	r := n.reader()
	table := hashTable{name: "TCP", at: at, n: buckets, stride: 8, nulls: true}
	each := func(node mem.VA) error { return r.inet("tcp", node) }
	if err := r.hashed(table, each); err != nil || r.bad.err() != nil {
		t.Fatal(err, r.bad.err())
	}
	want := []string{
		"tcp LISTEN 0.0.0.0:22 0.0.0.0:* 7001 1000 4026531840",
		"tcp ESTAB 10.0.0.1:22 10.0.0.2:40000 7002 1000 4026531840",
		"tcp FIN-WAIT-2 10.0.0.1:22 10.0.0.3:40001 0 0 4026531840",
		"tcp6 SYN-RECV [2001:db8::1]:80 [2001:db8::2]:50000 0 1000 4026531840",
		"tcp FIN-WAIT-1 10.0.0.1:22 10.0.0.4:40002 0 1000 4026531840",
	}
	if got := sockLines(r.out); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	// A table that a second namespace shares is not read again.
	if err := r.hashed(table, each); err != nil || len(r.out) != len(want) {
		t.Errorf("%d sockets, %v", len(r.out), err)
	}
}

func TestBrokenChains(t *testing.T) {
	for name, spoil := range map[string]func(n *netWorld, at mem.VA, nodes []mem.VA){
		"loop": func(n *netWorld, _ mem.VA, nodes []mem.VA) {
			n.put64(nodes[2], uint64(nodes[0]))
			n.put64(nodes[0]+8, uint64(nodes[2]))
		},
		"wrong back": func(n *netWorld, _ mem.VA, nodes []mem.VA) { n.put64(nodes[1]+8, 0x1234) },
		"other end":  func(n *netWorld, _ mem.VA, nodes []mem.VA) { n.put64(nodes[2], 3<<1|1) },
		"unreadable": func(n *netWorld, _ mem.VA, nodes []mem.VA) { n.put64(nodes[2], 1<<40) },
		"family":     func(n *netWorld, _ mem.VA, nodes []mem.VA) { n.put(nodes[1]-mem.VA(n.l.Node.Offset), n.l.Family, 77) },
		"state":      func(n *netWorld, _ mem.VA, nodes []mem.VA) { n.put(nodes[1]-mem.VA(n.l.Node.Offset), n.l.State, 77) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetWorld(t)
			at := n.alloc(64)
			var nodes []mem.VA
			for i := range uint64(4) {
				n.put64(at+mem.VA(8*i), i<<1|1)
				_, node := n.sock(afInet, 1, "10.0.0.1", "10.0.0.2", 22, 40000+i)
				nodes = append(nodes, node)
			}
			n.chain(at, 0<<1|1, nodes[:3]...)
			n.chain(at+16, 2<<1|1, nodes[3])
			spoil(n, at, nodes)
			r := n.reader()
			err := r.hashed(hashTable{name: "TCP", at: at, n: 4, stride: 8, nulls: true}, func(node mem.VA) error { return r.inet("tcp", node) })
			if err != nil {
				t.Fatal(err)
			}
			if err := r.bad.err(); !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, mem.ErrNoRAM) {
				t.Errorf("no error: %v", err)
			}
			// The sound chain is there all the same.
			if len(r.out) == 0 || r.out[len(r.out)-1].Remote != "10.0.0.2:40003" {
				t.Errorf("got %v", sockLines(r.out))
			}
		})
	}
	n := newNetWorld(t)
	r := n.reader()
	for _, table := range []hashTable{{name: "huge", at: 64, n: 1 << 40, stride: 8}, {name: "odd", at: 128, n: 3, stride: 8}, {name: "none", at: 192, stride: 8}} {
		if err := r.hashed(table, nil); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("%s: %v", table.name, err)
		}
	}
}

// TestChainMidway walks chains that the kernel is just changing.
func TestChainMidway(t *testing.T) {
	w := newWorld(t)
	walk := func(head mem.VA) string {
		var got []mem.VA
		_, err := w.v.chain(head, func(n mem.VA) error { got = append(got, n); return nil })
		return fmt.Sprintf("%#x %v", got, err)
	}
	w.chain(0x1000, 1, 0x2000, 0x3000, 0x4000)
	whole := walk(0x1000)
	// 0x2000 is being put in front of 0x3000, which does not know yet.
	w.put64(0x3008, 0x1000)
	if got := walk(0x1000); got != whole {
		t.Error(got)
	}
	// 0x3000 was taken out, 0x4000 does not know yet.
	w.chain(0x1000, 1, 0x2000, 0x3000, 0x4000)
	w.put64(0x2000, 0x4000)
	if got, want := walk(0x1000), "[0x2000 0x4000] <nil>"; got != want {
		t.Error(got)
	}
	// 0x5000 never stood between.
	w.put64(0x4008, 0x5000)
	if got := walk(0x1000); !strings.Contains(got, "pprev") {
		t.Error(got)
	}
}

func TestUnixSockets(t *testing.T) {
	n := newNetWorld(t)
	l := layoutOf[unixLayout](n.world)
	name := func(sk mem.VA, text string) {
		a := n.alloc(256)
		n.put(sk, l.Addr, uint64(a))
		n.put(a, l.Len, uint64(2+len(text)))
		n.bytes(l.Path.At(l.Name.At(a)), text)
	}
	server, node1 := n.sock(afUnix, 1, "", "", 0, 0)
	n.put(server, n.l.Type, 1)
	name(server, "/run/a socket\x00")
	client, node2 := n.sock(afUnix, 1, "", "", 0, 0)
	n.put(client, n.l.Type, 1)
	n.put(client, l.Peer, uint64(server))
	n.put(server, l.Peer, uint64(client))
	gram, node3 := n.sock(afUnix, 7, "", "", 0, 0)
	n.put(gram, n.l.Type, 2)
	name(gram, "\x00abs\x00tract")
	at := n.alloc(8 * unixBuckets)
	n.chain(at+8*300, 0, node1, node2)
	n.chain(at+8*5, 0, node3)

	r := n.reader()
	err := r.walk(hashTable{name: "unix", at: at, n: unixBuckets, stride: 8}, func(node mem.VA) error { return r.unixSocket(l, node) })
	if err != nil || r.bad.err() != nil {
		t.Fatal(err, r.bad.err())
	}
	want := []string{
		"unix-dgram UNCONN @abs@tract  7003 1000 4026531840",
		"unix ESTAB /run/a socket  7001 1000 4026531840",
		"unix ESTAB  /run/a socket 7002 1000 4026531840",
	}
	if got := sockLines(r.out); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if r.out[1].Peer != 7002 || r.out[2].Peer != 7001 {
		t.Errorf("peers %d, %d", r.out[1].Peer, r.out[2].Peer)
	}
	bad := n.alloc(256)
	n.put(gram, l.Addr, uint64(bad))
	for _, size := range []uint64{0, 2, 112, 1 << 31} {
		n.put(bad, l.Len, size)
		if _, err := r.unixName(l, gram); !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("an address of %d bytes: %v", size, err)
		}
	}
}

// ownerWorld makes a task that holds three descriptors of two sockets.
func ownerWorld(t testing.TB) (r *ownerReader, w *world, task, fdt mem.VA) {
	w = newWorld(t)
	l := layoutOf[ownerLayout](w)
	const ops = 0xffffffff81234560
	task, fdt = w.alloc(8192), w.alloc(256)
	files, fds, open := w.alloc(1024), w.alloc(256*8), w.alloc(32)
	w.put(task, l.Files, uint64(files))
	w.put(files, l.FDT, uint64(fdt))
	w.put(fdt, l.Max, 256)
	w.put(fdt, l.FD, uint64(fds))
	w.put(fdt, l.Open, uint64(open))
	file := func(fd int, op, sk uint64) {
		f, s := w.alloc(512), w.alloc(256)
		w.put(f, l.Op, op)
		w.put(f, l.Private, uint64(s))
		w.put(s, l.Sock, sk)
		w.put64(fds+mem.VA(8*fd), uint64(f))
		w.b[int(open)+fd/8] |= 1 << (fd % 8)
	}
	file(0, 0xffffffff81000000, 1)
	file(3, ops, 0xaaa0)
	file(64, ops, 0xaaa0)
	file(255, ops, 0xbbb0)
	w.b[open+1] = 1 // fd 8 is being opened
	return &ownerReader{v: w.v, l: l, ops: []mem.VA{ops}, inner: l.Sock}, w, task, fdt
}

func TestOwners(t *testing.T) {
	r, w, task, fdt := ownerWorld(t)
	l := r.l
	if err := r.task(&Task{Addr: task}); err != nil {
		t.Fatal(err)
	}
	if want := []heldFile{{0xaaa0, 3}, {0xaaa0, 64}, {0xbbb0, 255}}; !slices.Equal(r.held, want) {
		t.Errorf("got %v, want %v", r.held, want)
	}
	w.put(fdt, l.Max, 1<<31)
	if err := r.task(&Task{Addr: task}); !errors.Is(err, mem.ErrInconsistent) {
		t.Error(err)
	}
	w.put(task, l.Files, 0)
	if err := r.task(&Task{Addr: task}); err != nil || len(r.held) != 0 {
		t.Error(err, r.held)
	}
}

// FuzzSockets walks tables of TCP and unix sockets that answer as the fuzzer
// likes.
func FuzzSockets(f *testing.F) {
	n := newNetWorld(f)
	l := layoutOf[unixLayout](n.world)
	look := func(v *View, log uint8) *sockReader {
		r := n.reader()
		r.v = v
		r.walk(hashTable{name: "TCP", at: 0x1000, n: 1 << (log % 12), stride: 8, nulls: true}, func(node mem.VA) error { return r.inet("tcp", node) })
		r.walk(hashTable{name: "unix", at: 0x2000, n: 4, stride: 8}, func(node mem.VA) error { return r.unixSocket(l, node) })
		return r
	}
	n.next = 0x3000
	wait, waits := n.sock(afInet, tcpTimeWait, "10.0.0.1", "10.0.0.3", 22, 40001)
	n.put(wait, n.l.SubState, 5)
	_, estab := n.sock(afInet6, 1, "2001:db8::1", "2001:db8::2", 22, 40000)
	n.chain(0x1000, 0<<1|1, estab, waits)
	n.chain(0x1008, 1<<1|1)
	gram, grams := n.sock(afUnix, 7, "", "", 0, 0)
	n.put(gram, n.l.Type, 2)
	addr := n.alloc(256)
	n.put(gram, l.Addr, uint64(addr))
	n.put(addr, l.Len, 9)
	n.bytes(l.Path.At(l.Name.At(addr)), "/a/name")
	n.chain(0x2008, 0, grams)
	f.Add(uint8(1), n.answers(func(v *View) {
		if r := look(v, 1); len(r.out) != 3 || r.bad.err() != nil {
			f.Fatal(r.out, r.bad.err())
		}
	}))
	f.Fuzz(func(t *testing.T, log uint8, in []byte) {
		s := &memtest.Script{Answers: in}
		r := look(viewOf(n.v.Kernel, s), log)
		if s.Reads > len(in)+4+4*maxSockErrors*retries {
			t.Errorf("%d reads of %d bytes", s.Reads, len(in))
		}
		if len(r.out)*32 > len(in) {
			t.Errorf("%d sockets in %d bytes", len(r.out), len(in))
		}
		for _, x := range r.out {
			if x.State == "" || x.Proto == "" {
				t.Errorf("%+v", x)
			}
		}
	})
}

// FuzzOwners looks for sockets in a descriptor table that answers as the fuzzer
// likes.
func FuzzOwners(f *testing.F) {
	sample, w, task, _ := ownerWorld(f)
	f.Add(w.answers(func(v *View) {
		r := &ownerReader{v: v, l: sample.l, ops: sample.ops}
		if err := r.task(&Task{Addr: task}); err != nil || len(r.held) != 3 {
			f.Fatal(r.held, err)
		}
	}))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &memtest.Script{Answers: in}
		r := &ownerReader{v: viewOf(w.v.Kernel, s), l: sample.l, ops: sample.ops}
		if err := r.task(&Task{Addr: 0x1000}); err == nil && len(in) < 8 {
			t.Error("a table out of nothing")
		}
		if s.Reads > len(in)+2 || len(r.held)*24 > len(in) {
			t.Errorf("%d reads, %d sockets of %d bytes", s.Reads, len(r.held), len(in))
		}
	})
}
