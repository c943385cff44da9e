package vmscope

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/vm/qemu"
	"vmscope/watch"
)

// WatchOptions change what Watch tells. The zero value tells everything that happens on all disks.
type WatchOptions struct {
	watch.Options
	// Disks are the names or ids of the disks to tap; none means all that can be written, also those that come later.
	Disks []string
	// DiskPaths leaves paths as they are on the disk. Else those of a file system that the guest has mounted begin where
	// it has, which is read from the guest's memory; where that cannot be read, paths stay as they are on the disk.
	DiskPaths bool
	// Tap changes how the writes are caught.
	Tap tap.Options
	// Started is told of the watch before the first event: watchpoints may be added and removed by it.
	Started func(*watch.Watch)
}

// Watch attaches to the disks of a running machine (a target as of Open) and calls f for each thing that happens in its
// file systems, as soon as it is committed to disk. The guest is neither changed nor stopped; it never waits for f. An
// event ATTACHED says from where on the events of a file system are complete.
//
// It returns when ctx ends, with its error, when f returns one, or when the guest or the disks are gone; the machine is
// then left as it was found, also if this program dies. Programs call tap.Helper first in main, or a program that hangs
// makes the guest's writes hang.
func Watch(ctx context.Context, target string, o WatchOptions, f func(event.Event) error) (err error) {
	machine, err := tapTarget(ctx, target)
	if err != nil {
		return err
	}
	t := &tapped{target: target, machine: machine, o: o, taps: map[*tap.Tap]bool{}}
	defer func() { err = errors.Join(err, t.close()) }()
	disks, err := t.attach(ctx)
	if err != nil {
		return err
	}
	if !o.DiskPaths && o.Mounted == nil {
		m := newMountPoints(ctx, func(ctx context.Context) (*Guest, error) { return Open(ctx, target) })
		o.Mounted = m.of
		defer m.close()
	}
	w, err := watch.New(disks, o.Options)
	if err != nil {
		return err
	}
	if o.Started != nil {
		o.Started(w)
	}
	if len(o.Disks) == 0 {
		defer t.follow(ctx, w)()
	}
	return w.Run(ctx, f)
}

// tapTarget turns a target as of Open into one of block/tap.
func tapTarget(ctx context.Context, target string) (string, error) {
	scheme, rest, ok := strings.Cut(target, ":")
	switch {
	case target == "":
		return "", fmt.Errorf("%w: it is empty; 'vmscope vms' lists the running VMs", ErrTarget)
	case ok && scheme == "qemu":
		return rest, nil
	case ok && scheme == "libvirt":
		p, err := qemu.FindDomain(ctx, rest)
		if err != nil {
			return "", err
		}
		return p.Target(), nil
	case ok && (scheme == "file" || schemeLike(scheme)):
		return "", fmt.Errorf("watch %s: %w: only the disks of a running QEMU are written to", target, errors.ErrUnsupported)
	}
	return target, diskless(target)
}

// mountPoints asks the guest's memory where file systems are mounted.
type mountPoints struct {
	ctx    context.Context
	cancel context.CancelFunc
	open   func(context.Context) (*Guest, error)
	same   func(*Guest) bool // whether the machine is still that one; nil: where it ends, so does who asks
	mu     sync.Mutex
	guest  *Guest
}

func newMountPoints(ctx context.Context, open func(context.Context) (*Guest, error)) *mountPoints {
	m := &mountPoints{open: open}
	m.ctx, m.cancel = context.WithCancel(ctx)
	return m
}

// of gives the shortest path at which the guest's first process sees the root of a file system; "" if it sees none. An error
// says that nobody can tell now: the guest boots, for instance.
func (m *mountPoints) of(_ string, fs *ext4.Super) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest != nil && m.same != nil && !m.same(m.guest) {
		m.guest.Close()
		m.guest = nil
	}
	if m.guest == nil {
		g, err := m.open(m.ctx)
		if err != nil {
			return "", err
		}
		m.guest = g
	}
	u := fs.UUID
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	best := ""
	err := m.guest.View(m.ctx, func(v *View) error {
		t, err := v.TaskByPID(1)
		if err != nil {
			return err
		}
		list, err := v.Mounts(t)
		for _, x := range list {
			if x.UUID == uuid && x.Root == "/" && (best == "" || len(x.Target) < len(best)) {
				best = string(x.Target)
			}
		}
		return err
	})
	if best != "" {
		err = nil // of the mounts that could be read
	}
	return best, err
}

func (m *mountPoints) close() {
	m.cancel() // a question that still waits ends
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest != nil {
		m.guest.Close()
	}
}

// Ended says whether an error of Watch is an end that is no failure: the guest ended, somebody asked for the disk, or it was unplugged.
func Ended(err error) bool {
	return errors.Is(err, tap.ErrGuestEnded) || errors.Is(err, tap.ErrDetached) || errors.Is(err, tap.ErrUnplugged) || errors.Is(err, io.EOF)
}
