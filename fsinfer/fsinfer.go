// Package fsinfer holds what the readers of file systems share: they turn the writes that reach a disk into what
// happened to files. One package below this one knows one family of file systems.
package fsinfer

import (
	"context"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// Inferencer follows one file system. It is not safe for concurrent use.
type Inferencer interface {
	// Apply takes the next write of the volume and gives the events that it completes, in an order in which each is
	// possible. Events carry neither Seq nor Disk nor FS. An error tells of a file system that contradicts itself
	// (mem.ErrInconsistent) or of a device that could not be read; the model then goes on with what it has.
	Apply(w block.Write) ([]event.Event, error)
}

// Batcher is an Inferencer without a journal: it holds changes until the disk is flushed or quiet.
type Batcher interface {
	// Quiet is called when no write has come for a while; it gives the events that wait.
	Quiet(now time.Time) ([]event.Event, error)
}

// Crawler is an Inferencer that knows its tree better once it has seen all of it.
type Crawler interface {
	// Crawl does about n more inodes' worth of work and says how far it is.
	Crawl(ctx context.Context, n int) (done, total uint64, err error)
}
