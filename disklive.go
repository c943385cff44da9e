package vmscope

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmscope/block/tap"
	"vmscope/vm"
)

func openMachineDisks(ctx context.Context, target string, o options) ([]*Disk, error) {
	leave := func() error { return nil }
	if o.paused {
		var err error
		if leave, err = pause(ctx, target, o); err != nil {
			return nil, err
		}
	}
	looks, err := tap.LookAt(ctx, target)
	if err != nil || len(looks) == 0 {
		return nil, errors.Join(err, leave())
	}
	var all []*Disk
	var mu sync.Mutex
	open := len(looks)
	for _, l := range looks {
		d := l.Disk
		all = append(all, &Disk{Device: l, Name: d.Name, ID: d.ID, Format: d.Format, File: d.File, ReadOnly: d.ReadOnly, machine: target, close: func() error {
			err := l.Close()
			mu.Lock()
			defer mu.Unlock()
			if open--; open == 0 {
				err = errors.Join(err, leave())
			}
			return err
		}})
	}
	return all, nil
}

// pause makes a machine stand still until leave is called, or this process ends.
func pause(ctx context.Context, target string, o options) (leave func() error, err error) {
	m, err := openQEMU(ctx, target, o)
	if err != nil {
		return nil, err
	}
	p, ok := m.(vm.Pauser)
	if !ok {
		return nil, errors.Join(fmt.Errorf("pause %q: %w", target, errors.ErrUnsupported), m.Close())
	}
	if err := p.Pause(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return func() error {
		// Not ctx: the guest must run again even after Ctrl-C.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return errors.Join(p.Resume(rctx), m.Close())
	}, nil
}
