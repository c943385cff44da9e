package tap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

// Look is the present content of a running machine's disk, as the guest sees it. Nothing is attached to the disk: what the
// guest writes meanwhile shows in later reads.
type Look struct {
	block.Device
	Disk Disk

	m     *mirror // made an export; nil if none was needed
	close func() error
}

// lookPrefix is that of exports made for a look; behind it comes our PID, so that what a killed process left is known as
// such. It is no disk's prefix, which is hexadecimal.
const lookPrefix = idPrefix + "look-"

// LookAt opens the content of a machine's disks, all of them in the order of Disks; reads of one that could not be opened
// fail with the reason. A raw image is read where it lies, and QEMU is asked for nothing more than where that is; of all
// else QEMU makes a read-only export, which Close removes. Exports that a killed process left are removed too.
func LookAt(ctx context.Context, target string) ([]*Look, error) {
	p, err := qemu.Find(target)
	if err != nil {
		return nil, err
	}
	list, err := lookAt(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	return list, nil
}

func lookAt(ctx context.Context, p qemu.Process) ([]*Look, error) {
	mon, err := p.Monitor(ctx)
	if err != nil {
		return nil, err
	}
	all, err := disks(ctx, mon)
	if err == nil {
		err = sweepLooks(ctx, mon, p)
	}
	mon.Close()
	if err != nil {
		return nil, err
	}
	var out []*Look
	var errs error
	failed := 0
	for _, d := range all {
		l, err := look(ctx, p, d)
		if err != nil {
			errs = errors.Join(errs, err)
			failed++
			l = &Look{Device: unread{d.Size, err}, Disk: d}
		}
		out = append(out, l)
	}
	if failed > 0 && (failed == len(all) || ctx.Err() != nil) {
		for _, l := range out {
			errs = errors.Join(errs, l.Close())
		}
		return nil, errs
	}
	return out, nil
}

// unread is a disk that could not be opened, beside others that could: the reason is the error of each read.
type unread struct {
	size int64
	err  error
}

func (u unread) Size() int64 { return u.size }

func (u unread) ReadAt([]byte, int64) (int, error) { return 0, u.err }

// look opens one disk.
func look(ctx context.Context, p qemu.Process, d Disk) (*Look, error) {
	m := newMirror(p, d, "")
	if m.Raw != "" {
		// QEMU keeps nothing of a raw image to itself: what the guest has written is in the host's page cache, or on the disk.
		// An image that is larger or smaller is seen through an offset, or is being resized.
		if f, err := block.OpenFile(m.Raw); err == nil {
			if f.Size() == d.Size {
				return &Look{Device: f, Disk: d, close: f.Close}, nil
			}
			f.Close()
		}
	}
	dir, err := makeGuestDir(p)
	if err != nil {
		return nil, err
	}
	m.Dir = dir
	m.ID = lookPrefix + strconv.FormatInt(int64(os.Getpid()), 16) + "-" + strings.ToLower(rand.Text()[:6])
	l := &Look{Disk: d, m: m}
	socket, err := m.export(ctx)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	b, err := nbd.DialAddress(ctx, nbd.Address{Network: "unix", Addr: socket, Export: m.ID}, nbd.Options{Timeout: lookTimeout})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.Device, l.close = b, b.Close
	return l, nil
}

// lookTimeout bounds a read: a QEMU that hangs is an error, not a wait without end.
const lookTimeout = 30 * time.Second

// leaveTime bounds how long Close waits for QEMU.
const leaveTime = 5 * time.Second

// Close removes what was made in QEMU.
func (l *Look) Close() error {
	var err error
	if l.close != nil {
		err = l.close()
		l.close = nil
	}
	if l.m == nil {
		return err
	}
	m := l.m
	l.m = nil
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	mon, merr := m.monitor(ctx)
	if errors.Is(merr, ErrGuestEnded) {
		return err
	}
	if merr != nil {
		return errors.Join(err, merr)
	}
	defer mon.Close()
	return errors.Join(err, m.dropExports(ctx, mon, true, func(id string) bool { return id == m.ID }))
}

// sweepLooks removes what looks left whose process is gone.
func sweepLooks(ctx context.Context, mon qmp.Monitor, p qemu.Process) error {
	list, err := listExports(ctx, mon)
	if err != nil {
		return nil // an old QEMU has none
	}
	dead := func(id string) bool {
		rest, ours := strings.CutPrefix(id, lookPrefix)
		pid, _, _ := strings.Cut(rest, "-")
		n, err := strconv.ParseInt(pid, 16, 32)
		return ours && err == nil && n > 0 && unix.Kill(int(n), 0) == unix.ESRCH
	}
	found := false
	for _, e := range list {
		found = found || dead(e.ID)
	}
	if !found {
		return nil
	}
	dir, err := makeGuestDir(p)
	if err != nil {
		return err
	}
	m := &mirror{Target: p.Target(), PID: p.PID, Start: p.Start(), Dir: dir}
	return m.dropExports(ctx, mon, true, dead)
}
