// Package tap catches the writes that a guest makes to its disk, without ever making the guest wait for whoever looks at
// them.
//
// Attach taps a disk of a QEMU that runs, by a mirror job (mirror.go says what is made in QEMU, and offer.go how others
// get the disk back). Writes come through a process of its own, the receiver, which answers them at once and puts
// them into a ring in shared memory; a guard watches the receiver. What the ring cannot take is counted and told
// (block.LostError), never waited for.
//
// The past: a journalled file system writes a block to its home only after the transaction that changes it was
// committed. So a receiver that is told of the journal (Tap.Capture) reads what such a block holds before it answers
// the commit, and puts that into the ring too. Tap.Device reads a disk as it was where the reader of the ring is, by
// looking ahead for these pre-images. Joint does so for a volume on several disks.
//
// Programs call Helper first in main, so that the receiver can be a process: the same program, started again.
package tap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"vmscope/block"
	"vmscope/internal/ring"
	"vmscope/vm/qemu"
)

// Options change how a disk is tapped. The zero value is right for most.
type Options struct {
	// RingSize is how many bytes of writes are kept for a reader that is slow; 0 means 64 MiB. Only what was used once
	// costs memory.
	RingSize int
	// InProcess makes the receiver a part of the program also where it could be a process of its own: a program that is
	// stopped (SIGSTOP) or hangs then stops its guest's writes.
	InProcess bool
	// Warn, if not nil, is told what went wrong where a disk is served, and neither the stream nor its end tells: a queue that the
	// guest made nonsense of, for instance. It is called from another goroutine, and must be quick.
	Warn func(error)
}

// Tap is a block.Tap on one disk. Next and Writes are for one goroutine; the other methods are safe for concurrent use.
type Tap struct {
	disk   string
	info   Disk
	size   int64
	files  ring.Files
	past   *past
	spec   spec
	opts   Options
	lock   *os.File    // of the disk
	ln     *os.File    // to serve at
	starts []time.Time // of receivers with their guards

	ctx    context.Context // ends with Close, or with the receiver
	cancel context.CancelCauseFunc
	state  chan struct{} // closed and made anew with each message
	ended  chan struct{} // closed when the receiver and all that belongs to it is gone
	goesOn chan struct{} // closed when the receiver goes on without us

	reading sync.Mutex // held while Next works: Close waits for its end
	asking  sync.Mutex // held by Regions

	mu       sync.Mutex // of all below
	con      *ring.Consumer
	images   images
	joints   []member // of which it is a part
	given    uint64   // the position of what Next gave last
	gap      uint64   // the position of the last loss that scan has seen, if gaps
	gaps     bool
	inexact  bool // something was read while a loss was ahead
	closed   bool
	seq      uint64
	attached message // the last
	pids     [2]int  // receiver, guard
	life     life    // of the receiver
	gen      uint32
	caught   message // as the receiver said
	journals []Journal
	left     bool    // goesOn is closed
	clients  int     // that the receiver goes on to serve
	question uint32  // the number of the last one of Regions
	answer   message // to it
	ctl      control
	wait     func() // for the end of the processes
}

var _ block.Tap = (*Tap)(nil)

// Attach taps a disk of a running QEMU. target is what qemu.Find takes: a name, a PID or a QMP socket's path; disk is one
// that Disks lists, by its ID, node, device path or guessed name, or "" if there is only one that can be written.
//
// When it returns, every later write of the guest is seen. The guest is neither stopped nor restarted; the disk's content
// is read through QEMU, whatever its format. As long as the tap is there, QEMU refuses snapshots and resizing
// of the disk: see Detach.
func Attach(ctx context.Context, target, disk string, o Options) (*Tap, error) {
	all, err := Disks(ctx, target)
	if err != nil {
		return nil, err
	}
	d, err := choose(all, disk)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", target, err)
	}
	return AttachDisk(ctx, target, d, o)
}

// AttachDisk is Attach for a disk that Disks or Plugged gave.
func AttachDisk(ctx context.Context, target string, d Disk, o Options) (*Tap, error) {
	p, err := qemu.Find(target)
	if err != nil {
		return nil, err
	}
	t, err := attach(ctx, p, d, o)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	return t, nil
}

func attach(ctx context.Context, p qemu.Process, d Disk, o Options) (*Tap, error) {
	if d.ReadOnly {
		return nil, fmt.Errorf("%v is read-only: nothing is written to it: %w", d, errors.ErrUnsupported)
	}
	dir, err := makeGuestDir(p)
	if err != nil {
		return nil, err
	}
	mr := newMirror(p, d, dir)
	l, err := lock(mr.path(".lock"), false)
	if err == errLocked {
		return nil, fmt.Errorf("%v: %w: vmscope watches it already", d, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	ln, err := mr.listen()
	if err != nil {
		unlock(l)
		return nil, err
	}
	t, err := open(spec{Mirror: mr, Size: d.Size}, o, l, ln)
	if err != nil {
		ln.Close()
		os.Remove(mr.socket())
		unlock(l)
		return nil, err
	}
	t.disk, t.info = d.String(), d
	if _, err := t.attachedAt(ctx); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// keepBack is how much of what was read stays in the ring: the pre-images of a transaction that is not complete yet.
const keepBack = 4 << 20

// open makes the ring and starts the receiver. l is the disk's lock, ln the socket to serve at, if any; both are the tap's
// unless there is an error.
func open(s spec, o Options, l *os.File, ln *os.File) (*Tap, error) {
	size := o.RingSize
	if size == 0 {
		size = ring.DefaultSize
	}
	files, err := ring.Create(size, s.Size)
	if err != nil {
		return nil, err
	}
	con, err := ring.NewConsumer(files)
	if err != nil {
		files.Close()
		return nil, err
	}
	con.Lag = min(keepBack, size/8)
	t := &Tap{size: s.Size, files: files, con: con, spec: s, opts: o, lock: l, ln: ln, state: make(chan struct{}), ended: make(chan struct{}), goesOn: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	t.past = &past{t: t}
	if err := t.start(); err != nil {
		con.Close()
		files.Close()
		return nil, err
	}
	go t.listen()
	return t, nil
}

// start starts the receiver, with a control line of its own.
func (t *Tap) start() error {
	ours, theirs, err := newControl()
	if err != nil {
		return err
	}
	wait, err := start(t.spec, t.opts, t.files, theirs, t.lock, t.ln)
	if err != nil {
		ours.Close()
		theirs.Close()
		return err
	}
	t.mu.Lock()
	t.ctl, t.wait, t.pids = control{ours}, wait, [2]int{}
	t.mu.Unlock()
	t.starts = append(t.starts, time.Now())
	return nil
}

// listen takes what the receiver says, until all of its processes are gone. If they went without a word, it starts others.
func (t *Tap) listen() {
	defer close(t.ended)
	buf := make([]byte, maxMessage)
	t.mu.Lock()
	ctl := t.ctl
	t.mu.Unlock()
	for {
		m, err := ctl.receive(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if errors.Is(err, errGone) {
			if t.failed() != nil {
				return
			}
			if n := len(t.starts); n > 5 && time.Since(t.starts[n-5]) < time.Minute {
				t.fail(errCrashing)
				return
			}
			t.spec.Again++
			t.wait()
			ctl.f.Close()
			if err := t.start(); err != nil {
				t.fail(err)
				return
			}
			ctl = t.ctl // which only we change
			continue
		}
		if err == nil {
			t.take(m)
		}
	}
}

// take takes a message.
func (t *Tap) take(m message) {
	t.mu.Lock()
	switch m.Kind {
	case msgReceiver:
		t.pids[0] = m.PID
		t.life.of(m.PID)
		if t.gen > 0 { // it knows nothing of what the one before was told
			t.ctl.send(message{Kind: msgCapture, Gen: t.gen, Journals: t.journals})
		}
	case msgGuard:
		t.pids[1] = m.PID
	case msgAttached:
		t.attached = m
	case msgCapturing:
		// A new receiver is told again what the one before was told, and just then may be told more: the answers come in any order.
		if m.Gen >= t.caught.Gen {
			t.caught = m
		}
	case msgRegions:
		t.answered(m)
	case msgWarning:
		if t.opts.Warn != nil {
			defer t.opts.Warn(unpack(m))
		}
	case msgServing:
		t.clients = m.Clients
		if t.clients > 0 && !t.left {
			t.left = true
			close(t.goesOn)
		}
	}
	close(t.state)
	t.state = make(chan struct{})
	t.mu.Unlock()
	if m.Kind == msgServing {
		t.fail(errTerminated)
	}
	if m.Kind == msgEnded {
		err := unpack(m)
		if err == nil {
			err = errReceiverGone
		}
		t.fail(err)
	}
}

var errReceiverGone = errors.New("the receiver has ended")

// fail ends the stream, for the first reason that comes.
func (t *Tap) fail(err error) {
	t.cancel(err)
	t.con.Wake()
}

// failed is why the stream has ended; nil if it has not.
func (t *Tap) failed() error { return context.Cause(t.ctx) }

// await waits until ok, which is called with the tap's lock held, says so.
func (t *Tap) await(ctx context.Context, ok func() bool) error {
	for {
		t.mu.Lock()
		done, state := ok(), t.state
		t.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-state:
		case <-t.ctx.Done():
			return t.failed()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attachedAt waits for the disk's content to be reachable, and says how.
func (t *Tap) attachedAt(ctx context.Context) (m message, err error) {
	err = t.await(ctx, func() bool { m = t.attached; return m.Kind != "" })
	return m, err
}

// Content says how to read what the disk holds now.
func (t *Tap) Content(ctx context.Context) (Content, error) {
	m, err := t.attachedAt(ctx)
	return m.Content, err
}

// Disk is the disk that is tapped.
func (t *Tap) Disk() Disk { return t.info }

// Size is that of the disk in bytes.
func (t *Tap) Size() int64 { return t.size }

// Processes gives the PIDs of the receiver and of its guard; 0 where there is none.
func (t *Tap) Processes() (receiver, guard int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pids[0], t.pids[1]
}

// Backlog is how many bytes of writes wait in the ring, and how many it takes.
func (t *Tap) Backlog() (n, of int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, 0
	}
	return t.con.Backlog()
}

// Device reads the disk as it was when the write that Next gave last had been made, as far as pre-images were captured, and
// as it is now in all else.
func (t *Tap) Device() block.Device { return t.past }

// Interest tells the receiver which content is wanted. At first all is; once a part was named, writes elsewhere carry no
// data. To want all of the disk leads back to the beginning. It may be called at any time and counts from then on: writes
// that are in the ring already are as they are.
func (t *Tap) Interest(r block.Range, wanted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	i := t.con.Interest(t.size)
	if r.Off <= 0 && r.End() >= t.size {
		i.Select(!wanted)
		i.Clear()
		return
	}
	i.Set(r.Off, r.Len, wanted)
	i.Select(true)
}

// Capture tells the receiver of the journals on the disk, all of them; what it was told before is void. It returns when
// pre-images are being captured. From which write on, a *CapturingError with the same number says in the stream.
func (t *Tap) Capture(ctx context.Context, journals []Journal) (gen uint32, err error) {
	t.mu.Lock()
	t.gen++
	gen = t.gen
	t.journals = slices.Clone(journals)
	m := message{Kind: msgCapture, Gen: gen, Journals: t.journals}
	err = t.ctl.send(m)
	t.mu.Unlock()
	if err != nil {
		return 0, err
	}
	var refused error
	err = t.await(ctx, func() bool {
		if t.caught.Gen == gen {
			refused = unpack(t.caught)
		}
		return t.caught.Gen == gen || t.gen != gen
	})
	return gen, errors.Join(refused, err)
}

// CapturingError is no failure: it marks the place in the stream from which on pre-images are captured for the journals
// that Capture told of. A transaction that had begun before is not captured; the next one is.
type CapturingError struct{ Gen uint32 }

func (e *CapturingError) Error() string { return fmt.Sprintf("capturing pre-images (%d)", e.Gen) }

// Next waits for the next write. A *block.LostError says that writes are missing, a *CapturingError is a mark; the stream
// goes on behind both. When ctx ends, its error is given, and Next may be called again with another: that is how to wait
// for quiet. Any other error is the stream's end: ErrDetached, ErrGuestEnded, or what went wrong.
//
// The write's Data is void with the next call.
func (t *Tap) Next(ctx context.Context) (block.Write, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	for {
		w, ok, err := t.poll()
		if ok || err != nil {
			return w, err
		}
		if err := t.failed(); err != nil {
			// What came before the end is told first.
			if w, ok, perr := t.poll(); ok || perr != nil {
				return w, perr
			}
			return block.Write{}, err
		}
		if err := t.con.Wait(ctx); err != nil {
			return block.Write{}, err
		}
	}
}

func (t *Tap) poll() (block.Write, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.closed {
			return block.Write{}, false, errClosed
		}
		// The index must know an image before the record is passed.
		if err := t.scan(); err != nil {
			return block.Write{}, false, err
		}
		pos := t.con.Pos()
		r, ok, err := t.con.Poll()
		if err != nil || !ok {
			return block.Write{}, false, err
		}
		switch r.Kind {
		case ring.PreImage:
		case ring.Marker:
			return block.Write{}, false, &CapturingError{r.Extra}
		case ring.Lost:
			first := t.seq + 1
			t.seq += uint64(r.Len)
			return block.Write{}, false, &block.LostError{Seq: first, Reason: ring.Reason(r.Extra).String()}
		default:
			t.seq++
			t.images.written(r.Off, r.Len, pos)
			t.given = pos
			return block.Write{
				Seq: t.seq, Time: time.Unix(0, r.Time), Op: ops[r.Kind], FUA: r.Flags&ring.FUA != 0, Off: r.Off, Len: r.Len, Data: r.Data,
			}, true, nil
		}
	}
}

// Writes gives what Next gives.
func (t *Tap) Writes(ctx context.Context) iter.Seq2[block.Write, error] {
	return func(yield func(block.Write, error) bool) {
		for {
			w, err := t.Next(ctx)
			var lost *block.LostError
			var mark *CapturingError
			goesOn := err == nil || errors.As(err, &lost) || errors.As(err, &mark)
			if !yield(w, err) || !goesOn {
				return
			}
		}
	}
}

// Close leaves the disk: all that was made in QEMU is removed. It waits for that. A receiver that serves the disk itself
// goes on as long as somebody uses it: see Serving.
func (t *Tap) Close() error {
	t.mu.Lock()
	was := t.closed
	t.closed = true
	ctl := t.ctl
	t.mu.Unlock()
	if was {
		<-t.ended
		return nil
	}
	t.cancel(errClosed)
	ctl.send(message{Kind: msgDetach})
	t.past.close()
	select {
	case <-t.ended: // nobody has the line's other end any more
		t.wait()
	case <-t.goesOn:
	case <-time.After(closePatience):
	}
	ctl.f.Close()
	<-t.ended
	t.con.Wake()
	t.reading.Lock()
	defer t.reading.Unlock()
	t.con.Leave()
	t.con.Close()
	t.mu.Lock()
	t.life.close()
	t.answer.close()
	t.mu.Unlock()
	t.files.Close()
	if t.ln != nil {
		t.ln.Close()
	}
	if m := t.spec.Mirror; m != nil {
		os.Remove(m.socket())
		unlock(t.lock)
	}
	return nil
}

// closePatience is what the receiver may take to leave the disk; it goes on trying by itself.
const closePatience = detachPatience + 2*time.Second

// refused reports whether nobody listens at a socket.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && errors.Is(err, syscall.ECONNREFUSED)
}
