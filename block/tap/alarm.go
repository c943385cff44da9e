package tap

import (
	"fmt"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmscope/internal/hot"
)

const (
	// wakeAfter is how long a helper can be stopped at most. One that runs puts it off each time that it beats.
	wakeAfter = 300 * time.Millisecond
	// wakeAgain is how long one that was woken and did not get to beat can be.
	wakeAgain = 200 * time.Millisecond
)

// alarm has the kernel tell this process to go on, once it has not beaten for a while: a SIGCONT that a POSIX timer sends makes
// a stopped process run again as any other does. So somebody who stops all that is called vmscope stops no guest. As long as
// the process runs no signal comes: each would wake it and Go's monitor for nothing. The zero value does nothing.
type alarm struct {
	timer int32
	set   bool
}

func newAlarm() (alarm, error) {
	// With a handler, since a signal that is ignored may not wind the timer up again.
	signal.Notify(make(chan os.Signal, 1), unix.SIGCONT)
	var event struct { // struct sigevent, include/uapi/asm-generic/siginfo.h
		value  uint64
		signo  int32
		notify int32 // 0: SIGEV_SIGNAL
		_      [48]byte
	}
	event.signo = int32(unix.SIGCONT)
	var id int32
	if _, _, no := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id))); no != 0 {
		return alarm{}, fmt.Errorf("timer: %w", no)
	}
	a := alarm{id, true}
	return a, a.putOff()
}

// putOff begins anew to wait.
func (a alarm) putOff() error {
	if !a.set {
		return nil
	}
	when := unix.ItimerSpec{Interval: unix.NsecToTimespec(int64(wakeAgain)), Value: unix.NsecToTimespec(int64(wakeAfter))}
	if _, no := hot.Now(unix.SYS_TIMER_SETTIME, uintptr(a.timer), 0, uintptr(unsafe.Pointer(&when)), 0, 0, 0); no != 0 {
		return fmt.Errorf("timer: %w", no)
	}
	return nil
}
