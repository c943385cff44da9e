package tap

import (
	"fmt"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// goOnEvery is how long a helper can be stopped at most.
const goOnEvery = 200 * time.Millisecond

// unstoppable makes the kernel tell this process, now and then, to go on: a SIGCONT that a POSIX timer sends makes a stopped
// process run again as any other does. So somebody who stops all that is called vmscope stops no guest.
func unstoppable() error {
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
		return fmt.Errorf("timer: %w", no)
	}
	every := unix.NsecToTimespec(int64(goOnEvery))
	when := unix.ItimerSpec{Interval: every, Value: every}
	if _, _, no := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&when)), 0, 0, 0); no != 0 {
		return fmt.Errorf("timer: %w", no)
	}
	return nil
}
