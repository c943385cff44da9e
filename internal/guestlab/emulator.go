package guestlab

import (
	"cmp"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// An emulator is a QEMU that runs for as long as this process does, at most.
type emulator struct {
	pid    int
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
			e.pid = cmd.Process.Pid
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
