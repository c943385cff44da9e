// Package watch joins what catches a guest's writes (block/tap, or a recorded log), what divides disks (block/part) and what
// knows a file system (fsinfer/ext4): it tells events of all file systems on a machine's disks, numbered, filtered by path
// and by kind, and keeps them right when disks are divided anew, file systems are made, and writes are lost.
package watch

import (
	"context"
	"time"

	"vmscope/block"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
)

// Source gives the writes of one disk. *tap.Tap is one. What else it can do is found by type assertion: Capturer,
// Chooser, Queue, Doubter. A volume on several disks is read as it was only where all of them are *tap.Tap or logs.
type Source interface {
	// Next waits for the next write, which is void with the next call. A *block.LostError is a gap, a *tap.CapturingError
	// a mark; the stream goes on behind both. When ctx ends Next may be called again. io.EOF and all other errors end it.
	Next(ctx context.Context) (block.Write, error)
	// Device reads the disk as it was when the last write had been made, as far as block.Tap promises.
	Device() block.Device
}

// Capturer keeps what transactions overwrite, once it knows the journals.
type Capturer interface {
	Capture(ctx context.Context, journals []tap.Journal) (gen uint32, err error)
}

// Chooser leaves out the content of writes that nobody wants.
type Chooser interface {
	Interest(r block.Range, wanted bool)
}

// Queue says how many bytes of writes wait, of how many that it takes.
type Queue interface {
	Backlog() (n, of int64)
}

// Doubter says whether something was read of Device, since it was asked last, that may be from a later time: behind a loss of
// which Next has not told yet.
type Doubter interface {
	Inexact() bool
}

// Disk is a disk to watch.
type Disk struct {
	Name   string // as the guest would call it: volumes are named after it
	Source Source
	// Gone, if not nil, is called when the source has ended with tap.ErrUnplugged and is not used any more. It must be quick.
	Gone func()
}

// Options change what is told. The zero value tells everything of all file systems.
type Options struct {
	// Paths are what to watch, each with all below it; none means everything. In a pattern * and ? and [a-z] stand for
	// parts of one name, ** for any number of names. Paths that do not exist yet are watched too. One that ends in "/." is a
	// directory and the names that are directly in it, nothing that lies deeper.
	Paths []string
	// Ops are the kinds of events to tell; none means all. LOST and ATTACHED are always told.
	Ops []event.Op
	// FileSystems are names of volumes (vda1, vg0/root), UUIDs or labels of file systems to watch; none means all that are known.
	FileSystems []string
	// Content is the size in bytes up to which a watched file's content comes with the events that make or change it; 0:
	// no content.
	Content int64
	// Hold is how many bytes of memory a file system may take for what was told of it: names and attributes of all that is
	// watched, about 200 bytes a file. It is for when writes are lost: then the difference is told. What takes more is not
	// held, and its difference not told. 0 means 64 MiB, less than 0 that nothing is held.
	Hold int64
	// Mounted tells where the guest has a file system mounted, so that its paths are the guest's; nil, or "": they are
	// those of the file system. It is asked when a file system is attached or mounted, and now and then before events are
	// told: the mount comes after what it writes to the disk, and a root file system is moved from where the boot mounted
	// it. After an error what it told before stands. It is called from other goroutines, for several file systems at once.
	// Events wait for it at most two seconds: what it says later is of those that come later.
	Mounted func(volume string, fs *ext4.Super) (string, error)
	// Progress is told how far the crawl of a file system is, in inodes.
	Progress func(fs string, done, total uint64)
	// Warn is told what is wrong with a disk or a file system, beside the events; it must be quick.
	Warn func(error)
	// Quiet is how long a disk without journal has to be quiet until what was written is looked at; default 30 ms.
	Quiet time.Duration
	// Clock is time.Now but in tests.
	Clock func() time.Time
}
