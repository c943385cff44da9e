package tap

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"vmscope/internal/ring"
)

var background = context.Background()

// start runs a receiver: as a process of its own with a guard where that can be, else inside of the program. theirs, the
// control line's other end, is the receiver's from then on; the rest stays the caller's. The result waits until all of it
// is gone, having been told to go by the control line.
func start(s spec, o Options, files ring.Files, theirs, l, ln *os.File) (wait func(), err error) {
	if o.InProcess || !helperKnown.Load() {
		return startInside(s, files, theirs, ln)
	}
	k := kit{ctl: theirs, ring: files, lock: l, ln: ln}
	pid, err := k.spawn(job{Role: roleGuard, Spec: s})
	if err != nil {
		return nil, err
	}
	theirs.Close() // the helpers' end is to be seen
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				return
			}
		}
	}()
	return func() { <-done }, nil
}

// startInside runs the receiver in this program.
func startInside(s spec, files ring.Files, theirs, ln *os.File) (wait func(), err error) {
	r, err := newReceiver(s, files, theirs)
	if err != nil {
		return nil, err
	}
	r.ln = ln
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(background)
		theirs.Close()
		r.feed.ring.Desert() // nothing more is put into it
		r.beside.Wait()
		r.feed.ring.Close()
	}()
	return func() { <-done }, nil
}
