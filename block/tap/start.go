package tap

import (
	"context"
	"os"

	"vmscope/internal/ring"
)

// start runs a receiver. The result makes it go and waits until it has. theirs, the control line's other end, is the
// receiver's.
func start(s spec, o Options, files ring.Files, theirs *os.File, l, ln *os.File) (release func(), err error) {
	return startInside(s, files, theirs)
}

// startInside runs the receiver in this program.
func startInside(s spec, files ring.Files, theirs *os.File) (release func(), err error) {
	r, err := newReceiver(s, files, theirs)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		r.run(ctx)
		r.feed.ring.Close()
	}()
	return func() { cancel(); <-done }, nil
}
