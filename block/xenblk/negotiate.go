package xenblk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"vmscope/block"
	"vmscope/internal/xenbus"
)

// Bounds of what a front end may ask for.
const (
	maxRingOrder = 4
	maxRingPages = 1 << maxRingOrder
)

// ringKeys are where a ring is.
type ringKeys struct {
	refs []uint32 // grants of its pages
	port uint32   // its event channel
}

// frontKeys are what a front end wrote for us when it was ready to be connected.
type frontKeys struct {
	layout     layout
	persistent bool
	rings      []ringKeys
}

// reader is what xenbus.Client and Tx can read by.
type reader interface {
	Read(ctx context.Context, path string) (string, error)
}

// number reads one; absent gives what stands for none.
func number(ctx context.Context, x reader, path string, absent uint32) (uint32, error) {
	text, err := x.Read(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %.40q is no number", path, text)
	}
	return uint32(n), nil
}

// needed is number of what must be there.
func needed(ctx context.Context, x reader, path string) (uint32, error) {
	if _, err := x.Read(ctx, path); err != nil {
		return 0, err
	}
	return number(ctx, x, path, 0)
}

// readFront reads what the front end wrote at path. All of it is the guest's word.
func readFront(ctx context.Context, x reader, path string) (k frontKeys, err error) {
	name, err := x.Read(ctx, path+"/protocol")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k.layout, err = layoutOf(name); err != nil {
		return k, err
	}
	persistent, err := number(ctx, x, path+"/feature-persistent", 0)
	if err != nil {
		return k, err
	}
	k.persistent = persistent != 0
	queues, err := number(ctx, x, path+"/multi-queue-num-queues", 1)
	if err != nil {
		return k, err
	}
	if queues < 1 || queues > maxQueues {
		return k, fmt.Errorf("%d queues", queues)
	}
	const none = ^uint32(0)
	order, err := number(ctx, x, path+"/ring-page-order", none)
	if err != nil {
		return k, err
	}
	if order != none && order > maxRingOrder {
		return k, fmt.Errorf("rings of 2^%d pages", order)
	}
	for i := range queues {
		dir := path
		if queues > 1 {
			dir = fmt.Sprintf("%s/queue-%d", path, i)
		}
		var r ringKeys
		if r.port, err = needed(ctx, x, dir+"/event-channel"); err != nil {
			return k, err
		}
		if order == none {
			ref, err := needed(ctx, x, dir+"/ring-ref")
			if err != nil {
				return k, err
			}
			r.refs = []uint32{ref}
		} else {
			for p := range 1 << order {
				ref, err := needed(ctx, x, fmt.Sprintf("%s/ring-ref%d", dir, p))
				if err != nil {
					return k, err
				}
				r.refs = append(r.refs, ref)
			}
		}
		k.rings = append(k.rings, r)
	}
	return k, nil
}

// pair is a value below the back end's path.
type pair struct {
	name  string
	value int64
}

func writeAll(ctx context.Context, store *xenbus.Client, path string, list []pair) error {
	return store.Transaction(ctx, func(t *xenbus.Tx) error {
		// Where the path is gone by now, it must not come into being again.
		if _, err := t.Read(ctx, path+"/frontend"); err != nil {
			return err
		}
		for _, p := range list {
			if err := t.Write(ctx, path+"/"+p.name, strconv.FormatInt(p.value, 10)); err != nil {
				return err
			}
		}
		return nil
	})
}

// offers are what a front end wants to know before it makes its rings, and the mark that tells the toolstack's script that
// we are here.
func (s *Server) offers() []pair {
	return []pair{
		{"vmscope", int64(os.Getpid())},
		{"max-ring-page-order", maxRingOrder}, {"multi-queue-max-queues", int64(s.opts.Queues)},
		{"feature-max-indirect-segments", maxIndirect},
	}
}

// infoReadOnly is a bit of "info".
const infoReadOnly = 4

// features are what it wants to know before it uses the disk.
func (s *Server) features(discard, readOnly bool) []pair {
	list := []pair{
		{"sectors", s.size / sector}, {"sector-size", sector}, {"physical-sector-size", sector}, {"info", 0},
		{"feature-flush-cache", 1}, {"feature-barrier", 0}, {"feature-persistent", 1},
	}
	if readOnly {
		list[3].value = infoReadOnly
		list[4].value = 0
	}
	if s.opts.NoPersistent {
		list[6].value = 0
	}
	if _, ok := s.disk.(block.Discarder); ok && discard && !readOnly {
		// In units that file systems can free.
		list = append(list, pair{"discard-granularity", pageSize}, pair{"discard-alignment", 0}, pair{"discard-secure", 0},
			pair{"feature-discard", 1})
	} else {
		list = append(list, pair{"feature-discard", 0})
	}
	return list
}
