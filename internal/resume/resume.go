// Package resume makes a paused guest run again when the program that paused it dies. The program starts itself anew as a
// helper, which waits at the end of a pipe: what the dead cannot do, it does.
package resume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// variable marks the helper. Its value is the kind of guest, and the guest, parted by a colon.
const variable = "VMSCOPE_RESUME_HELPER"

// known are the kinds for which Run was called.
var known sync.Map

// A Waker makes a guest run that a dead program paused. Done means that there is nothing more to do: it runs, or has ended.
type Waker func(target string) (done bool)

// Run must be called first thing in main by every program that pauses guests of a kind. In the program itself it returns
// at once; in its helper of that kind it does not return.
func Run(kind string, wake Waker) {
	known.Store(kind, true)
	value, ok := os.LookupEnv(variable)
	if !ok {
		return
	}
	k, target, _ := strings.Cut(value, ":")
	if k != kind {
		return
	}
	os.Unsetenv(variable)
	// What ends the program must not end its helper.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT)
	os.Exit(Help(target, wake, os.Stdin, os.Stdout))
}

// Help is what a helper does: it waits on in for one of "a" (armed: the guest is about to be paused) and "d" (done). The
// end of in while armed makes the guest run. The result is the helper's exit status.
func Help(target string, wake Waker, in io.Reader, out io.Writer) int {
	if _, err := out.Write([]byte("r")); err != nil {
		return 1
	}
	armed := false
	var b [1]byte
	for {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			break
		}
		armed = b[0] == 'a'
	}
	if !armed {
		return 0
	}
	// The way to the guest may be in somebody's hands for hours.
	for range 100_000 {
		if wake(target) {
			return 0
		}
		time.Sleep(time.Second / 2)
	}
	return 1
}

// Helper is a running helper.
type Helper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// Start starts a helper for a guest and waits until it is ready. Nothing happens to the guest before Arm.
func Start(ctx context.Context, kind, target string) (*Helper, error) {
	if _, ok := known.Load(kind); !ok {
		return nil, fmt.Errorf("the program must call %s.RunResumeHelper first in main: %w", kind, errors.ErrUnsupported)
	}
	cmd := exec.Command("/proc/self/exe")
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, variable+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, variable+"="+kind+":"+target)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of Ctrl-C
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the resume helper: %w", err)
	}
	ready := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(out, make([]byte, 1))
		ready <- err
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("start the resume helper: %w", err)
	}
	return &Helper{cmd, in}, nil
}

// Arm tells the helper that the guest is about to be paused.
func (h *Helper) Arm() error {
	if _, err := h.pipe.Write([]byte("a")); err != nil {
		return errors.Join(fmt.Errorf("arm the resume helper: %w", err), h.Done())
	}
	return nil
}

// Disarm tells the helper that the guest runs. It may be armed again. A failed Disarm has ended the helper.
func (h *Helper) Disarm() error {
	if _, err := h.pipe.Write([]byte("d")); err != nil {
		return errors.Join(fmt.Errorf("disarm the resume helper: %w", err), h.Done())
	}
	return nil
}

// Done tells the helper that all is well, and waits for its end.
func (h *Helper) Done() error {
	_, err := h.pipe.Write([]byte("d"))
	h.pipe.Close()
	return errors.Join(err, h.cmd.Wait())
}

// Abandon leaves the guest to the helper, as if we had died.
func (h *Helper) Abandon() {
	h.pipe.Close()
	go h.cmd.Wait()
}
