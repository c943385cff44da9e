package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/qmp"
)

// roSocket is where QEMU's NBD server listens if we started it.
func (m *mirror) roSocket() string { return filepath.Join(m.Dir, "ro.sock") }

// serverLock keeps the taps of a machine's disks from each other's way while they start and stop QEMU's NBD server: there
// is only one.
func (m *mirror) serverLock() (*os.File, error) {
	return lock(filepath.Join(m.Dir, "server.lock"), true)
}

// export makes the read-only export of the disk, and gives the socket that leads to it.
func (m *mirror) export(ctx context.Context) (socket string, err error) {
	l, err := m.serverLock()
	if err != nil {
		return "", err
	}
	defer l.Close()
	mon, err := m.monitor(ctx)
	if err != nil {
		return "", err
	}
	defer mon.Close()
	if err := m.exportable(ctx, mon); err != nil {
		return "", err
	}
	exports, err := listExports(ctx, mon)
	if err != nil {
		return "", err
	}
	there := false
	for _, e := range exports {
		there = there || e.ID == m.ID
	}
	if err := m.startServer(ctx, mon); err != nil {
		return "", err
	}
	if !there {
		if _, err := mon.Run(ctx, "block-export-add", args{"type": "nbd", "id": m.ID, "node-name": m.Node, "name": m.ID, "writable": false}); err != nil {
			return "", fmt.Errorf("export %s: %w", m.Name, err)
		}
	}
	if !serves(ctx, m.roSocket()) {
		mon.Run(ctx, "block-export-del", args{"id": m.ID, "mode": "hard"})
		return "", fmt.Errorf("export %s: this QEMU runs an NBD server already, which somebody else started", m.Name)
	}
	return m.roSocket(), nil
}

// exportable reports whether QEMU can export the disk without harm. Before version 9 the end of a connection to an export
// of a disk that an iothread serves is handled in that thread, where it is not expected: QEMU 7.2.22 ends with an assertion
// (nbd_blockdev_client_closed, blockdev-nbd.c), and the guest with it.
func (m *mirror) exportable(ctx context.Context, mon qmp.Monitor) error {
	if !m.Threaded {
		return nil
	}
	var v struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
		} `json:"qemu"`
	}
	if err := qmp.Query(ctx, mon, "query-version", nil, &v); err != nil {
		return err
	}
	if v.QEMU.Major < 9 {
		return fmt.Errorf("%s: it is served by an iothread and is no raw image: QEMU %d.%d cannot export it without risk to the guest, version 9 can: %w",
			m.Name, v.QEMU.Major, v.QEMU.Minor, errors.ErrUnsupported)
	}
	return nil
}

// startServer starts QEMU's NBD server unless it runs. The socket is made here and passed, so that QEMU needs no
// directory to write to.
func (m *mirror) startServer(ctx context.Context, mon qmp.Monitor) error {
	path := m.roSocket()
	if serves(ctx, path) {
		return nil
	}
	os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	addr := args{"type": "fd", "data": args{"str": m.ID + "-ro"}}
	f, err := ln.File()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := mon.PassFile(ctx, m.ID+"-ro", f); err != nil {
		ln.Close()
		os.Remove(path)
		// QEMU makes the socket itself, in a directory that is its own.
		dir := filepath.Dir(path)
		if cerr := m.openDir(dir); cerr != nil {
			return errors.Join(err, cerr)
		}
		addr = args{"type": "unix", "data": args{"path": path}}
	}
	_, err = mon.Run(ctx, "nbd-server-start", args{"addr": addr})
	var refused *qmp.Error
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "already running") {
		mon.Run(ctx, "closefd", map[string]string{"fdname": m.ID + "-ro"})
		os.Remove(path)
		return nil
	}
	return err
}

// openDir lets QEMU's user make a socket in a machine's directory.
func (m *mirror) openDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", m.PID), &st); err != nil || int(st.Uid) == os.Geteuid() {
		return err
	}
	if err := os.Chown(dir, -1, int(st.Gid)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o771)
}

// export of QEMU's.
type exportInfo struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Down bool   `json:"shutting-down"`
}

func listExports(ctx context.Context, mon qmp.Monitor) ([]exportInfo, error) {
	var out []exportInfo
	err := qmp.Query(ctx, mon, "query-block-exports", nil, &out)
	return out, err
}

// sweepExports removes the exports of this disk, but for our own unless all is set; the server too, then, if nobody uses it
// any more.
func (m *mirror) sweepExports(ctx context.Context, mon qmp.Monitor, all bool) error {
	return m.dropExports(ctx, mon, all, func(id string) bool {
		return strings.HasPrefix(id, m.prefix()) && (all || id != m.ID)
	})
}

// dropExports removes exports, and waits until they are gone. stop: the server too, if it is ours and nobody uses it any more.
func (m *mirror) dropExports(ctx context.Context, mon qmp.Monitor, stop bool, which func(id string) bool) error {
	l, err := m.serverLock()
	if err != nil {
		return err
	}
	defer l.Close()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		list, err := listExports(ctx, mon)
		if err != nil {
			return err
		}
		left, others := 0, 0
		for _, e := range list {
			if !which(e.ID) {
				if e.Type == "nbd" {
					others++
				}
				continue
			}
			left++
			if !e.Down {
				mon.Run(ctx, "block-export-del", args{"id": e.ID, "mode": "hard"})
			}
		}
		switch {
		case left == 0 && others == 0 && stop:
			return m.stopServer(ctx, mon)
		case left == 0:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("an export that is removed does not end: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (m *mirror) stopServer(ctx context.Context, mon qmp.Monitor) error {
	path := m.roSocket()
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	var err error
	if serves(ctx, path) { // else it is no server any more, or not ours
		_, err = mon.Run(ctx, "nbd-server-stop", nil)
	}
	os.Remove(path)
	return err
}

// serves reports whether somebody answers as an NBD server at path. It takes its leave as the protocol has it, so that
// QEMU does not complain.
func serves(ctx context.Context, path string) bool {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	hello := make([]byte, 18)
	if _, err := io.ReadFull(conn, hello); err != nil || string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		return false
	}
	// Flags (fixed newstyle), then the option ABORT without data; its answer is of no interest.
	if _, err := conn.Write([]byte("\x00\x00\x00\x01IHAVEOPT\x00\x00\x00\x02\x00\x00\x00\x00")); err == nil {
		io.ReadFull(conn, make([]byte, 20))
	}
	return true
}
