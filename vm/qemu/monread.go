package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/procram"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
)

// monMem reads guest memory through the monitor: QEMU writes the bytes asked
// for (pmemsave) into a file in memory of ours. It takes about half a
// millisecond a read and holds QEMU's main loop meanwhile.
type monMem struct {
	g      *guest
	ranges []mem.Range
	mu     sync.Mutex
	dir    string
	file   *os.File
}

// attachQMP uses the monitor for everything.
func (g *guest) attachQMP(ctx context.Context) (vm.Machine, error) {
	if g.mon == nil {
		return nil, errNoMonitor("read memory through the monitor")
	}
	if g.opts.writable {
		return nil, fmt.Errorf("write memory through the monitor: %w", errors.ErrUnsupported)
	}
	g.route, g.how = QMP, "QMP pmemsave"
	ctx, cancel := context.WithTimeout(ctx, g.mon.patience())
	defer cancel()
	g.blocks, g.exact = nil, nil
	l := vm.Layout{Name: "qemu"}
	err := g.mon.do(ctx, func(c qmp.Monitor) error {
		regions, err := ramRegions(ctx, c)
		for i, r := range regions {
			g.blocks = append(g.blocks, block{id: r.Name, Block: procram.Block{Size: r.Size}})
			g.exact = append(g.exact, procram.Place{PA: r.PA, Block: i, Size: r.Size})
			l.Ranges = append(l.Ranges, mem.Range{Start: r.PA, Size: r.Size})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	g.layouts, g.known = []vm.Layout{l}, "told by QEMU's monitor"
	return g.in(l, true)
}

// Ranges lists the RAM.
func (m *monMem) Ranges() []mem.Range { return append([]mem.Range(nil), m.ranges...) }

// chunk bounds one pmemsave, during which QEMU does nothing else.
const chunk = 4 << 20

// ReadPhys asks QEMU for the bytes at pa.
func (m *monMem) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n < len(p) {
		at := pa + mem.PA(n)
		k := 0
		for _, r := range m.ranges {
			if at >= r.Start && at < r.End() {
				k = int(min(uint64(len(p)-n), uint64(r.End()-at), chunk))
			}
		}
		if k == 0 {
			return n, &mem.FaultError{Op: "read", Addr: uint64(at), Err: mem.ErrNoRAM}
		}
		if err := m.save(p[n:n+k], at); err != nil {
			return n, &mem.FaultError{Op: "read", Addr: uint64(at), Err: fmt.Errorf("%w: %w", mem.ErrUnreachable, err)}
		}
		n += k
	}
	return n, nil
}

func (m *monMem) save(p []byte, pa mem.PA) error {
	if m.file == nil {
		if err := m.create(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := m.g.mon.do(ctx, func(c qmp.Monitor) error {
		_, err := c.Run(ctx, "pmemsave", map[string]any{"val": uint64(pa), "size": len(p), "filename": m.file.Name()})
		return err
	})
	if err != nil {
		return err
	}
	_, err = m.file.ReadAt(p, 0)
	return err
}

// create makes a file in memory that QEMU's user may write and nobody else may
// find.
func (m *monMem) create() error {
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "vmscope-")
	if err != nil {
		return err
	}
	m.dir = dir
	f, err := os.OpenFile(filepath.Join(dir, rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	m.file = f
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", m.g.proc.PID), &st) != nil || int(st.Uid) == os.Geteuid() || st.Uid == 0 {
		return nil
	}
	// QEMU runs as another user, who must get to the file: it is made theirs,
	// or, if we may not do that, writable by who knows its name.
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		if err := f.Chmod(0o602); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o711)
}

// close removes the file that the bytes went through.
func (m *monMem) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file != nil {
		m.file.Close()
	}
	if m.dir != "" {
		os.RemoveAll(m.dir)
	}
	m.file, m.dir = nil, ""
}
