package vmscope

import (
	"context"
	"time"

	"vmscope/block/nbd"
)

// readTimeout bounds a read from a server that does not answer.
const readTimeout = 30 * time.Second

func openNBD(ctx context.Context, uri string) ([]*Disk, error) {
	c, err := nbd.Dial(ctx, uri, nbd.Options{Timeout: readTimeout})
	if err != nil {
		return nil, err
	}
	return []*Disk{{Device: c, Name: "disk0", Format: "nbd", File: uri, ReadOnly: c.ReadOnly(), close: c.Close}}, nil
}
