package vmscope

import (
	"context"
	"fmt"

	"vmscope/block/tap"
	"vmscope/block/vhostuser"
	"vmscope/fsinfer/ext4"
)

// OpenServed opens the guest whose disk a tap serves by vhost-user (tap.Serve, tap.Connect): its VMM shares the guest's memory
// for that, so that no other access to it is needed. It is an error as long as no VMM is connected, and of the class
// errors.ErrUnsupported by other protocols. A machine that is started anew is another guest.
func OpenServed(ctx context.Context, t *tap.Tap, opts ...Option) (*Guest, error) {
	list, err := t.Regions(ctx)
	if err != nil {
		return nil, err
	}
	var o options
	for _, f := range opts {
		f(&o)
	}
	files, err := o.files(ctx)
	if err != nil {
		for _, r := range list {
			r.File.Close()
		}
		return nil, err
	}
	m, err := vhostuser.OpenMemory(list)
	if err != nil {
		return nil, err
	}
	return &Guest{target: fmt.Sprintf("the guest of %s", t.Disk().Name), machine: m, opt: o, files: files}, nil
}

// MountedServed tells where the guest whose disk a tap serves by vhost-user has file systems mounted, for watch.Options.Mounted.
// It asks the memory of whatever machine is connected. stop gives back what that takes.
func MountedServed(ctx context.Context, t *tap.Tap) (of func(volume string, fs *ext4.Super) (string, error), stop func()) {
	m := newMountPoints(ctx, func(ctx context.Context) (*Guest, error) { return OpenServed(ctx, t) })
	m.same = func(g *Guest) bool {
		list, err := t.Regions(m.ctx)
		same := err == nil && g.machine.(*vhostuser.Memory).Is(list)
		for _, r := range list {
			r.File.Close()
		}
		return same
	}
	return m.of, m.close
}
