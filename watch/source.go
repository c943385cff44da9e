package watch

import (
	"context"
	"errors"
	"io"
	"iter"

	"vmscope/block"
)

// FromTap makes a Source of any tap: a recorded log, or one that another program feeds. It ends with ctx, or with io.EOF.
func FromTap(ctx context.Context, t block.Tap) Source {
	next, stop := iter.Pull2(t.Writes(ctx))
	return &pulled{device: t.Device(), next: next, stop: stop}
}

// pulled gives the writes of a tap one by one. It waits for a write as long as that takes.
type pulled struct {
	device block.Device
	next   func() (block.Write, error, bool)
	stop   func()
}

func (p *pulled) Device() block.Device { return p.device }

func (p *pulled) Next(ctx context.Context) (block.Write, error) {
	if err := ctx.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return block.Write{}, err
	}
	w, err, ok := p.next()
	if !ok {
		p.stop()
		return block.Write{}, io.EOF
	}
	return w, err
}
