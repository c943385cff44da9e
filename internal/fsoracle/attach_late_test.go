package fsoracle_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab/wire"
)

// TestAttachLate attaches to disks as a tap shows them that waits for its reader: what is read is of a later time than the
// writes that come, but for blocks that a transaction is about to change, and the guest goes on while it is read. Once the
// writes have reached that time, events must lead from the tree that the model shows to what the guest said later.
func TestAttachLate(t *testing.T) {
	seed := freshSeed(t)
	for _, path := range recordings(t) {
		name := strings.TrimSuffix(filepath.Base(path), fsoracle.Extension)
		if strings.HasPrefix(name, "ext2") || name == "no-journal" || strings.Contains(name, "power-loss") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := open(t, path)
			first, last := r.Points[0].Entries, r.Points[min(3, len(r.Points)-1)].Entries
			defer onceMore(t, seed, 1)
			for at := range entries(t, first, last, seed, 1) {
				if err := attachLate(t, r, at, rand.New(rand.NewPCG(seed, at))); err != nil {
					t.Errorf("entry %d: %v", at, err)
				}
			}
		})
	}
}

// attachLate has the writes come from entry at on, while the disk is further on.
func attachLate(t *testing.T, r *fsoracle.Recording, at uint64, rng *rand.Rand) error {
	from, err := r.From(at)
	if err != nil {
		return err
	}
	d, err := newLateDisk(from, rng)
	if err != nil {
		return err
	}
	log, err := logwrites.NewReader(bytes.NewReader(from.Log), disk{bytes.NewReader(from.Base)}, logwrites.Options{})
	if err != nil {
		return err
	}
	defer log.Close()
	d.advance(uint64(rng.IntN(60)))
	d.capture = true
	// What a transaction overwrites that is being written now is not caught: who watches waits for its commit.
	for !d.settled {
		if d.now == d.total {
			return nil
		}
		d.advance(d.now + 1)
	}
	d.advance(d.now + uint64(rng.IntN(60)))
	fs, err := ext4.Attach(d)
	if errors.Is(err, jbd2.ErrChanged) {
		return nil // as often as it tries
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer fs.Close()
	since := d.now
	what := fmt.Sprintf("attached between %d and %d", at, at+since)
	pace := rng.IntN(40)
	points := slices.DeleteFunc(slices.Clone(from.Points), func(p fsoracle.Point) bool { return p.Entries <= since })
	var replayer *fsoracle.Replayer
	for w, err := range log.Writes(t.Context()) {
		if err != nil {
			return err
		}
		d.given = log.Index()
		if lead := d.given + uint64(rng.IntN(100)); lead > d.now {
			d.advance(lead)
		}
		if replayer == nil && log.Index() > since {
			if rng.IntN(2) == 0 {
				fs.CaughtUp()
			}
			tree, err := lookOf(fs)
			if err != nil {
				return fmt.Errorf("%s, look: %w", what, err)
			}
			if replayer, err = fsoracle.New(tree); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if rng.IntN(2) == 0 {
				if err := fs.CrawlAll(t.Context()); err != nil {
					return fmt.Errorf("%s, crawl: %w", what, err)
				}
			}
		}
		for replayer != nil && len(points) > 0 && log.Index() > points[0].Entries {
			if points[0].What == "mounted" {
				replayer.Recovered(points[0].Tree)
			}
			lines := replayer.Compare(points[0].Tree)
			for _, f := range replayer.Finish() {
				lines = append(lines, f.String())
			}
			if len(lines) > 0 {
				return fmt.Errorf("%s; %s, entry %d: %s", what, points[0].What, at+points[0].Entries, strings.Join(lines[:min(len(lines), 10)], "\n"))
			}
			replayer.Adopt(points[0].Tree)
			points = points[1:]
		}
		w.Time = time.Unix(1e9, 0)
		events, err := fs.Apply(w)
		if os.Getenv("VMSCOPE_EVENTS") != "" {
			for _, e := range events {
				t.Logf("entry %d: %d %s %s %q from %q %d %+v", at+log.Index(), e.TID, e.Source, e.Op, e.Path, e.OldPath, e.Inode, e.Attr)
			}
			if err != nil || log.Index() == since+1 {
				t.Logf("entry %d: last %d, disk at %d, %v", at+log.Index(), fs.Last(), at+d.now, err)
			}
		}
		if err != nil && (replayer != nil || errors.Is(err, fsinfer.ErrUntold)) {
			return fmt.Errorf("%s; entry %d: %w", what, at+log.Index(), err)
		}
		for _, e := range events {
			if replayer == nil {
				continue
			}
			if found := replayer.Apply(e); len(found) > 0 {
				return fmt.Errorf("%s; entry %d: %v", what, at+log.Index(), found)
			}
		}
		if replayer != nil && pace > 0 {
			if _, _, err := fs.Crawl(t.Context(), rng.IntN(pace)); err != nil {
				return fmt.Errorf("%s; crawl: %w", what, err)
			}
		}
	}
	return nil
}

// lookOf is the tree that a model shows.
func lookOf(fs *ext4.FS) (tree []wire.File, err error) {
	look := fs.Look()
	var walk func(path string, ino uint64) error
	walk = func(path string, ino uint64) error {
		file, err := look.File(ino)
		if err != nil {
			return err
		}
		a := file.Attr
		f := wire.File{
			Path: []byte(path), Inode: ino, Generation: file.Generation, Kind: string(a.Kind), Mode: a.Mode, UID: a.UID, GID: a.GID,
			Size: a.Size, Nlink: a.Nlink, Target: []byte(file.Target), Device: file.Device,
		}
		if path == "" {
			f.Path = []byte("/")
		}
		tree = append(tree, f)
		if a.Kind != event.Dir {
			return nil
		}
		names := map[string]uint64{}
		if err := look.Names(ino, func(name string, inode uint64) bool { names[name] = inode; return true }); err != nil {
			return err
		}
		for name, inode := range names {
			if err := walk(path+"/"+name, inode); err != nil {
				return err
			}
		}
		return nil
	}
	err = walk("", ext4.RootInode)
	return tree, err
}

// lateDisk is a disk that goes on by itself, with pre-images of what transactions change (see package tap).
type lateDisk struct {
	rng     *rand.Rand
	image   []byte // after entry now
	now     uint64
	given   uint64 // of the entries, to the reader
	rest    []byte // of the log
	total   uint64
	capture bool
	settled bool // a commit was written since

	format jbd2.Format
	where  []block.Range
	tags   []uint64 // blocks of the transaction that is being written
	images []lateImage
	have   map[uint64]bool
}

type lateImage struct {
	entry uint64 // of the commit
	off   int64
	data  []byte
}

func newLateDisk(r *fsoracle.Recording, rng *rand.Rand) (*lateDisk, error) {
	fs, err := ext4.Attach(disk{bytes.NewReader(r.Base)})
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	total, err := r.Entries()
	d := &lateDisk{rng: rng, image: slices.Clone(r.Base), rest: r.Log[512:], total: total, have: map[uint64]bool{}}
	d.format, d.where, _ = fs.Journal()
	return d, err
}

// advance has the guest go on up to an entry.
func (d *lateDisk) advance(to uint64) {
	for ; d.now < min(to, d.total); d.now++ {
		le := binary.LittleEndian
		off, n, discards := int64(le.Uint64(d.rest))*512, int64(le.Uint64(d.rest[8:]))*512, le.Uint64(d.rest[16:])&4 != 0
		d.rest = d.rest[512:]
		if discards {
			clear(d.image[off:][:n])
			continue
		}
		d.catch(off, d.rest[:n])
		copy(d.image[off:], d.rest[:n])
		d.rest = d.rest[n:]
	}
}

// catch takes what a write to the journal is about to change into the images.
func (d *lateDisk) catch(off int64, data []byte) {
	bs := int64(d.format.BlockSize)
	for at := off; at+bs <= off+int64(len(data)); at += bs {
		if !slices.ContainsFunc(d.where, func(r block.Range) bool { return at >= r.Off && at < r.End() }) {
			delete(d.have, uint64(at/bs))
			continue
		}
		b := data[at-off:][:bs]
		switch kind, _ := jbd2.KindOf(b); kind {
		case jbd2.Super1, jbd2.Super2:
			if sb, err := jbd2.ParseSuper(b); err == nil {
				d.format = sb.Format()
			}
		case jbd2.Descriptor:
			tags, _ := d.format.AppendTags(nil, b)
			for _, t := range tags {
				d.tags = append(d.tags, t.Block)
			}
		case jbd2.Revoke:
			d.tags, _ = d.format.AppendRevoked(d.tags, b)
		case jbd2.Commit:
			d.settled = d.capture
			for _, n := range d.tags {
				if home := int64(n) * bs; d.capture && !d.have[n] && home+bs <= int64(len(d.image)) {
					d.images = append(d.images, lateImage{d.now, home, bytes.Clone(d.image[home:][:bs])})
					d.have[n] = true
				}
			}
			d.tags = nil
		}
	}
}

func (d *lateDisk) Size() int64 { return int64(len(d.image)) }

func (d *lateDisk) ReadAt(p []byte, off int64) (int, error) {
	if off >= d.Size() {
		return 0, io.EOF
	}
	n := copy(p, d.image[off:])
	for _, m := range slices.Backward(d.images) {
		if m.entry+1 < d.given || m.off >= off+int64(n) || m.off+int64(len(m.data)) <= off {
			continue
		}
		if m.off >= off {
			copy(p[m.off-off:n], m.data)
		} else {
			copy(p[:n], m.data[off-m.off:])
		}
	}
	if d.given == 0 && d.rng.IntN(16) == 0 { // while it is attached
		d.advance(d.now + uint64(d.rng.IntN(3)))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
