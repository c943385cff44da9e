package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmscope/internal/procram"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
)

const (
	// attachWait bounds what a monitor that is held by somebody else costs an
	// attach.
	attachWait = 500 * time.Millisecond
	// monitorWait bounds the wait for a monitor that somebody else may be using for a
	// moment.
	monitorWait = 3 * time.Second
	// libvirtWait bounds the wait for libvirt's daemon, which does other things too.
	libvirtWait = 10 * time.Second
	// monitorIdle is how long a connection is kept for the next question.
	monitorIdle = 200 * time.Millisecond
)

// monitor is the monitor of one machine, connected to while needed.
type monitor struct {
	proc  Process
	mu    sync.Mutex
	good  way // by which it was connected to last
	conn  qmp.Monitor
	idle  *time.Timer
	pause pauseState
}

// newMonitor gives the monitor of a process, or nil if it has none.
func newMonitor(p Process) *monitor {
	if len(p.ways()) == 0 {
		return nil
	}
	return &monitor{proc: p}
}

// errNoMonitor says what a machine without monitor lacks.
func errNoMonitor(what string) error {
	return fmt.Errorf("%s: this QEMU has no QMP socket (start it with -qmp unix:PATH,server=on,wait=off): %w", what, errors.ErrUnsupported)
}

// do runs f with a connection. Calls take turns.
func (m *monitor) do(ctx context.Context, f func(qmp.Monitor) error) error {
	if m == nil {
		return errNoMonitor("ask the monitor")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == nil {
		c, by, err := m.proc.monitor(ctx)
		if err != nil {
			return err
		}
		m.conn, m.good = c, by
	}
	err := f(m.conn)
	if err != nil { // the connection may be in the middle of an answer
		m.drop()
		return err
	}
	if m.idle == nil {
		m.idle = time.AfterFunc(monitorIdle, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.drop()
		})
	} else {
		m.idle.Reset(monitorIdle)
	}
	return nil
}

// patience is how long the monitor may take for a question.
func (m *monitor) patience() time.Duration {
	if m.proc.Libvirt {
		return libvirtWait
	}
	return 5 * time.Second
}

// hangUp lets others use the monitor at once.
func (m *monitor) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop()
}

func (m *monitor) drop() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// close resumes the guest if we paused it, and hangs up.
func (m *monitor) close() error {
	if m == nil {
		return nil
	}
	m.pause.mu.Lock()
	m.pause.depth = min(m.pause.depth, 1)
	m.pause.mu.Unlock()
	err := m.resume(context.Background())
	m.hangUp()
	return err
}

// ask asks where the RAM lies, in the guest's physical memory and in QEMU's
// address space.
func (g *guest) ask(ctx context.Context, maps []procram.Mapping) (blocks []block, places []procram.Place, err error) {
	wait := attachWait
	if g.proc.Libvirt {
		wait = libvirtWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = g.mon.do(ctx, func(c qmp.Monitor) error {
		regions, err := ramRegions(ctx, c)
		if err != nil {
			return err
		}
		index := map[string]int{}
		for _, r := range regions {
			i, ok := index[r.Name]
			if !ok {
				reply, err := qmp.Human(ctx, c, fmt.Sprintf("gpa2hva %#x", uint64(r.PA)))
				if err != nil {
					return err
				}
				hva, err := parseHVA(reply)
				if err != nil {
					return err
				}
				i = len(blocks)
				index[r.Name] = i
				blocks = append(blocks, block{id: r.Name, Block: procram.Block{HVA: hva - r.Off}})
			}
			blocks[i].Size = max(blocks[i].Size, r.Off+r.Size)
			places = append(places, procram.Place{PA: r.PA, Block: i, Off: r.Off, Size: r.Size})
		}
		return nil
	})
	g.mon.hangUp()
	if err != nil {
		return nil, nil, err
	}
	for i := range blocks {
		b := &blocks[i]
		for _, v := range maps {
			if b.HVA >= v.Start && b.HVA < v.End && b.Size <= v.End-b.HVA {
				b.Mapping = v
			}
		}
		if b.Mapping.End == 0 {
			return nil, nil, fmt.Errorf("the monitor places RAM block %q at %#x, which is no memory of the process: %w", b.id, b.HVA, mem.ErrInconsistent)
		}
	}
	return blocks, places, nil
}

// CPUs asks the monitor for the registers of all vCPUs.
func (g *guest) CPUs(ctx context.Context) ([]vm.Registers, error) {
	if g.mon == nil {
		return nil, errNoMonitor("read the registers")
	}
	switch g.proc.conf.arch {
	case "x86_64", "i386", "":
	default:
		return nil, fmt.Errorf("read the registers of %s: %w", g.proc.conf.arch, errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, g.mon.patience())
	defer cancel()
	var out []vm.Registers
	err := g.mon.do(ctx, func(c qmp.Monitor) error {
		s, err := qmp.Human(ctx, c, "info registers -a")
		if err == nil {
			out, err = parseRegisters(s)
		}
		return err
	})
	return out, err
}
