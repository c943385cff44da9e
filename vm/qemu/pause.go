package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmscope/internal/qmp"
)

// helperEnv marks the process that resumes a guest when we no longer can. Its
// value is QEMU's PID and the path of its monitor, parted by a colon.
const helperEnv = "VMSCOPE_RESUME_HELPER"

// helperKnown is set once main has called RunResumeHelper.
var helperKnown atomic.Bool

// RunResumeHelper must be called first thing in main by every program that
// pauses guests. In the program itself it returns at once. Pause starts the
// same program again as a helper, which in here waits until the guest has been
// resumed, resumes it if the program has died, and exits.
func RunResumeHelper() {
	helperKnown.Store(true)
	target, ok := os.LookupEnv(helperEnv)
	if !ok {
		return
	}
	first, path, _ := strings.Cut(target, ":")
	pid, _ := strconv.Atoi(first)
	os.Unsetenv(helperEnv)
	// What ends the program must not end its helper.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT)
	os.Exit(helper(path, pid, os.Stdin, os.Stdout))
}

// helper waits on in for one of: "a" (armed: the guest is about to be paused),
// "d" (done). The end of in without "d" while armed resumes the guest.
func helper(path string, pid int, in io.Reader, out io.Writer) int {
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
	// The monitor is free a moment after the dead program's end; QEMU may be
	// busy for longer, and who took the monitor meanwhile may keep it for hours.
	for range 100_000 {
		if err := cont(path, pid); err == nil {
			return 0
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			break
		}
		time.Sleep(time.Second / 2)
	}
	return 1
}

// cont makes a paused guest run.
func cont(path string, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := dial(ctx, path, pid)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := qmp.Status(ctx, c)
	if err != nil || s != "paused" {
		return err
	}
	_, err = c.Run(ctx, "cont", nil)
	return err
}

// pauseState is what a pause must undo.
type pauseState struct {
	mu     sync.Mutex
	helper *exec.Cmd
	pipe   io.WriteCloser
	depth  int
}

// Pause stops the guest's vCPUs through the monitor. Pauses nest. A guest that
// was not running is left alone, and not resumed by Resume either.
//
// However this program ends, the guest runs again: see RunResumeHelper.
func (g *guest) Pause(ctx context.Context) error {
	if g.mon == nil {
		return errNoMonitor("pause " + g.proc.String())
	}
	if !helperKnown.Load() {
		return fmt.Errorf("pause %s: the program must call qemu.RunResumeHelper first in main: %w", g.proc, errors.ErrUnsupported)
	}
	if err := g.mon.stop(ctx); err != nil {
		return fmt.Errorf("pause %s: %w", g.proc, err)
	}
	return nil
}

// Resume makes the guest run again if Pause stopped it. It does so even if ctx
// has ended.
func (g *guest) Resume(ctx context.Context) error {
	if g.mon == nil {
		return errNoMonitor("resume " + g.proc.String())
	}
	if err := g.mon.resume(ctx); err != nil {
		return fmt.Errorf("resume %s: %w", g.proc, err)
	}
	return nil
}

func (m *monitor) stop(ctx context.Context) error {
	m.pause.mu.Lock()
	defer m.pause.mu.Unlock()
	if m.pause.depth > 0 {
		m.pause.depth++
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The helper must be able to connect: so hang up in any case.
	defer m.hangUp()
	var was, path string
	err := m.do(ctx, func(c *qmp.Client) (err error) {
		path = m.good
		was, err = qmp.Status(ctx, c)
		return err
	})
	if err != nil {
		return err
	}
	if was != "running" {
		m.pause.depth++
		return nil
	}
	if err := m.pause.start(ctx, m.pid, path); err != nil {
		return err
	}
	if _, err := m.pause.pipe.Write([]byte("a")); err != nil {
		return errors.Join(fmt.Errorf("arm the resume helper: %w", err), m.pause.end())
	}
	err = m.do(ctx, func(c *qmp.Client) error {
		_, err := c.Run(ctx, "stop", nil)
		return err
	})
	if err != nil {
		// It may have stopped all the same. The helper sees to it.
		m.hangUp()
		m.pause.abandon()
		return err
	}
	m.pause.depth++
	return nil
}

func (m *monitor) resume(ctx context.Context) error {
	m.pause.mu.Lock()
	defer m.pause.mu.Unlock()
	if m.pause.depth == 0 {
		return nil
	}
	if m.pause.depth--; m.pause.depth > 0 || m.pause.helper == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	defer m.hangUp()
	err := m.do(ctx, func(c *qmp.Client) error {
		s, err := qmp.Status(ctx, c)
		if err != nil || s != "paused" {
			return err // ended, or somebody resumed it
		}
		_, err = c.Run(ctx, "cont", nil)
		return err
	})
	if err != nil {
		m.hangUp()
		m.pause.abandon()
		return fmt.Errorf("%w (a helper goes on trying)", err)
	}
	return m.pause.end()
}

// start starts the helper and waits until it is ready.
func (p *pauseState) start(ctx context.Context, pid int, path string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(withoutEnv(os.Environ(), helperEnv), fmt.Sprintf("%s=%d:%s", helperEnv, pid, path))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of Ctrl-C
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the resume helper: %w", err)
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
		return fmt.Errorf("start the resume helper: %w", err)
	}
	p.helper, p.pipe = cmd, in
	return nil
}

// end tells the helper that all is well.
func (p *pauseState) end() error {
	_, err := p.pipe.Write([]byte("d"))
	p.pipe.Close()
	werr := p.helper.Wait()
	p.helper, p.pipe = nil, nil
	return errors.Join(err, werr)
}

// abandon leaves the guest to the helper, as if we had died.
func (p *pauseState) abandon() {
	p.pipe.Close()
	go p.helper.Wait()
	p.helper, p.pipe = nil, nil
}

func withoutEnv(env []string, key string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, key+"=") {
			out = append(out, e)
		}
	}
	return out
}
