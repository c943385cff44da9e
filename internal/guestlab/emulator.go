package guestlab

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// An emulator is a QEMU that runs for as long as this process does, at most.
type emulator struct {
	pid    int
	began  time.Time
	qemu   string        // the program, "" for that of PCs
	exited chan struct{} // closed when it is gone and waited for
}

// launch starts QEMU such that the kernel kills it when this process dies. That signal follows the death of the thread
// that forked, so one thread is kept for it as long as QEMU lives. What it says goes into the log.
func (e *emulator) launch(log string, args ...string) error {
	out, err := os.Create(log)
	if err != nil {
		close(e.exited)
		return err
	}
	defer out.Close()
	cmd := exec.Command(cmp.Or(e.qemu, qemu), args...)
	cmd.Stdout, cmd.Stderr = out, out
	// A session of its own: Ctrl-C in a terminal is for the caller, who then closes the guest in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(e.exited)
		err := cmd.Start()
		if err == nil {
			e.pid, e.began = cmd.Process.Pid, time.Now()
		}
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	return <-started
}

// kill ends the emulator if it was launched and runs, by SIGKILL, and waits until it is gone.
func (e *emulator) kill() {
	if e.pid == 0 {
		return
	}
	select {
	case <-e.exited: // and its pid may be another's by now
	default:
		syscall.Kill(e.pid, syscall.SIGKILL)
		<-e.exited
	}
}

// hadTime is how long the machine has had a processor, or wanted none: the time since its start without that in which it
// waited for other work of this host.
func (e *emulator) hadTime() time.Duration {
	waited := uint64(0)
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.pid))
	for _, t := range threads {
		// Nanoseconds on a processor, nanoseconds waiting for one, turns (Linux Documentation/scheduler/sched-stats.rst).
		text, _ := os.ReadFile(t)
		var ran, waiting uint64
		fmt.Sscan(string(text), &ran, &waiting)
		waited = max(waited, waiting) // threads wait together
	}
	return time.Since(e.began) - time.Duration(waited)
}

// patience is a context that ends when the machine has had so much more time: a host may be loaded however it is.
func (e *emulator) patience(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for end := e.hadTime() + d; e.hadTime() < end; {
			if sleep(ctx, time.Second) != nil {
				return
			}
		}
		cancel(fmt.Errorf("it did not within %v: %w", d, context.DeadlineExceeded))
	}()
	return ctx, func() { cancel(context.Canceled) }
}
