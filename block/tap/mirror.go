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
	"slices"
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
	Target string // of the machine, with its PID (qemu.Process.Target)
	PID    int
	Start  uint64 // its start time
	Node   string
	QDev   string
	Name   string // for messages
	Size   int64
	ID     string // of job, node and export: prefix and something random
	Dir    string // of the machine
	Raw    string // a path to the image, if it is raw and to be found; "" else
	// Threaded: an iothread serves the disk.
	Threaded bool
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
	if d.plain {
		raw = imageOf(p.PID, d.File)
	}
	return &mirror{
		Raw: raw, Threaded: d.threaded,
		Target: p.Target(), PID: p.PID, Start: p.Start(), Node: d.Node, QDev: d.QDev, Name: d.String(), Size: d.Size, Dir: dir,
		ID: idPrefix + hex.EncodeToString(sum[:4]) + "-" + strings.ToLower(rand.Text()[:6]),
	}
}

// imageOf gives a path that leads to the image that a process has open as file; "" if it has not.
func imageOf(pid int, file string) string {
	path := fmt.Sprintf("/proc/%d/root%s", pid, file)
	want, err := os.Stat(path)
	if err != nil {
		return ""
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range fds {
		if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && os.SameFile(st, want) {
			return path
		}
	}
	return ""
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
		return p, fmt.Errorf("%s of machine %d: %w", m.Name, m.PID, ErrGuestEnded)
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

// attach makes the job, unless it is there already: then QEMU connects to the socket again by itself. again says so. serve
// is given a connection by which writes arrive beside those to the socket, and must serve it at once.
func (m *mirror) attach(ctx context.Context, serve func(net.Conn)) (again bool, err error) {
	mon, err := m.monitor(ctx)
	if err != nil {
		return false, err
	}
	defer mon.Close()
	if there, err := m.job(ctx, mon); there || err != nil {
		return there, err
	}
	if err := m.sweep(ctx, mon, false); err != nil {
		return false, err
	}
	if err := m.addNode(ctx, mon, serve); err != nil {
		return false, err
	}
	_, err = mon.Run(ctx, "blockdev-mirror", args{
		"job-id": m.ID, "device": m.Node, "target": m.ID, "sync": "none", "copy-mode": "write-blocking",
	})
	if err != nil {
		mon.Run(ctx, "blockdev-del", args{"node-name": m.ID})
	}
	return false, m.explain(err)
}

// addNode makes the node that is us.
//
// QEMU connects to a socket by its path, so that it can connect again when a receiver was killed: it tries for a second,
// and what was not answered is sent anew. That the job does not just fail is worth it: QEMU (7.2 to 10 at least) frees
// the job's bitmap of writes in flight as soon as it fails, and clears bits in it when they end. Where QEMU cannot reach
// the path, it is passed a connection.
func (m *mirror) addNode(ctx context.Context, mon qmp.Monitor, serve func(net.Conn)) error {
	node := args{"driver": "nbd", "node-name": m.ID, "export": "", "reconnect-delay": 1}
	node["server"] = args{"type": "unix", "path": m.socket()}
	_, err := mon.Run(ctx, "blockdev-add", node)
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		return err
	}
	fds, serr := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if serr != nil {
		return fmt.Errorf("socket pair: %w", serr)
	}
	theirs := os.NewFile(uintptr(fds[1]), "tap")
	defer theirs.Close()
	conn, serr := fileConn(fds[0], "tap")
	if serr != nil {
		return serr
	}
	if perr := mon.PassFile(ctx, m.ID, theirs); perr != nil {
		conn.Close()
		return m.explain(err)
	}
	theirs.Close()
	serve(conn)
	delete(node, "reconnect-delay")
	node["server"] = args{"type": "fd", "str": m.ID}
	_, err = mon.Run(ctx, "blockdev-add", node)
	return m.explain(err)
}

// socket is where QEMU connects to the receiver.
func (m *mirror) socket() string { return m.path(".nbd") }

// listen makes the socket. Its file is removed by who ends the tap.
func (m *mirror) listen() (*os.File, error) {
	path := m.socket()
	os.Remove(path) // a predecessor's: the disk's lock is ours
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if err := m.forQEMU(path); err != nil {
		return nil, err
	}
	return ln.File()
}

// forQEMU gives a socket to the user that QEMU runs as. Where we may not do that, QEMU is passed a connection.
func (m *mirror) forQEMU(path string) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", m.PID), &st) == nil && int(st.Uid) != os.Geteuid() {
		os.Chown(path, int(st.Uid), int(st.Gid))
	}
	return nil
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

// jobs lists the jobs with our names.
func (m *mirror) jobs(ctx context.Context, mon qmp.Monitor) ([]string, error) {
	var all []struct {
		Device string `json:"device"` // the job's id
	}
	err := qmp.Query(ctx, mon, "query-block-jobs", nil, &all)
	var out []string
	for _, j := range all {
		if strings.HasPrefix(j.Device, m.prefix()) {
			out = append(out, j.Device)
		}
	}
	return out, err
}

// job reports whether our own is there.
func (m *mirror) job(ctx context.Context, mon qmp.Monitor) (bool, error) {
	ids, err := m.jobs(ctx, mon)
	return slices.Contains(ids, m.ID), err
}

// forceAfter is how long a job may take to end in order: it waits for what the guest writes just then.
const forceAfter = 3 * time.Second

// cancel ends jobs with our names and waits for their end. Without force such a job waits until no write is in flight
// before it ends; with it, or when it fails, it does not (see addNode).
func (m *mirror) cancel(ctx context.Context, mon qmp.Monitor) error {
	began := time.Now()
	forced := false
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		ids, err := m.jobs(ctx, mon)
		if err != nil || len(ids) == 0 {
			return err
		}
		force := time.Since(began) > forceAfter
		if wait == time.Millisecond || force && !forced {
			for _, id := range ids {
				mon.Run(ctx, "block-job-cancel", args{"device": id, "force": force}) // it may have just ended
			}
			forced = force
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: the mirror job does not end: %w", m.Name, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// attached reports whether the job is there; ErrUnplugged if the disk is not.
func (m *mirror) attached(ctx context.Context) (bool, error) {
	mon, err := m.monitor(ctx)
	if err != nil {
		return false, err
	}
	defer mon.Close()
	if err := m.plugged(ctx, mon); err != nil {
		return false, err
	}
	return m.job(ctx, mon)
}

// plugged gives ErrUnplugged if the machine's device is gone, or has another node: QEMU ends the job for that only where the
// disk is an old -drive, and the node of a -blockdev cannot be removed as long as the job has it.
func (m *mirror) plugged(ctx context.Context, mon qmp.Monitor) error {
	if m.QDev == "" {
		return nil // nor had it one
	}
	var all []blockInfo
	if err := qmp.Query(ctx, mon, "query-block", nil, &all); err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(b blockInfo) bool { return b.QDev == m.QDev && b.Inserted != nil && b.Inserted.Node == m.Node }) {
		return fmt.Errorf("%s: %w", m.Name, ErrUnplugged)
	}
	return nil
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
