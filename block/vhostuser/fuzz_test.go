package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// Where FuzzRing's input goes: descriptors, available ring, used ring, then headers, tables and data.
const (
	fuzzDesc  = ringSize * descSize
	fuzzAvail = 6 + 2*ringSize
	fuzzUsed  = 6 + 8*ringSize
)

// ringSeed is the input with the rings of a guest that offered something.
func ringSeed(f *testing.F, offer func(q *testQueue)) []byte {
	g := newGuestMemory(f)
	q := (&frontEnd{t: f, mem: g}).newQueue(0)
	offer(q)
	r := q.ring()
	b := append(bytes.Clone(r.desc), r.avail...)
	b = append(b, r.used...)
	return append(b, g.data[dataAt-0x8000:dataAt-0x8000+1024]...)
}

// FuzzRing serves a ring that is made of the input. Whatever it is: the observer's disk is the real one, no more is given
// back than was there, and a ring that is given up contradicts itself.
func FuzzRing(f *testing.F) {
	const at = dataAt - 0x8000
	for _, events := range []bool{false, true} {
		f.Add(events, ringSeed(f, func(q *testQueue) {
			q.put(0, typeOut, 3, piece{at, 1024, false})
			q.put(1, typeIn, 1, piece{at + 512, 512, true})
			q.put(2, typeFlush, 0)
			le.PutUint32(q.fe.mem.data[at+800:], 8)
			le.PutUint32(q.fe.mem.data[at+808:], 8)
			q.put(3, typeDiscard, 0, piece{at + 800, 16, false})
		}))
		f.Add(events, ringSeed(f, func(q *testQueue) {
			h, s := q.header(0, typeOut, 7)
			q.chain(q.fe.mem.data[at+512:], 0, h, piece{at, 512, false}, piece{highAt, 512, false}, s)
			putDesc(q.descs(), 1, at+512, 64, descIndirect, 0)
			q.offer(1)
			putDesc(q.descs(), 2, at, 16, descNext, 3)
			putDesc(q.descs(), 3, at, 16, descNext, 2)
			q.offer(2)
		}))
	}
	g := newGuestMemory(f)
	regions := g.regions()
	const size = 64 << 10
	f.Fuzz(func(t *testing.T, events bool, in []byte) {
		clear(g.data[queueAt : queueAt+0x4000])
		clear(g.data[at : at+4096])
		q := &testQueue{fe: &frontEnd{t: t, mem: g}, at: queueAt, num: ringSize}
		rg := q.ring()
		rest := in
		for _, part := range [][]byte{rg.desc[:fuzzDesc], rg.avail[:fuzzAvail], rg.used[:fuzzUsed], g.data[at : at+4096]} {
			rest = rest[copy(part, rest):]
		}
		d := newMemDiskOf(size)
		m := &model{t: t, disk: make([]byte, size), real: d, unwanted: func(off int64) bool { return off&512 != 0 }}
		srv, err := New(d, Options{Observer: m})
		if err != nil {
			t.Fatal(err)
		}
		s := &session{srv: srv, features: someFeatures}
		if events {
			s.features |= featEventIdx
		}
		var table []*region
		for i := range 3 {
			r, err := parseRegion(regions[i*regionSize:])
			if err != nil {
				t.Fatal(err)
			}
			r.data, r.file = g.data[r.offset:r.offset+r.size], g.f
			r.refs.Store(100) // the mapping is the test's
			table = append(table, r)
		}
		if err := s.replaceTable(table); err != nil {
			t.Fatal(err)
		}
		vq := &queue{s: s, num: ringSize, hasAddr: true, call: -1, err: -1, addr: ringAddr{userBase + queueAt, userBase + queueAt + 0x1000, userBase + queueAt + 0x2000}}
		vq.on.Store(true)
		r := &run{q: vq, kick: -1, poll: -1, alarm: -1, ended: make(chan struct{})}
		if err := r.prepare(); err != nil {
			t.Fatal(err)
		}
		defer r.close()
		used, available := rg.usedIdx(), rg.available()
		err = mem.Guard(func() error {
			if err := r.restart(); err != nil {
				return err
			}
			for range 3 { // a chain may write into the rings themselves
				if err := r.drainRing(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, mem.ErrInconsistent) {
			t.Errorf("given up: %v", err)
		}
		if given := r.used - used; err == nil && available <= ringSize && r.taken == available && given != available {
			t.Errorf("%d of %d given back", given, available)
		}
		if !m.same() {
			t.Error("the observer's disk is another")
		}
	})
}

// FuzzMessages lets a front end say anything. It ends by itself, leaves no descriptor open and nothing running.
//
// The input is a list of messages: request, flags, kinds of two descriptors, length, payload.
func FuzzMessages(f *testing.F) {
	add := func(to []byte, r request, fds byte, payload []byte) []byte {
		return append(append(to, byte(r), flagNeedReply, fds, byte(len(payload))), payload...)
	}
	g := newGuestMemory(f)
	var seed []byte
	seed = add(seed, getFeatures, 0, nil)
	seed = add(seed, setProtocolFeatures, 0, u64(protocolFeatures))
	seed = add(seed, setFeatures, 0, u64(someFeatures))
	seed = add(seed, setMemTable, 1, append(state(1, 0), g.regions()[:regionSize]...))
	seed = add(seed, addMemReg, 1, append(u64(0), g.regions()[2*regionSize:]...))
	seed = add(seed, getInflightFD, 0, []byte{16: 1, 18: 16, 23: 0})
	seed = add(seed, setInflightFD, 1, []byte{1: 16, 16: 1, 18: 16, 23: 0})
	seed = add(seed, setVringNum, 0, state(0, ringSize))
	seed = add(seed, setVringBase, 0, state(0, 0))
	seed = add(seed, setVringAddr, 0, (&testQueue{at: queueAt}).addrs())
	seed = add(seed, setVringKick, 2, u64(0))
	seed = add(seed, setVringCall, 2, u64(0))
	seed = add(seed, setVringErr, 0, u64(1<<8))
	seed = add(seed, setVringEnable, 0, state(0, 1))
	seed = add(seed, getConfig, 0, append(state(0, 8), make([]byte, 12)...))
	seed = add(seed, remMemReg, 1, append(u64(0), g.regions()[2*regionSize:]...))
	seed = add(seed, getVringBase, 0, state(0, 0))
	seed = add(seed, resetDevice, 0, nil)
	f.Add(seed)
	f.Add(add(nil, setMemTable, 9, nil))
	f.Add(add(nil, setVringKick, 2, u64(1<<8)))
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		clear(g.data[queueAt : queueAt+0x4000])
		srv, err := New(newMemDiskOf(64<<10), Options{Queues: 2, StopTimeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		before := openFDs(t)
		ours, theirs := socketPair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.ServeConn(context.Background(), theirs)
		}()
		go func() { // answers are read, and thrown away with their descriptors
			b, oob := make([]byte, 4096), make([]byte, 64)
			for {
				n, oobn, _, _, err := ours.ReadMsgUnix(b, oob)
				m := message{}
				if oobn > 0 {
					m.take(oob[:oobn])
				}
				m.closeFDs()
				if err != nil || n == 0 {
					return
				}
			}
		}()
		for len(in) >= 4 {
			n := min(int(in[3]), len(in)-4)
			b := state(int(in[0]), version|int(in[1]))
			b = append(le.AppendUint32(b, uint32(n)), in[4:4+n]...)
			var fds []int
			for k := in[2]; k != 0; k >>= 2 {
				fds = append(fds, []int{event, int(g.f.Fd()), event, int(g.f.Fd())}[k&3])
			}
			var oob []byte
			if len(fds) > 0 {
				oob = unix.UnixRights(fds...)
			}
			if _, _, err := ours.WriteMsgUnix(b, oob, nil); err != nil {
				break
			}
			in = in[4+n:]
		}
		ours.CloseWrite()
		<-done
		for {
			srv.mu.Lock()
			n := len(srv.runs)
			srv.mu.Unlock()
			if n == 0 {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		ours.Close()
		for i := 0; ; i++ { // a run's descriptors are closed behind its end
			after := openFDs(t)
			if after <= before {
				break
			}
			if i == 2000 {
				t.Fatalf("%d descriptors were open before, %d are now", before, after)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket"+strconv.Itoa(i))
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
