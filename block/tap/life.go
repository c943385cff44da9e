package tap

import (
	"errors"

	"golang.org/x/sys/unix"
)

// life tells whether a receiver lives.
type life struct {
	fd   int // its pidfd, if known
	gone bool
	set  bool
}

// of takes another receiver in its place. Where the kernel has no pidfds, all of them are taken to live.
func (l *life) of(pid int) {
	l.close()
	fd, err := unix.PidfdOpen(pid, 0)
	l.fd, l.set, l.gone = fd, err == nil, errors.Is(err, unix.ESRCH)
}

func (l *life) over() bool { return l.gone || l.set && ended(l.fd) }

func (l *life) close() {
	if l.set {
		unix.Close(l.fd)
	}
	*l = life{}
}

// received waits until there is a receiver, or until there will be none. While one that was killed is not replaced, QEMU may
// have given up its job, and the guest writes what nobody sees: what the disk holds then may be from later than all that is in
// the ring, which nothing there says before the next one has begun by telling of the loss.
func (t *Tap) received() {
	_ = t.await(t.ctx, func() bool { return !t.life.over() })
}
