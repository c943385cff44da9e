package qemu

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"vmscope/internal/qmp"
	"vmscope/internal/resume"
)

// helperKind is that of QEMU's guests among those that helpers see to.
const helperKind = "qemu"

// RunResumeHelper must be called first thing in main by every program that
// pauses guests. In the program itself it returns at once. Pause starts the
// same program again as a helper, which in here waits until the guest has been
// resumed, resumes it if the program has died, and exits.
func RunResumeHelper() { resume.Run(helperKind, wake) }

// wake resumes the guest of a dead program: QEMU's PID and the way to its
// monitor, parted by a colon.
func wake(target string) (done bool) {
	first, by, _ := strings.Cut(target, ":")
	pid, err := strconv.Atoi(first)
	if err != nil || pid <= 0 {
		return true
	}
	return cont(way(by), pid) == nil || syscall.Kill(pid, 0) == syscall.ESRCH
}

// cont makes a paused guest run.
func cont(by way, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), libvirtWait)
	defer cancel()
	p, _, ok := inspect(pid)
	if !ok {
		return ErrNoVM
	}
	c, err := p.connect(ctx, by)
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
	helper *resume.Helper
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
	ctx, cancel := context.WithTimeout(ctx, m.patience())
	defer cancel()
	// The helper must be able to connect: so hang up in any case.
	defer m.hangUp()
	var was string
	var by way
	err := m.do(ctx, func(c qmp.Monitor) (err error) {
		by = m.good
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
	h, err := resume.Start(ctx, helperKind, fmt.Sprintf("%d:%s", m.proc.PID, by))
	if err != nil {
		return err
	}
	if err := h.Arm(); err != nil {
		return err
	}
	err = m.do(ctx, func(c qmp.Monitor) error {
		_, err := c.Run(ctx, "stop", nil)
		return err
	})
	if err != nil {
		// It may have stopped all the same. The helper sees to it.
		m.hangUp()
		h.Abandon()
		return err
	}
	m.pause.helper = h
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.patience())
	defer cancel()
	defer m.hangUp()
	h := m.pause.helper
	m.pause.helper = nil
	err := m.do(ctx, func(c qmp.Monitor) error {
		s, err := qmp.Status(ctx, c)
		if err != nil || s != "paused" {
			return err // ended, or somebody resumed it
		}
		_, err = c.Run(ctx, "cont", nil)
		return err
	})
	if err != nil {
		m.hangUp()
		h.Abandon()
		return fmt.Errorf("%w (a helper goes on trying)", err)
	}
	return h.Done()
}
