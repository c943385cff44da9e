package xen

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"vmscope/internal/resume"
)

// RunResumeHelper must be called first thing in main by every program that pauses domains, as qemu.RunResumeHelper by one
// that pauses QEMU's guests: however the program ends, its domains run again.
func RunResumeHelper() {
	resume.Run("xen", func(target string) bool {
		id, err := strconv.ParseUint(target, 10, 16)
		if err != nil {
			return true
		}
		d, err := openDevice()
		if err != nil {
			return errors.Is(err, ErrNoXen)
		}
		defer d.Close()
		x, err := openHost(d)
		if err != nil {
			return false
		}
		_, err = x.control(domctlUnpause, uint16(id), nil, nil)
		return err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
	})
}

// pauses are those of a machine. Xen counts pauses: ours is one, whoever else paused the domain.
type pauses struct {
	mu     sync.Mutex
	depth  int
	helper *resume.Helper
	undo   func() error
}

// Pause stops the domain's vCPUs. Pauses nest, and add to those of others: a domain that "xl pause" stopped stays so.
func (m *machine) Pause(ctx context.Context) error {
	p := &m.pause
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.depth > 0 {
		p.depth++
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("pause domain %d: %w", m.domain.ID, err) }
	h, err := resume.Start(ctx, "xen", strconv.Itoa(int(m.domain.ID)))
	if err != nil {
		return fail(err)
	}
	if err := h.Arm(); err != nil {
		return fail(err)
	}
	if _, err := m.host.control(domctlPause, m.domain.ID, nil, nil); err != nil {
		return errors.Join(fail(err), h.Done())
	}
	p.depth, p.helper = 1, h
	p.undo = func() error {
		_, err := m.host.control(domctlUnpause, m.domain.ID, nil, nil)
		if errors.Is(err, unix.ESRCH) {
			err = nil // ended
		}
		return err
	}
	return nil
}

// Resume makes the domain run again, as far as it was Pause that stopped it. It does so even if ctx has ended.
func (m *machine) Resume(context.Context) error {
	p := &m.pause
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.depth == 0 {
		return nil
	}
	if p.depth--; p.depth > 0 {
		return nil
	}
	return p.run()
}

// run undoes the pause. p.mu is held.
func (p *pauses) run() error {
	if err := p.undo(); err != nil {
		p.helper.Abandon()
		return fmt.Errorf("resume: %w (a helper goes on trying)", err)
	}
	return p.helper.Done()
}

// end makes the domain run however deep the pause.
func (p *pauses) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.depth == 0 {
		return nil
	}
	p.depth = 0
	return p.run()
}
