package tap

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

// mirror attaches to a disk of a running QEMU: a mirror job that copies each of the guest's writes to us before it is
// completed (blockdev-mirror, sync=none, copy-mode=write-blocking), and a read-only export of the disk's content by
// QEMU's own NBD server. Everything that it makes in QEMU bears names that begin with prefix, so that what a killed
// predecessor left is found.
type mirror struct {
	Target string // PID of the machine
	Start  uint64 // its start time
	Node   string
	QDev   string
	Name   string // for messages
	Size   int64
	ID     string // of job, node and export: prefix and something random
	Dir    string // of the machine
	Raw    string // a path to the image, if it is raw and to be found; "" else
}

// Names of nodes have at most 31 characters.
const idPrefix = "vmscope-"

// newMirror names what is to be made.
func newMirror(p qemu.Process, d Disk, dir string) *mirror {
	key := d.QDev
	if key == "" {
		key = d.Node
	}
	sum := sha256.Sum256([]byte(key))
	raw := ""
	if d.Format == "raw" && strings.HasPrefix(d.File, "/") {
		raw = fmt.Sprintf("/proc/%d/root%s", p.PID, d.File)
	}
	return &mirror{
		Raw:    raw,
		Target: fmt.Sprint(p.PID), Start: p.Start(), Node: d.Node, QDev: d.QDev, Name: d.String(), Size: d.Size, Dir: dir,
		ID: idPrefix + hex.EncodeToString(sum[:4]) + "-" + strings.ToLower(rand.Text()[:6]),
	}
}

// prefix is that of all names of this disk.
func (m *mirror) prefix() string { return m.ID[:len(idPrefix)+9] }

// path is a file of this disk.
func (m *mirror) path(suffix string) string {
	return filepath.Join(m.Dir, strings.Trim(m.prefix()[len(idPrefix):], "-")+suffix)
}

// process finds the machine; ErrGuestEnded if it is not there any more.
func (m *mirror) process() (qemu.Process, error) {
	p, err := qemu.Find(m.Target)
	if err != nil && !errors.Is(err, qemu.ErrNoVM) {
		return p, err
	}
	if err != nil || p.Start() != m.Start {
		return p, fmt.Errorf("%s of machine %s: %w", m.Name, m.Target, ErrGuestEnded)
	}
	return p, nil
}

// monitor connects; it must be closed soon.
func (m *mirror) monitor(ctx context.Context) (qmp.Monitor, error) {
	p, err := m.process()
	if err != nil {
		return nil, err
	}
	mon, err := p.Monitor(ctx)
	if err != nil {
		if _, gone := m.process(); gone != nil {
			return nil, gone
		}
	}
	return mon, err
}

type args map[string]any

// attach makes the job. serve is given the connection by which the writes arrive, and must serve it at once, beside.
func (m *mirror) attach(ctx context.Context, serve func(net.Conn)) error {
	mon, err := m.monitor(ctx)
	if err != nil {
		return err
	}
	defer mon.Close()
	if err := m.sweep(ctx, mon, false); err != nil {
		return err
	}
	if err := m.addNode(ctx, mon, serve); err != nil {
		return err
	}
	_, err = mon.Run(ctx, "blockdev-mirror", args{
		"job-id": m.ID, "device": m.Node, "target": m.ID, "sync": "none", "copy-mode": "write-blocking",
	})
	if err != nil {
		mon.Run(ctx, "blockdev-del", args{"node-name": m.ID})
		return m.explain(err)
	}
	return nil
}

// addNode makes the node that is us. Our end is passed as a descriptor, so that no path has to be reachable for QEMU.
func (m *mirror) addNode(ctx context.Context, mon qmp.Monitor, serve func(net.Conn)) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	conn, err := fileConn(fds[0], "tap")
	theirs := os.NewFile(uintptr(fds[1]), "tap")
	defer theirs.Close()
	if err != nil {
		return err
	}
	server := args{"type": "fd", "str": m.ID}
	if err := mon.PassFile(ctx, m.ID, theirs); err != nil {
		// An old libvirt, for one: it passes no descriptors.
		conn.Close()
		path, done, perr := m.listen(serve)
		if perr != nil {
			return errors.Join(err, perr)
		}
		defer done()
		server = args{"type": "unix", "path": path}
	} else {
		theirs.Close()
		serve(conn)
	}
	_, err = mon.Run(ctx, "blockdev-add", args{"driver": "nbd", "node-name": m.ID, "server": server, "export": ""})
	return m.explain(err)
}

// listen waits for QEMU at a path that it may reach, for one connection.
func (m *mirror) listen(serve func(net.Conn)) (path string, done func(), err error) {
	path = m.path(".nbd")
	os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return "", nil, err
	}
	if err := m.forQEMU(path); err != nil {
		ln.Close()
		return "", nil, err
	}
	go func() {
		if conn, err := ln.Accept(); err == nil {
			serve(conn)
		}
	}()
	return path, func() { ln.Close(); os.Remove(path) }, nil
}

// forQEMU gives a socket to the user that QEMU runs as.
func (m *mirror) forQEMU(path string) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+m.Target, &st); err != nil || int(st.Uid) == os.Geteuid() {
		return err
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}

// explain adds to QEMU's refusal what a user should know.
func (m *mirror) explain(err error) error {
	var e *qmp.Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case strings.Contains(e.Desc, "in use") || strings.Contains(e.Desc, "is busy") || strings.Contains(e.Desc, "blocked"):
		return fmt.Errorf("%s: %w by another job of this QEMU (backup, block copy, migration?): %w", m.Name, ErrInUse, err)
	case strings.Contains(e.Desc, "Cannot find device") || strings.Contains(e.Desc, "Failed to find node"):
		return fmt.Errorf("%s: %w: %w", m.Name, ErrNoDisk, err)
	}
	return fmt.Errorf("%s: %w", m.Name, err)
}

// sweep removes what predecessors left, the export too if all is set. An export that bears our own ID stays otherwise: its
// readers are connected.
func (m *mirror) sweep(ctx context.Context, mon qmp.Monitor, all bool) error {
	if err := m.cancel(ctx, mon); err != nil {
		return err
	}
	var nodes []struct {
		Node string `json:"node-name"`
	}
	if err := qmp.Query(ctx, mon, "query-named-block-nodes", args{"flat": true}, &nodes); err != nil {
		return err
	}
	var errs error
	for _, n := range nodes {
		if strings.HasPrefix(n.Node, m.prefix()) {
			_, err := mon.Run(ctx, "blockdev-del", args{"node-name": n.Node})
			errs = errors.Join(errs, err)
		}
	}
	return errors.Join(errs, m.sweepExports(ctx, mon, all))
}

// cancel ends jobs with our names and waits for their end.
func (m *mirror) cancel(ctx context.Context, mon qmp.Monitor) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var jobs []struct {
			Device string `json:"device"` // the job's id
		}
		if err := qmp.Query(ctx, mon, "query-block-jobs", nil, &jobs); err != nil {
			return err
		}
		n := 0
		for _, j := range jobs {
			if !strings.HasPrefix(j.Device, m.prefix()) {
				continue
			}
			n++
			if wait == time.Millisecond {
				mon.Run(ctx, "block-job-cancel", args{"device": j.Device, "force": true}) // it may have just ended
			}
		}
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: the mirror job does not end: %w", m.Name, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// attached reports whether the job is there.
func (m *mirror) attached(ctx context.Context) (bool, error) {
	mon, err := m.monitor(ctx)
	if err != nil {
		return false, err
	}
	defer mon.Close()
	var jobs []struct {
		Device string `json:"device"`
	}
	err = qmp.Query(ctx, mon, "query-block-jobs", nil, &jobs)
	for _, j := range jobs {
		if j.Device == m.ID {
			return true, err
		}
	}
	return false, err
}

// detach removes all that is ours from QEMU.
func (m *mirror) detach(ctx context.Context) error {
	mon, err := m.monitor(ctx)
	if errors.Is(err, ErrGuestEnded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer mon.Close()
	return m.sweep(ctx, mon, true)
}
