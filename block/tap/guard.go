package tap

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
	"vmscope/internal/ring"
)

// A guard watches over one receiver: if that is stopped or hangs, the guest's writes hang with it. One that was stopped is
// told to go on, at once; one that does not is killed: QEMU then fails the mirror job, and the guest goes on. In its
// place the guard starts another.
//
// The receiver in turn starts a new guard where the guard has ended. Whoever reads the ring is watched by neither: its
// end is seen on the control line, and that it is stopped only fills the ring.

const (
	guardEvery = 150 * time.Millisecond
	// hungAfter ticks without a sign of life a receiver of which no thread wants to run counts as hung; one that wants to
	// run, or waits for the disk, is held up by others, and is given starvedAfter.
	hungAfter    = 5
	starvedAfter = 66
	// stubborn is how soon a receiver may not be stopped again without being killed.
	stubborn = 5 * time.Second
)

// guard is the guard's process.
func guard(k *kit, j job) error {
	signal.Ignore(syscall.SIGTERM)
	runtime.GOMAXPROCS(1) // with more, each tick would wake threads that find nothing to do
	gauge, err := ring.NewGauge(k.ring.Memory)
	if err != nil {
		return err
	}
	g := &guardian{k: k, spec: j.Spec, gauge: gauge, ctl: control{k.ctl}}
	g.ctl.send(message{Kind: msgGuard, PID: os.Getpid()})
	chld := make(chan os.Signal, 16)
	signal.Notify(chld, syscall.SIGCHLD) // also when a child is stopped
	t := time.NewTicker(guardEvery)
	defer t.Stop()
	if j.Guarded != 0 {
		err = g.adopt(j.Guarded)
	} else {
		err = g.start()
	}
	for err == nil && !g.done {
		k.alarm.putOff()
		select {
		case <-chld:
			err = g.reap()
		case <-t.C:
			if err = g.reap(); err == nil {
				g.check()
			}
		}
	}
	if err != nil {
		g.ctl.send(pack(msgEnded, err))
	}
	return err
}

type guardian struct {
	k     *kit
	spec  spec
	gauge *ring.Gauge
	ctl   control

	pid     int // of the receiver
	pidfd   int // of an adopted one; -1: it is our child
	done    bool
	starts  []time.Time
	stopped time.Time // when it was told to go on, the last time
	beat    uint64
	silent  int // ticks since the last sign of life
}

// start starts a receiver.
func (g *guardian) start() error {
	if len(g.starts) >= 20 && time.Since(g.starts[len(g.starts)-20]) < time.Minute {
		return errCrashing
	}
	if n := len(g.starts); n >= 3 && time.Since(g.starts[n-3]) < 2*time.Second {
		time.Sleep(time.Second / 2)
	}
	g.starts = append(g.starts, time.Now())
	pid, err := g.k.spawn(job{Role: roleReceiver, Spec: g.spec})
	if err != nil {
		return err
	}
	g.spec.Again++
	g.pid, g.pidfd, g.silent, g.stopped = pid, -1, 0, time.Time{}
	return nil
}

// adopt takes over a receiver whose guard has ended.
func (g *guardian) adopt(pid int) error {
	g.spec.Again++
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil || os.Getppid() != pid {
		return g.next() // it ended before we looked
	}
	g.pid, g.pidfd = pid, fd
	return nil
}

// next is what comes after a receiver.
func (g *guardian) next() error {
	if g.done = g.gauge.Finished(); g.done {
		return nil
	}
	return g.start()
}

// reap looks whether the receiver has ended or was stopped.
func (g *guardian) reap() error {
	if g.pidfd >= 0 {
		if !ended(g.pidfd) {
			return nil
		}
		unix.Close(g.pidfd)
		return g.next()
	}
	for {
		var ws unix.WaitStatus
		pid, no := hot.Now(unix.SYS_WAIT4, uintptr(g.pid), uintptr(unsafe.Pointer(&ws)), unix.WNOHANG|unix.WUNTRACED, 0, 0, 0)
		switch {
		case no == unix.EINTR:
		case no != 0: // it cannot be waited for: not there
			return g.next()
		case pid == 0:
			return nil
		case ws.Stopped():
			g.goOn()
		case ws.Exited() || ws.Signaled():
			return g.next()
		}
	}
}

// goOn makes a stopped receiver go on, or ends it if somebody stops it again and again.
func (g *guardian) goOn() {
	if time.Since(g.stopped) < stubborn {
		g.signal(unix.SIGKILL)
		return
	}
	g.stopped = time.Now()
	g.signal(unix.SIGCONT)
}

func (g *guardian) signal(s unix.Signal) {
	if g.pidfd >= 0 {
		unix.PidfdSendSignal(g.pidfd, s, nil, 0)
	} else {
		unix.Kill(g.pid, s) // it was not waited for: the number is still its
	}
}

// check looks for signs of life. What counts are our own ticks, so that a host that slept for a while kills nobody.
func (g *guardian) check() {
	if b := g.gauge.Beat(); b != g.beat {
		g.beat, g.silent = b, 0
		return
	}
	g.silent++
	switch s := state(g.pid); {
	case s == 'T' && (g.pidfd >= 0 || g.silent >= 2): // a child's stop was told; that it did not help is seen here
		g.goOn()
	case s == 't' && g.silent >= 4: // a debugger has it
		g.signal(unix.SIGKILL)
	case g.silent >= starvedAfter, g.silent >= hungAfter && !busy(g.pid):
		g.signal(unix.SIGKILL)
	}
}

// keepGuard starts a new guard where the receiver's has ended, and wakes one that was stopped and has no alarm.
func (r *receiver) keepGuard(k *kit, s spec) {
	pid := os.Getppid()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil || os.Getppid() != pid {
		fd = -1
	}
	ours := false
	t := time.NewTicker(guardStopped)
	defer t.Stop()
	for {
		gone := whenEnded(fd)
		for fd >= 0 && !ended(fd) {
			select {
			case <-gone:
				gone = nil // where that was too early, the ticker is there
			case <-t.C:
				if state(pid) == 'T' {
					unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
				}
			}
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if ours {
			for _, err = unix.Wait4(pid, nil, 0, nil); err == unix.EINTR; {
				_, err = unix.Wait4(pid, nil, 0, nil)
			}
		}
		if r.feed.ring.Finished() {
			return
		}
		fd, ours = -1, false
		if pid, err = k.spawn(job{Role: roleGuard, Spec: s, Guarded: os.Getpid()}); err == nil {
			ours = true
			fd, err = unix.PidfdOpen(pid, 0)
		}
		if err != nil {
			fd = -1
			time.Sleep(time.Second)
		}
	}
}

// guardStopped is how often a receiver looks whether its guard is stopped.
const guardStopped = time.Second

// whenEnded gives a channel that is closed when a process has ended, or when that cannot be waited for; nil if it
// never can.
func whenEnded(pidfd int) <-chan struct{} {
	bell, err := hot.NewBell(pidfd)
	if err != nil {
		return nil
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer bell.Close()
		bell.Wait()
	}()
	return gone
}

// ended reports whether a process has. A signal to who asks is no answer: the next time tells.
func ended(pidfd int) bool {
	p := unix.PollFd{Fd: int32(pidfd), Events: unix.POLLIN}
	var zero unix.Timespec
	n, no := hot.Now(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
	return no == 0 && n == 1
}
