// Package gdb looks into a guest through the stub that its VMM has for a debugger: QEMU's (-gdb, -s), which reads physical
// memory. It works over a network, and where nothing else does. It is slow, and a guest stands still while it is read.
//
// The protocol is that of the GDB manual, appendix E; physical addresses are QEMU's own packet Qqemu.PhyMemMode (QEMU
// docs/system/gdb.rst). What QEMU's stub was measured to do (7.2): a connection stops the guest; one that closes leaves it
// stopped, and the next one in the same memory mode; "D" makes it run; who comes while another is connected waits in the
// listener's queue, and stops the guest once it is taken from there, also if it has hung up meanwhile.
package gdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vmscope/internal/qmp"
	"vmscope/internal/resume"
	"vmscope/mem"
	"vmscope/vm"
)

const (
	// idle is how long the guest waits for the next question before it runs on.
	idle = 20 * time.Millisecond
	// standstill is how long it waits at most, however many questions there are, and breath how long it runs then. Only
	// Pause keeps it longer.
	standstill = 100 * time.Millisecond
	breath     = 50 * time.Millisecond
)

// Option changes how Open works.
type Option func(*machine)

// Writable makes the machine a mem.PhysWriter. Writing changes the guest under its feet.
func Writable() Option { return func(m *machine) { m.writable = true } }

// Open looks into the guest of the stub at addr: "HOST:PORT", "PORT" of this host, or the path of a unix socket. The guest
// stands still for moments while it is read, and runs again right after, however the program ends: see RunResumeHelper. A
// guest that stood still before stays so.
//
// The machine is a mem.Ranger, a vm.Describer, a vm.Pauser, vm.CPUs and a vm.Releaser.
func Open(ctx context.Context, addr string, opts ...Option) (vm.Machine, error) {
	kind, full := network(addr)
	m := &machine{addr: addr, where: kind + " " + full}
	for _, f := range opts {
		f(m)
	}
	if err := m.do(func(s *session) error { return m.ask(s) }); err != nil {
		return nil, errors.Join(fmt.Errorf("gdb:%s: %w", addr, err), m.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if m.writable {
		return &machineRW{m}, nil
	}
	return m, nil
}

// machine is a guest behind a stub.
type machine struct {
	addr, where string
	writable    bool
	name, accel string
	ranges      []mem.Range
	ram         uint64

	mu     sync.Mutex
	helper *resume.Helper
	s      *session // nil: the guest runs
	since  time.Time
	ran    time.Time // since when it runs
	timer  *time.Timer
	paused int
	closed bool
}

// machineRW is one that may be written.
type machineRW struct{ *machine }

// do runs f with a session. Calls take turns.
func (m *machine) do(f func(*session) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.s != nil && m.s.stopped && m.paused == 0 && time.Since(m.since) > standstill {
		if err := m.release(); err != nil {
			return fmt.Errorf("%w: %w", mem.ErrUnreachable, err)
		}
		time.Sleep(breath - time.Since(m.ran))
	}
	if err := m.open(); err != nil {
		return err
	}
	m.s.until = time.Now().Add(patience)
	if err := f(m.s); err != nil {
		if lost := m.release(); lost != nil || isIO(err) {
			err = fmt.Errorf("%w: %w", mem.ErrUnreachable, errors.Join(err, lost))
		}
		return err
	}
	m.rest()
	return nil
}

// isIO reports whether an error is of the connection.
func isIO(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, errProtocol) || errors.As(err, &timeout)
}

// open makes sure that there is a session, and before that of a helper that ends it.
func (m *machine) open() (err error) {
	switch {
	case m.closed:
		return fmt.Errorf("%w: closed", mem.ErrUnreachable)
	case m.s != nil:
		return nil
	case m.helper == nil:
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if m.helper, err = resume.Start(ctx, helperKind, m.addr); err != nil {
			return err
		}
	}
	if err := m.helper.Arm(); err != nil {
		m.helper = nil
		return err
	}
	if m.s, err = connect(m.addr, patience); err != nil {
		// It may have stopped all the same; but if nobody listens, or it is no stub, it has not.
		if refused(err) || errors.Is(err, errProtocol) {
			return errors.Join(err, m.helper.Disarm())
		}
		m.abandon()
		return err
	}
	m.since = time.Now()
	if !m.s.stopped {
		return m.helper.Disarm() // it stood still before we came
	}
	return nil
}

// rest lets the guest run soon, unless another question comes or it is paused.
func (m *machine) rest() {
	if m.paused > 0 {
		return
	}
	if m.timer != nil {
		m.timer.Stop()
	}
	m.timer = time.AfterFunc(idle, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.paused == 0 {
			m.release() // what fails is left to the helper
		}
	})
}

// release lets the guest run, and if that fails leaves it to the helper.
func (m *machine) release() error {
	if m.s == nil {
		return nil
	}
	s := m.s
	m.s, m.ran = nil, time.Now()
	if err := s.detach(); err != nil {
		m.abandon()
		return fmt.Errorf("let the guest run: %w (a helper goes on trying)", err)
	}
	if err := m.helper.Disarm(); err != nil {
		m.helper = nil
		return err
	}
	return nil
}

func (m *machine) abandon() {
	m.helper.Abandon()
	m.helper = nil
}

// ask asks QEMU's monitor, which the stub passes commands to, what the guest is and where its RAM lies. Nothing else may
// be read: behind other addresses are devices, which notice it.
func (m *machine) ask(s *session) error {
	if !s.physical {
		return fmt.Errorf("this stub reads no physical memory (QEMU's does, from 4.1 on): %w", errors.ErrUnsupported)
	}
	devs, err := s.monitor("info memdev")
	if err != nil {
		return fmt.Errorf("where RAM lies: %w", err)
	}
	var ids []string
	for line := range strings.Lines(devs) {
		if id, ok := strings.CutPrefix(line, "memory backend: "); ok {
			ids = append(ids, strings.TrimSpace(id))
		}
	}
	tree, err := s.monitor("info mtree -f")
	if err != nil {
		return fmt.Errorf("where RAM lies: %w", err)
	}
	for _, r := range qmp.ParseTree(tree, ids) {
		m.ranges = append(m.ranges, mem.Range{Start: r.PA, Size: r.Size})
		m.ram += r.Size
	}
	if len(m.ranges) == 0 {
		return fmt.Errorf("the monitor's memory map (%d bytes) shows no RAM of the backends %q: %w", len(tree), ids, errProtocol)
	}
	m.ranges = qmp.WithoutVGA(m.ranges)
	if name, err := s.monitor("info name"); err == nil {
		m.name = strings.TrimSpace(name)
	}
	m.accel = "tcg"
	if kvm, err := s.monitor("info kvm"); err == nil && strings.Contains(kvm, "enabled") {
		m.accel = "kvm"
	}
	return nil
}

// Info describes the guest.
func (m *machine) Info() vm.Info {
	return vm.Info{Name: m.name, VMM: "qemu-" + m.accel, RAM: m.ram, Live: true, Slow: true, Route: "GDB stub, " + m.where, Layout: "qemu (told by QEMU's monitor)"}
}

// Ranges lists the RAM.
func (m *machine) Ranges() []mem.Range { return slices.Clone(m.ranges) }

// turn bounds what is read or written at once, so that standstill holds.
const turn = 256 << 10

// pieces calls f with the parts of [pa, pa+size), each of which is RAM and none longer than turn. It gives how many bytes
// were done.
func (m *machine) pieces(op string, size int, pa mem.PA, f func(s *session, from, to int) (int, error)) (n int, err error) {
	for n < size {
		at := pa + mem.PA(n)
		i := slices.IndexFunc(m.ranges, func(r mem.Range) bool { return at >= r.Start && at < r.End() })
		if i < 0 || at < pa {
			return n, &mem.FaultError{Op: op, Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		k := int(min(uint64(size-n), uint64(m.ranges[i].End()-at), turn))
		got := 0
		err := m.do(func(s *session) (err error) {
			got, err = f(s, n, n+k)
			return err
		})
		if err != nil {
			return n + got, &mem.FaultError{Op: op, Addr: uint64(at) + uint64(got), Err: err}
		}
		n += k
	}
	return n, nil
}

// ReadPhys reads the bytes at pa. The guest stands still meanwhile.
func (m *machine) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	return m.pieces("read", len(p), pa, func(s *session, from, to int) (int, error) {
		return s.read(p[from:to], pa+mem.PA(from))
	})
}

// WritePhys changes the guest's memory. The guest stands still meanwhile.
func (m *machineRW) WritePhys(p []byte, pa mem.PA) (n int, err error) {
	return m.pieces("write", len(p), pa, func(s *session, from, to int) (int, error) {
		return s.write(p[from:to], pa+mem.PA(from))
	})
}

// Pause keeps the guest stopped until Resume. Pauses nest.
func (m *machine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.open(); err != nil {
		return fmt.Errorf("pause gdb:%s: %w", m.addr, err)
	}
	m.paused++
	return nil
}

// Resume lets the guest run again if it ran before Pause.
func (m *machine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused == 0 {
		return nil
	}
	if m.paused--; m.paused > 0 {
		return nil
	}
	return m.release()
}

// Release lets the guest run at once, if it is not paused.
func (m *machine) Release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused > 0 {
		return nil
	}
	return m.release()
}

// Close lets go of the guest.
func (m *machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
	}
	m.paused, m.closed = 0, true
	err := m.release()
	if m.helper != nil {
		err = errors.Join(err, m.helper.Done())
		m.helper = nil
	}
	return err
}
