package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmscope/block"
	"vmscope/block/part"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
)

// volume is a file system that is watched.
type volume struct {
	name  string
	label string // how events call it
	disk  string
	part  part.Volume
	where *block.Map
	dev   block.Device
	joint *tap.Joint // what dev is, if the volume lies on several disks that are tapped
	doubt []Doubter  // of the disks that it lies on
	fs    *ext4.FS
	place
	since time.Time // writes up to then may be in the model already
	crawl bool      // the crawl is not at its end
	told  uint64    // inodes of progress
	tree  *tree     // what was told, if that is held
	then  *tree     // what had been told when writes were lost: the difference is to be told when all is caught up

	touched time.Time // of the last write
}

// known says whether there is a reader for what lies in a volume.
func known(v *part.Volume) bool {
	return (v.Type == "ext2" || v.Type == "ext3" || v.Type == "ext4") && v.Unmapped == ""
}

// on says whether a part of a volume lies on a disk.
func (v *volume) on(disk int) bool {
	return slices.ContainsFunc(v.part.Segments, func(s block.Segment) bool {
		return slices.ContainsFunc(s.Legs, func(l block.Leg) bool { return l.Disk == disk })
	})
}

// doubtful reports whether something was read lately that may be from behind a loss that is still to be told.
func (v *volume) doubtful() (doubtful bool) {
	for _, d := range v.doubt {
		doubtful = d.Inexact() || doubtful
	}
	return doubtful
}

// journal describes a volume's journal to a tap; ok is false without one.
func (v *volume) journal(disk int) (j tap.Journal, ok bool) {
	format, where, ok := v.fs.Journal()
	return tap.Journal{Format: format, Disk: disk, Volume: v.part.Segments, Extents: where}, ok
}

// close gives back what was made for the volume.
func (v *volume) close() {
	if v.fs != nil {
		v.fs.Close()
	}
	if v.joint != nil {
		v.joint.Close()
	}
}

// fsLabel is how events call a file system.
func fsLabel(name string, s *ext4.Super) string {
	u := hex.EncodeToString(s.UUID[:])
	return fmt.Sprintf("%s %s-%s-%s-%s-%s", name, u[:8], u[8:12], u[12:16], u[16:20], u[20:])
}

// finish gives events what they lack: where they happened, and the guest's paths.
func (v *volume) finish(e *event.Event) {
	e.Disk, e.FS = v.disk, v.label
	if e.Op == event.Unmount && v.at == "" && v.last != "" {
		e.Path = v.last
		return
	}
	if v.at == "" || v.at == "/" {
		return
	}
	e.Path = v.guestPath(e.Path)
	if e.OldPath != "" {
		e.OldPath = v.guestPath(e.OldPath)
	}
}

func (v *volume) guestPath(p string) string {
	if p == "/" || p == "" {
		return v.at
	}
	return v.at + p
}

// content reads the file that an event tells of, if it is small enough.
func (v *volume) content(e *event.Event, limit int64) error {
	if limit <= 0 || e.Attr == nil || e.Attr.Kind != event.File || e.Attr.Size > limit {
		return nil
	}
	switch e.Op {
	case event.MkFile, event.Write, event.Truncate, event.Rename, event.Link:
	default:
		return nil
	}
	data, torn, err := v.fs.Content(uint32(e.Inode), limit)
	if err != nil {
		return fmt.Errorf("content of %q: %w", e.Path, err)
	}
	if v.joint != nil && v.joint.Inexact() || v.doubtful() {
		torn = true // data is not caught: it is as of now
	}
	e.Content = &event.Content{Data: data, SHA256: sha256.Sum256(data), Torn: torn}
	return nil
}

// step crawls a little.
func (v *volume) step(ctx context.Context, n int, progress func(fs string, done, total uint64)) error {
	done, total, err := v.fs.Crawl(ctx, n)
	if done >= total {
		v.crawl = false
	}
	if progress != nil && (done >= total || done-v.told >= total/100+1) {
		v.told = done
		progress(v.name, done, total)
	}
	return err
}

// lost says whether an error is a gap in the writes.
func lost(err error) (*block.LostError, bool) {
	var l *block.LostError
	ok := errors.As(err, &l)
	return l, ok
}
