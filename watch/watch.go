package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
)

// Watch follows the file systems of a machine. Run does it; the watchpoints may be changed meanwhile.
type Watch struct {
	opt    Options
	filter *filter
	turns  *turns

	mu      sync.Mutex // of all below: each disk has a goroutine
	disks   []disk
	live    int            // disks that did not end
	spawn   func(disk int) // makes its goroutine; nil until Run has attached
	over    bool           // behind Run
	layout  *part.Layout
	volumes []*volume
	seq     uint64
	emit    func(event.Event) error
	ready   bool             // behind the first attach
	again   string           // why the volumes are to be attached anew
	untold  string           // what the inference saw and could not tell: a reason to attach anew
	mended  time.Time        // when that was done last
	rescan  bool             // the disks are divided anew
	stale   time.Time        // when that was noticed
	held    map[string]*tree // while volumes are attached anew: what had been told of them, by label
	next    time.Time        // when to go on with crawls amid writes
}

// disk is one that is watched.
type disk struct {
	Disk
	rest   time.Duration // how long nothing has come to be done
	caught bool          // its content is only wanted where it tells something
	drawn  uint64        // how often it was read by others than its goroutine: what that holds is void then
	torn   bool          // and a volume that was attached lacks it
}

// New prepares a watch of disks of one machine.
func New(disks []Disk, o Options) (*Watch, error) {
	f, err := newFilter(o.Paths, o.Ops)
	if err != nil {
		return nil, err
	}
	if o.Quiet == 0 {
		o.Quiet = 30 * time.Millisecond
	}
	if o.Hold == 0 {
		o.Hold = hold
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	w := &Watch{opt: o, filter: f, turns: newTurns(0)}
	for _, d := range disks {
		w.add(d)
	}
	return w, nil
}

// Add adds a watchpoint, and Remove takes one away, from the next event on. A watch of everything stays one.
func (w *Watch) Add(path string) error { return w.filter.add(path) }

// Remove reports whether there was such a watchpoint.
func (w *Watch) Remove(path string) bool { return w.filter.remove(path) }

// SetPaths puts others in place of all watchpoints, from the next event on. None means that nothing is watched, other than in
// Options. If one of them is wrong, all stays as it was.
func (w *Watch) SetPaths(paths []string) error {
	defer w.turns.wake() // another tree is to be read
	return w.filter.set(paths)
}

// errStop carries an error of emit out of a disk's loop.
type errStop struct{ error }

// Run tells events to emit, one after the other, until ctx ends, the disks do, or emit returns an error. A disk that ends
// in order (io.EOF, as logs do) is no error.
//
// Where there is no file system to watch it returns at once, with an error of the class errors.ErrUnsupported; Wait does not.
func (w *Watch) Run(ctx context.Context, emit func(event.Event) error) error {
	return w.run(ctx, emit, false)
}

// Wait is Run that waits for file systems to be made.
func (w *Watch) Wait(ctx context.Context, emit func(event.Event) error) error {
	return w.run(ctx, emit, true)
}

func (w *Watch) run(ctx context.Context, emit func(event.Event) error, wait bool) error {
	w.emit, w.ready = emit, wait
	defer w.close()
	asked := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	if err := w.begun(ctx, func(i int) {
		group.Go(func() {
			if err := w.follow(ctx, i); err != nil {
				cancel(err)
			}
		})
	}); err != nil {
		return err
	}
	group.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		if err == context.Cause(asked) {
			return asked.Err() // which is always one of context's own
		}
		var stop errStop
		if errors.As(err, &stop) {
			return stop.error
		}
		return err
	}
	return w.quiet(w.opt.Clock().Add(time.Minute)) // what still waited is told
}

// begun attaches, and begins to follow all disks.
func (w *Watch) begun(ctx context.Context, spawn func(disk int)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = false
	if err := w.attach(ctx); err != nil {
		return err
	}
	w.spawn = spawn
	for i := range w.disks {
		spawn(i)
	}
	return nil
}

func (w *Watch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spawn, w.over = nil, true
	for _, v := range w.volumes {
		v.close()
	}
	w.volumes = nil
}

// follow is the loop of one disk.
func (w *Watch) follow(ctx context.Context, disk int) error {
	w.mu.Lock()
	src := w.disks[disk].Source
	w.mu.Unlock()
	defer w.turns.end(disk)
	for {
		patience, drawn, several := w.patience(disk)
		wait, stop := context.WithTimeout(ctx, patience)
		now := w.turns.waits(disk, stop)
		write, err := src.Next(wait)
		stopped := wait.Err() == context.Canceled
		stop()
		switch {
		case err == nil && several:
			w.turns.comes(ctx, disk, write.Time)
		case err != nil && wait.Err() != nil:
			w.turns.empty(disk, now)
		}
		w.mu.Lock()
		d := &w.disks[disk] // until mu is free: there may be more
		d.rest = min(2*d.rest+patience, rest)
		if !errors.Is(err, context.DeadlineExceeded) {
			d.rest = 0
		}
		if d.drawn == drawn {
			d.torn = false
		}
		switch l, isLost := lost(err); {
		case err == nil && d.drawn != drawn:
			if d.torn {
				w.again = "a write came while file systems were attached"
			}
		case err == nil:
			if err = w.apply(ctx, disk, &write); err == nil && w.rescan {
				err = w.divide(ctx)
			}
			w.crawl(ctx)
		case isLost:
			w.again = l.Error()
			err = nil
		case isMark(err):
			err = nil
		case ctx.Err() != nil:
			w.mu.Unlock()
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			err = w.idle(ctx, disk)
		case stopped && errors.Is(err, context.Canceled):
			err = nil // another disk's write waits for us
		case errors.Is(err, io.EOF):
			w.live--
			w.mu.Unlock()
			return nil
		case errors.Is(err, tap.ErrUnplugged) && w.live > 1:
			err = w.unplug(disk)
			w.mu.Unlock()
			return err
		}
		w.mend()
		if err == nil && w.again != "" {
			err = w.begin(ctx)
		}
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func isMark(err error) bool {
	var m *tap.CapturingError
	return errors.As(err, &m)
}

// rest is how often a disk that is quiet for long is looked at: there is nothing more to be done then, but for what waits for
// time to pass.
const rest = time.Second

// patience is how long to wait for a write until something else is done, how often others have read the disk, and whether a
// volume lies on it and on others.
func (w *Watch) patience(disk int) (patience time.Duration, drawn uint64, several bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	patience = max(w.opt.Quiet, w.disks[disk].rest)
	for _, v := range w.volumes {
		if w.busy(v) {
			patience = time.Millisecond
		}
		several = several || v.part.Disk < 0 && len(w.disks) > 1 && v.on(disk)
	}
	return patience, w.disks[disk].drawn, several
}

// apply hands a write to the volumes that it touches.
func (w *Watch) apply(ctx context.Context, disk int, write *block.Write) error {
	if w.layout.Stale(disk, write) {
		w.rescan, w.stale = true, write.Time
	}
	for _, v := range w.volumes {
		if !v.where.Touches(disk, write) {
			continue
		}
		if !v.since.IsZero() && write.Time.After(v.since) {
			if err := w.caughtUp(ctx, v); err != nil {
				return err
			}
		}
		v.touched = write.Time
		if v.joint != nil {
			if err := v.joint.Made(disk); err != nil {
				return err
			}
		}
		pieces := v.where.Pieces(disk, *write)
		for {
			p, ok := pieces.Next()
			if !ok {
				break
			}
			events, err := v.fs.Apply(p)
			if w.inexact(v) {
				break // what it says may be wrong
			}
			if err := w.tell(v, events, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// tell emits events of a volume. What the inference says is wrong with the disk is told beside them.
func (w *Watch) tell(v *volume, events []event.Event, err error) error {
	if err != nil {
		if l, ok := lost(err); ok {
			w.again = l.Error()
		} else if errors.Is(err, ext4.ErrReplaced) {
			w.rescan, w.stale = true, w.opt.Clock()
		} else {
			w.opt.Warn(fmt.Errorf("%s: %w", v.name, err))
		}
		if errors.Is(err, fsinfer.ErrUntold) && v.then == nil {
			w.untold = v.name + ": " + fsinfer.ErrUntold.Error()
		}
	}
	if len(events) > 0 {
		w.place(v, events)
	}
	look := sync.OnceValue(v.fs.Look)
	for i := range events {
		e := &events[i]
		if v.then != nil {
			continue // a part of the difference
		}
		if v.tree != nil {
			if v.tree.apply(e, look); w.inexact(v) {
				v.tree = nil
			}
		}
		if err := w.pass(v, e); err != nil {
			return err
		}
	}
	return nil
}

// pass sends an event of a volume, if it is one that is watched.
func (w *Watch) pass(v *volume, e *event.Event) error {
	v.finish(e)
	if !w.filter.passes(e) {
		return nil
	}
	if err := v.content(e, w.opt.Content); err != nil {
		w.opt.Warn(fmt.Errorf("%s: %w", v.name, err))
	}
	return w.send(*e)
}

// send numbers an event.
func (w *Watch) send(e event.Event) error {
	w.seq++
	e.Seq = w.seq
	if e.Time.IsZero() {
		e.Time = w.opt.Clock()
	}
	if err := w.emit(e); err != nil {
		return errStop{err}
	}
	return nil
}

// idle is called when a disk had nothing to say for a while.
func (w *Watch) idle(ctx context.Context, disk int) error {
	if w.rescan {
		return w.divide(ctx)
	}
	for _, v := range w.volumes {
		if !v.since.IsZero() && v.on(disk) { // other disks may still have older writes
			if err := w.caughtUp(ctx, v); err != nil {
				return err
			}
		}
		w.step(ctx, v)
	}
	return w.quiet(w.opt.Clock())
}

// crawl goes on with the crawls beside writes that never pause, for at most half of the time.
func (w *Watch) crawl(ctx context.Context) {
	if !slices.ContainsFunc(w.volumes, w.busy) {
		return
	}
	begin := w.opt.Clock()
	if begin.Before(w.next) {
		return
	}
	for _, v := range w.volumes {
		if v.since.IsZero() {
			w.step(ctx, v)
		}
	}
	end := w.opt.Clock()
	w.next = end.Add(end.Sub(begin))
}

// step goes on with one crawl, and then with reading the tree.
func (w *Watch) step(ctx context.Context, v *volume) {
	defer w.inexact(v)
	if !v.crawl {
		if read := w.readTree(v); w.inexact(v) && read {
			v.tree = nil // no difference from it is told
		}
		return
	}
	if err := v.step(ctx, 1<<13, w.opt.Progress); err != nil && ctx.Err() == nil {
		w.opt.Warn(fmt.Errorf("%s: %w", v.name, err))
	}
}

// quiet has the file systems without journal tell what waits.
func (w *Watch) quiet(now time.Time) error {
	for _, v := range w.volumes {
		if now.Sub(v.touched) < w.opt.Quiet {
			continue // another disk was quiet
		}
		events, err := v.fs.Quiet(now)
		if w.inexact(v) {
			continue
		}
		if err := w.tell(v, events, err); err != nil {
			return err
		}
	}
	return nil
}

// begin attaches all anew behind a loss.
func (w *Watch) begin(ctx context.Context) error {
	reason := w.again
	w.again, w.untold, w.rescan = "", "", false
	if err := w.send(event.Event{Op: event.Lost, Detail: reason + w.unknown()}); err != nil {
		return err
	}
	if err := w.skip(ctx); err != nil {
		return err
	}
	defer w.turns.wake() // other disks are at rest
	return w.attach(ctx)
}

// choose says for which writes of a disk content is wanted: with a journal, only there and in the superblock, once what the
// model holds is not older than what comes.
func (w *Watch) choose(disk int) {
	d := &w.disks[disk]
	c, ok := d.Source.(Chooser)
	if !ok || d.caught || w.opt.Content > 0 {
		return
	}
	var wanted []block.Range
	for _, v := range w.volumes {
		if !v.on(disk) {
			continue
		}
		_, where, ok := v.fs.Journal()
		if !ok || !v.since.IsZero() {
			return // all is wanted
		}
		for _, r := range append(slices.Clone(where), block.Range{Off: 0, Len: 2 * ext4.SuperOffset}) {
			for off := r.Off; off < r.End(); {
				p := v.where.Locate(off)
				n := min(p.Len, r.End()-off)
				if n <= 0 {
					break
				}
				if p.Disk == disk {
					wanted = append(wanted, block.Range{Off: p.Off, Len: n})
				}
				off += n
			}
		}
	}
	d.caught = true
	for _, r := range wanted {
		c.Interest(r, true)
	}
}
