package tap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmscope/vm/qemu"
)

// A receiver listens at a socket of its disk for those who need the disk for a while: a management tool that is to make a
// snapshot, which QEMU refuses as long as a mirror job is there.

// offer listens. Whoever says "detach" is answered by the end of the connection, when the receiver has left: when the
// result is called.
func (m *mirror) offer(leave func(error)) (done func(), err error) {
	path := m.path(".ctl")
	os.Remove(path) // a predecessor's: the disk's lock is ours
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	left := make(chan struct{})
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && strings.TrimSpace(line) == "detach" {
					leave(fmt.Errorf("%s: %w", m.Name, ErrDetached))
					<-left
				}
			}()
		}
	}()
	return func() { ln.Close(); close(left) }, nil
}

// Detach makes the taps of a machine's disk (as Attach's name; "" for all disks) leave it, and waits until they have: for
// who wants to do with it what QEMU refuses as long as a job has it (snapshots, resizing), or migrate. Their streams end
// with ErrDetached. It gives the number of taps that left; those of other users are not reached.
func Detach(ctx context.Context, target, name string) (int, error) {
	p, err := qemu.Find(target)
	if err != nil {
		return 0, err
	}
	dir, err := guestDir(p)
	if err != nil {
		return 0, err
	}
	pattern := filepath.Join(dir, "*.ctl")
	if name != "" {
		all, err := Disks(ctx, target)
		if err != nil {
			return 0, err
		}
		d, err := choose(all, name)
		if err != nil {
			return 0, err
		}
		pattern = newMirror(p, d, dir).path(".ctl")
	}
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return 0, err
	}
	n := 0
	var errs error
	for _, path := range paths {
		err := askDetach(ctx, path)
		if err == nil {
			n++
		} else if !errors.Is(err, os.ErrNotExist) && !refused(err) {
			errs = errors.Join(errs, err)
		}
	}
	if n == 0 && errs == nil && os.Geteuid() != 0 {
		// Root's sockets cannot be seen from here, but that there are some.
		if _, err := os.Lstat(filepath.Join(rootBase, filepath.Base(dir))); err == nil {
			return 0, fmt.Errorf("%v: root watches it, or did: run as root (%w)", p, os.ErrPermission)
		}
	}
	return n, errs
}

func askDetach(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		conn.SetDeadline(t)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintln(conn, "detach"); err != nil {
		return err
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}
