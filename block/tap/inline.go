package tap

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/block/vhostuser"
	"vmscope/internal/ring"
)

// servable is a disk that can be served.
type servable interface {
	block.Device
	io.WriterAt
	io.Closer
	Flush() error
}

// nbdBackend is what both a file and a forwarded export are.
type nbdBackend interface {
	servable
	nbd.PayloadWriter
	nbd.Trimmer
	nbd.Zeroer
	nbd.Extenter
	nbd.Cacher
	nbd.MultiConner
}

// inline is an NBD disk with a feed in its path.
type inline struct {
	nbdBackend
	feed *feed
}

// inlineFile also lets the server send from the page cache.
type inlineFile struct {
	inline
	nbd.Filer
}

func newInline(d nbdBackend, f *feed) block.Device {
	f.ring.WakeLate()
	i := inline{d, f}
	if fl, ok := d.(nbd.Filer); ok {
		return &inlineFile{i, fl}
	}
	return &i
}

func (i *inline) Answered() { i.feed.ring.Answered() }

func (i *inline) WritePayload(p *nbd.Payload, off int64, f nbd.Flags) error {
	fua := f&nbd.FUA != 0
	w := i.feed.begin(off, p.Len(), fua)
	d := w.data()
	var err error
	if d == nil {
		err = i.nbdBackend.WritePayload(p, off, f)
	} else if _, rerr := p.Read(d); rerr != nil {
		w.abandon(false)
		return rerr
	} else if c, ok := i.nbdBackend.(*nbd.Client); ok {
		_, err = c.WriteContext(context.Background(), d, off, f&nbd.FUA)
	} else if _, err = i.WriteAt(d, off); err == nil && fua {
		err = i.nbdBackend.Flush()
	}
	if err != nil {
		w.abandon(true)
		return err
	}
	w.publish()
	return nil
}

func (i *inline) Flush() error {
	i.feed.other(ring.Flush, 0, 0, false)
	return i.nbdBackend.Flush()
}

func (i *inline) Trim(off, n int64, f nbd.Flags) error {
	err := i.nbdBackend.Trim(off, n, f)
	i.cleared(ring.Discard, off, n, f, err)
	return err
}

func (i *inline) Zero(off, n int64, f nbd.Flags) error {
	err := i.nbdBackend.Zero(off, n, f)
	i.cleared(ring.Zeroes, off, n, f, err)
	return err
}

// cleared tells of what was cleared; if that failed, a part may have been.
func (i *inline) cleared(k ring.Kind, off, n int64, f nbd.Flags, err error) {
	switch {
	case err == nil:
		i.feed.other(k, off, n, f&nbd.FUA != 0)
	case !errors.Is(err, errors.ErrUnsupported):
		i.feed.ring.Lose(1, ring.WriteError)
	}
}

// observer feeds from a vhost-user back end, whose calls come one after the other.
type observer struct {
	feed *feed
	cur  *incoming
}

func (o *observer) Reserve(off int64, n int) []byte {
	w := o.feed.begin(off, n, false)
	o.cur = &w
	return w.data()
}

func (o *observer) Publish(w *block.Write) {
	switch w.Op {
	case block.OpWrite:
		if o.cur != nil {
			o.cur.publish()
		}
		o.cur = nil
	case block.OpFlush:
		o.feed.other(ring.Flush, 0, 0, false)
	case block.OpZeroes:
		o.feed.other(ring.Zeroes, w.Off, w.Len, false)
	case block.OpDiscard:
		o.feed.other(ring.Discard, w.Off, w.Len, false)
	}
}

func (o *observer) Abandon(off, n int64, data []byte) {
	if o.cur != nil {
		o.cur.abandon(true)
	} else {
		o.feed.ring.Lose(1, ring.WriteError)
	}
	o.cur = nil
}

// A front brings what clients write to a disk. Another protocol is another one of these.
type front interface {
	// serve serves connections to ln until ctx ends; entered is called for each client, and what it returned when that has left.
	serve(ctx context.Context, ln net.Listener, entered func() func()) error
}

type nbdFront struct {
	service *Service
	disk    nbdBackend
	feed    *feed
}

func (n *nbdFront) serve(ctx context.Context, ln net.Listener, entered func() func()) error {
	conf, err := n.service.tls()
	if err != nil {
		return err
	}
	srv := &nbd.Server{
		Exports: []nbd.Export{{Name: n.service.Export, Device: newInline(n.disk, n.feed), ReadOnly: n.service.ReadOnly}},
		TLS:     conf, TLSRequired: conf != nil,
		Connected: func(string, net.Addr) func(error) {
			left := entered()
			return func(error) { left() }
		},
	}
	defer srv.Close()
	return srv.Serve(ctx, ln)
}

type vhostFront struct {
	service *Service
	disk    block.Disk
	feed    *feed
	warn    func(error)
	shares  func(func() ([]vhostuser.Region, error)) // is told how to reach the guest's memory
}

func (v *vhostFront) serve(ctx context.Context, ln net.Listener, entered func() func()) error {
	srv, err := vhostuser.New(v.disk, vhostuser.Options{Observer: &observer{feed: v.feed}, Serial: v.service.Serial, Report: v.warn})
	if err != nil {
		return err
	}
	v.shares(srv.Regions)
	if v.service.Dial {
		return v.connect(ctx, srv, entered)
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		c, err := ln.(*net.UnixListener).AcceptUnix()
		if err != nil {
			return ctx.Err()
		}
		if !speaks(ctx, c) {
			c.Close()
			continue
		}
		left := entered()
		v.serveOne(ctx, srv, c) // one front end at a time
		left()
	}
}

func (v *vhostFront) serveOne(ctx context.Context, srv *vhostuser.Server, c *net.UnixConn) {
	if err := srv.ServeConn(ctx, c); err != nil && ctx.Err() == nil {
		v.warn(err)
	}
}

// speaks waits until a client says something, which is not read. Who only looks whether somebody listens does not, and may wait
// in the queue before a front end that connects again.
func speaks(ctx context.Context, c *net.UnixConn) (ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		ok = n > 0 && err == nil
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return ok && err == nil
}

// connectEvery is how often a front end that listens is tried.
const connectEvery = 10 * time.Millisecond

func (v *vhostFront) connect(ctx context.Context, srv *vhostuser.Server, entered func() func()) error {
	for {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "unix", v.service.Socket); err == nil {
			left := entered()
			v.serveOne(ctx, srv, c.(*net.UnixConn))
			left()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(connectEvery):
		}
	}
}

// clients counts those who are connected.
type clients struct {
	mu     sync.Mutex
	n      int
	ever   bool
	change chan struct{} // closed and made anew with each change
}

func (c *clients) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	c.ever = true
	close(c.change)
	c.change = make(chan struct{})
}

func (c *clients) now() (n int, ever bool, change <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.ever, c.change
}

// comeBack is how long clients of a receiver that was killed may take to connect to the next one if nobody reads any more.
const comeBack = 30 * time.Second

// serve receives from clients of ours. It goes on after ctx has ended, as long as there are any.
func (r *receiver) serve(ctx context.Context, s *Service) error {
	disk, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer disk.Close()
	var ln net.Listener
	if r.ln != nil {
		if ln, err = net.FileListener(r.ln); err != nil {
			return err
		}
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	r.mu.Lock()
	r.conn = keepOpen{disk} // to read what blocks hold
	r.mu.Unlock()
	var f front = &vhostFront{s, disk, r.feed, r.warn, func(memory func() ([]vhostuser.Region, error)) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.memory = memory
	}}
	if s.Protocol == Xen {
		f = &xenFront{s, disk, r.feed, r.warn}
	} else if d, ok := disk.(nbdBackend); ok && s.Protocol != VhostUser {
		f = &nbdFront{s, d, r.feed}
	}
	base := message{Kind: msgAttached, PID: os.Getpid(), Content: Content{File: s.Image}}
	if s.forwards() {
		base.File, base.URI = "", s.Image
	}
	r.ctl.send(base) // clients count, also if nobody reads any more
	count := clients{change: make(chan struct{})}
	sctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- f.serve(sctx, ln, func() func() {
			count.add(1)
			return func() { count.add(-1) }
		})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	r.feed.ring.Desert()
	r.feed.capture.Store(nil)
	n, _, _ := count.now()
	r.ctl.send(message{Kind: msgServing, Clients: n})
	patience := time.After(comeBack)
	for {
		n, ever, change := count.now()
		if n == 0 && (ever || r.spec.Again == 0) {
			break
		}
		select {
		case <-change:
			continue
		case <-patience:
			if n > 0 {
				continue
			}
		case err := <-done:
			return err
		}
		break
	}
	if s.Socket != "" && !s.Dial {
		os.Remove(s.Socket)
	}
	stop()
	<-done
	return ctx.Err()
}

// keepOpen is a disk that who reads it does not close.
type keepOpen struct{ block.Device }

func (keepOpen) Close() error { return nil }

// ReadNow is that of the disk, if it has one.
func (k keepOpen) ReadNow(p []byte, off int64) bool { return readNow(k.Device, p, off) }
