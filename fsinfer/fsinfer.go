// Package fsinfer holds what the readers of file systems share: they turn the writes that reach a disk into what
// happened to files. One package below this one knows one family of file systems.
package fsinfer

import (
	"context"
	"errors"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// ErrUntold is in an error of Apply where something happened that no event could tell: the name of a file was not found, or a
// path has no end. The tree that the events give is not the guest's then.
var ErrUntold = errors.New("what happened cannot be told")

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

// Looker is an Inferencer that shows the tree as the events so far have told it.
type Looker interface {
	// Look begins to read the tree. What it gives is void with the next call of Apply or Quiet.
	Look() Look
}

// Look reads a tree at one moment. It is not safe for concurrent use.
type Look interface {
	// Names visits the names in a directory, but "." and "..", in no order, until visit returns false. A name may lead to
	// nothing where the file system contradicts itself.
	Names(dir uint64, visit func(name string, inode uint64) bool) error
	// File tells of an inode. A File beside an error is what could be read of it; without a Kind it is nothing that a name may
	// lead to.
	File(inode uint64) (File, error)
}

// File is an inode, as far as events tell of it, and what shows that it changed.
type File struct {
	Generation uint32
	Attr       event.Attr
	Target     string // of a symbolic link
	Device     uint64 // of a device node, as in event.Event
	Encrypted  bool   // its names are ciphertext

	// Modified and Changed are the times of the last change of the content and of the inode, in nanoseconds since 1970 as
	// far as they go: to be compared for being the same.
	Modified, Changed int64
	// Xattrs stands for the extended attributes: where it is the same, they are. It means something in this process only.
	Xattrs uint64
}
