package tap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"vmscope/block/nbd"
	"vmscope/block/vhostuser"
	"vmscope/internal/ring"
)

// spec says what a receiver is to do. It goes to the helper processes as JSON.
type spec struct {
	Mirror *mirror `json:"mirror,omitempty"`
	// Service is what to serve instead.
	Service *Service `json:"service,omitempty"`
	Size    int64    `json:"size"` // of the disk, bytes
	// Again counts the receivers that were started before.
	Again int `json:"again,omitempty"`
}

// receiver takes the writes of one disk: it puts them into the ring and answers at once. It runs in a process of its own,
// so that neither what reads the ring nor who stops it holds up the guest; in the program itself only where that cannot be.
type receiver struct {
	spec spec
	ctl  control

	beside sync.WaitGroup // what uses the ring beside run, until ctl is closed
	feed   *feed
	ln     *os.File // to serve at; nil: nowhere

	mu     sync.Mutex
	base   *message                           // the "attached" message: how to reach the disk's content
	conn   base                               // to it, for what is captured
	others others                             // for what is captured of other disks
	memory func() ([]vhostuser.Region, error) // of the guest; nil: nobody shares it
	reason error                              // why the context was ended
	warned time.Time
	stop   context.CancelFunc
}

// newReceiver opens the ring. files and ctl stay the caller's.
func newReceiver(s spec, files ring.Files, ctl *os.File) (*receiver, error) {
	p, err := ring.NewProducer(files)
	if err != nil {
		return nil, err
	}
	if s.Again > 0 {
		p.Lose(1, ring.Restarted)
	}
	return &receiver{spec: s, ctl: control{ctl}, feed: newFeed(p, s.Size)}, nil
}

// name is what is tapped, for lists of processes.
func (s *spec) name() string {
	if s.Mirror != nil {
		return fmt.Sprintf("%s of process %d", s.Mirror.Name, s.Mirror.PID)
	}
	if s.Service != nil {
		return s.Service.Image
	}
	return ""
}

// errReaderGone says that whoever read the ring has ended.
var errReaderGone = errors.New("the reader of the tap has ended")

// run works until the reader is gone, or somebody asks for the disk, or it fails for good; what it says then is what it
// told the reader. It leaves nothing behind in QEMU.
func (r *receiver) run(ctx context.Context) error {
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	done := make(chan struct{})
	defer close(done)
	r.beside.Go(func() { r.feed.beat(done) })
	r.ctl.send(message{Kind: msgReceiver, PID: os.Getpid()})
	r.beside.Go(r.listen)
	err := r.work(ctx)
	r.mu.Lock()
	if r.reason != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = r.reason
	}
	r.mu.Unlock()
	if r.conn != nil {
		r.conn.Close()
	}
	r.others.close()
	r.ctl.send(pack(msgEnded, err))
	return err
}

func (r *receiver) work(ctx context.Context) error {
	switch {
	case r.spec.Mirror != nil:
		return r.mirror(ctx, r.spec.Mirror)
	case r.spec.Service != nil:
		return r.serve(ctx, r.spec.Service)
	}
	return errors.New("nothing to receive from")
}

// end makes run end, and says why.
func (r *receiver) end(why error) {
	r.mu.Lock()
	if r.reason == nil {
		r.reason = why
	}
	r.mu.Unlock()
	r.stop()
}

// warnEvery is how often the reader is told what went wrong: a guest may make that happen all the time.
const warnEvery = time.Second

// warn tells the reader what went wrong.
func (r *receiver) warn(err error) {
	r.mu.Lock()
	soon := time.Since(r.warned) < warnEvery
	if !soon {
		r.warned = time.Now()
	}
	r.mu.Unlock()
	if !soon {
		r.ctl.send(pack(msgWarning, err))
	}
}

// why is the reason that end was called with; nil if it was not.
func (r *receiver) why() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason
}

// listen does what the reader says.
func (r *receiver) listen() {
	buf := make([]byte, maxMessage)
	for {
		m, err := r.ctl.receive(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, errGone):
			r.feed.ring.Desert()
			r.end(errReaderGone)
			return
		case err != nil:
			continue
		}
		switch m.Kind {
		case msgCapture:
			r.caught(m)
		case msgRegions:
			r.regions(m.Gen)
		case msgDetach:
			why := unpack(m)
			if why == nil {
				why = errReaderGone
			}
			r.end(why)
		}
	}
}

// caught begins to capture, and says so: in the ring, where what is captured begins, and to the reader.
func (r *receiver) caught(m message) {
	var c *capture
	r.others.know(m.Journals)
	if len(m.Journals) > 0 {
		var err error
		if c, err = newCapture(m.Gen, m.Journals, r.feed.ring, r.feed.ring.Size()/2, r.readNow, r.others.read); err != nil {
			answer := pack(msgCapturing, err)
			answer.Gen = m.Gen
			r.ctl.send(answer)
			return
		}
		c.cached = r.readCached
	}
	r.feed.capture.Store(c)
	r.beside.Go(func() {
		r.others.reach()
		for !r.feed.ring.Append(ring.Record{Kind: ring.Marker, Extra: m.Gen}) {
			if r.feed.ring.Deserted() {
				return
			}
			time.Sleep(10 * time.Millisecond) // the ring is full: the loss is told first
		}
		r.ctl.send(message{Kind: msgCapturing, Gen: m.Gen})
	})
}

// readNow reads what the disk holds.
func (r *receiver) readNow(ctx context.Context, p []byte, off int64) error {
	c, err := r.source(ctx)
	if err != nil {
		return err
	}
	if err = readBase(ctx, c, p, off); err != nil && ctx.Err() == nil {
		r.mu.Lock()
		if r.conn == c {
			r.conn = nil
			defer c.Close()
		}
		r.mu.Unlock()
	}
	return err
}

// readCached reads what the disk holds if that takes no time.
func (r *receiver) readCached(p []byte, off int64) bool {
	r.mu.Lock()
	c := r.conn
	r.mu.Unlock()
	return readNow(c, p, off)
}

// source connects to the disk's content.
func (r *receiver) source(ctx context.Context) (base, error) {
	for {
		r.mu.Lock()
		if r.conn != nil {
			defer r.mu.Unlock()
			return r.conn, nil
		}
		if r.base != nil {
			defer r.mu.Unlock()
			var err error
			r.conn, err = dialBase(ctx, r.base.Content)
			return r.conn, err
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Patience with QEMU's monitor, which others may be using for a moment.
const (
	attachPatience = 15 * time.Second
	detachPatience = 8 * time.Second
)

// mirror receives from a mirror job.
func (r *receiver) mirror(ctx context.Context, m *mirror) error {
	left, err := m.offer(r.end)
	if err != nil {
		return err
	}
	defer left()
	if r.ln == nil {
		return errors.New("nothing to listen at")
	}
	ln, err := net.FileListener(r.ln)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	srv := &nbd.Server{
		Exports: []nbd.Export{{Device: newSink(r.feed, m.Size)}},
		Connected: func(string, net.Addr) func(error) {
			return func(err error) {
				select {
				case ended <- err:
				default:
				}
			}
		},
	}
	defer srv.Close()
	go srv.Serve(context.Background(), ln) // until the job is gone, whatever becomes of ctx
	for first := true; err == nil; first = false {
		if !first {
			r.feed.ring.Lose(1, ring.Restarted)
		}
		if err = r.attach(ctx, m, func(c net.Conn) { go srv.ServeConn(context.Background(), c) }); err == nil {
			err = r.watch(ctx, m, ended)
		}
	}
	// A commit that waits for its images holds the guest's writes up, which QEMU waits for.
	r.feed.capture.Store(nil)
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachPatience)
	defer cancel()
	derr := retry(dctx, func() error { return m.detach(dctx) })
	if errors.Is(r.why(), errReaderGone) {
		os.Remove(m.socket()) // else it is the reader's to do
		os.Remove(m.path(".lock"))
	}
	if derr != nil && !errors.Is(derr, ErrGuestEnded) && ctx.Err() == nil {
		err = errors.Join(err, derr)
	}
	return err
}

// attach attaches and tells the reader.
func (r *receiver) attach(ctx context.Context, m *mirror, serve func(net.Conn)) error {
	actx, cancel := context.WithTimeout(ctx, attachPatience)
	defer cancel()
	if _, err := m.attach(actx, serve); err != nil {
		return err
	}
	base, err := m.content(actx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.base = &base
	r.mu.Unlock()
	return r.ctl.send(base)
}

// checkEvery is how often a disk that is not written to is looked at: a job that somebody cancelled leaves its connection
// open.
const checkEvery = 3 * time.Second

// watch waits for the end of the job, and says what it means. nil: it failed, and is to be made anew.
func (r *receiver) watch(ctx context.Context, m *mirror, ended <-chan error) error {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	last := r.feed.taken.Load()
	for {
		broken, left := false, false
		select {
		case err := <-ended:
			broken, left = true, err == nil
			// A QEMU that ends closes its disks first.
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			n := r.feed.taken.Load()
			if busy := n != last; busy {
				last = n
				continue
			}
		}
		there, err := r.look(ctx, m)
		switch {
		case err != nil:
			return err
		case there: // QEMU connects again when it has something to say
		case broken && !left:
			return nil
		default:
			return m.cancelled()
		}
	}
}

// look asks whether the job is there, as long as it takes to get an answer.
func (r *receiver) look(ctx context.Context, m *mirror) (there bool, err error) {
	for {
		qctx, cancel := context.WithTimeout(ctx, checkEvery)
		there, err = m.attached(qctx)
		cancel()
		if err == nil || errors.Is(err, ErrGuestEnded) || errors.Is(err, ErrUnplugged) {
			return there, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cancelled says that the job is gone and that it was not us.
func (m *mirror) cancelled() error {
	return fmt.Errorf("%s: %w: the mirror job was cancelled", m.Name, ErrDetached)
}

// retry repeats f until it does not fail or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
