package tap

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"vmscope/block"
)

// others are the disks beside the receiver's own that volumes with journals lie on: what transactions overwrite there is read
// by the receiver that sees the transaction. It is safe for concurrent use.
type others struct {
	mu   sync.Mutex
	at   map[int]Content // by the number of the disk
	conn map[int]base
}

// know takes over how to reach them. Connections that still lead there stay.
func (o *others) know(journals []Journal) {
	at := map[int]Content{}
	for _, j := range journals {
		maps.Copy(at, j.Others)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for disk, c := range o.conn {
		if at[disk] != o.at[disk] {
			c.Close()
			delete(o.conn, disk)
		}
	}
	o.at = at
}

// connect gives the connection to a disk, made if there is none.
func (o *others) connect(ctx context.Context, disk int) (base, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.conn[disk]; c != nil {
		return c, nil
	}
	at, ok := o.at[disk]
	if !ok {
		return nil, fmt.Errorf("disk %d: %w", disk, block.ErrNoDisk)
	}
	c, err := dialBase(ctx, at)
	if err != nil {
		return nil, err
	}
	if o.conn == nil {
		o.conn = map[int]base{}
	}
	o.conn[disk] = c
	return c, nil
}

// reach connects to them: the first transaction is not to wait for that. What fails is tried again then.
func (o *others) reach() {
	ctx, cancel := context.WithTimeout(context.Background(), 4*capturePatience)
	defer cancel()
	o.mu.Lock()
	disks := slices.Collect(maps.Keys(o.at))
	o.mu.Unlock()
	for _, disk := range disks {
		o.connect(ctx, disk)
	}
}

// read reads what a disk holds now.
func (o *others) read(ctx context.Context, disk int, p []byte, off int64) error {
	c, err := o.connect(ctx, disk)
	if err != nil {
		return err
	}
	if err = readBase(ctx, c, p, off); err != nil && ctx.Err() == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.conn[disk] == c {
			delete(o.conn, disk)
			c.Close()
		}
	}
	return err
}

func (o *others) close() { o.know(nil) }
