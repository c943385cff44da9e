package tap

import (
	"math"
	"slices"
	"sync"

	"vmscope/block"
	"vmscope/internal/ring"
)

// Joint reads a volume that lies on several tapped disks as it was at a place in all of their streams: behind the writes that
// Made was called for. The taps must have been told of the volume's journal with Journal.Others; a tap's own Device does not
// know what other taps caught of its disk.
//
// What was caught is kept here, since a ring lets go of it when its own reader is past it, which may be before the commit on
// another disk is reached. Rings have no common positions, but a clock that is the host's: what a transaction overwrites was
// caught before the guest was answered, and is written only after.
//
// What was not caught and is overwritten already cannot be read. That is noticed: see Inexact.
//
// Its methods are safe for concurrent use.
type Joint struct {
	where *block.Map
	taps  []*Tap // by the map's disks; nil: not there
	now   *block.Volume

	mu      sync.Mutex // never held while a tap's lock is waited for
	images  spans      // what was caught
	ahead   spans      // writes that were not made yet
	old     []*span    // images, as they came
	bytes   int        // of images
	reached int64      // the time of the last write that was made
	waiting [][]*span  // of each disk: what is in ahead, in the ring's order
	inexact bool
	blind   bool // ahead does not hold all
}

// member is a place in a joint.
type member struct {
	joint *Joint
	disk  int
}

// passedMost is how many bytes of images are kept that the reader has passed: of a transaction whose commit is still to come.
// Those that are ahead of it are bounded by the rings. If one is missing for want of room, Inexact tells.
const passedMost = 32 << 20

// A write in more than fewPieces of the volume is held as one thing. With more than aheadMost to be made by one disk's reader
// nothing is exact any more: its ring is all but full.
const (
	fewPieces = 4
	aheadMost = 1 << 18
)

// Join makes a joint of the taps of the disks that the map counts; nil stands for a disk that the volume does not lie on. Close
// ends it, before the taps are closed or after.
func Join(where *block.Map, taps []*Tap) *Joint {
	j := &Joint{where: where, taps: taps, waiting: make([][]*span, len(taps))}
	devices := make([]block.Device, len(taps))
	for i, t := range taps {
		if t == nil {
			continue
		}
		devices[i] = t.Device()
		t.mu.Lock()
		t.joints = append(t.joints, member{j, i})
		t.mu.Unlock()
	}
	j.now = block.NewVolume(where, devices)
	return j
}

// Close lets the taps forget the joint, which is not to be read any more.
func (j *Joint) Close() {
	for _, t := range j.taps {
		if t != nil {
			t.mu.Lock()
			t.joints = slices.DeleteFunc(t.joints, func(m member) bool { return m.joint == j })
			t.mu.Unlock()
		}
	}
}

// Size is that of the volume in bytes.
func (j *Joint) Size() int64 { return j.where.Size() }

// ReadAt reads the volume's bytes.
func (j *Joint) ReadAt(p []byte, off int64) (int, error) {
	// First the disks, then the rings, as a tap's Device does.
	n, end := j.now.ReadAt(p, off)
	if n == 0 {
		return n, end
	}
	if err := j.look(); err != nil {
		return 0, err
	}
	j.overlay(p[:n], off)
	return n, end
}

// look takes in what is new in the rings.
func (j *Joint) look() error {
	for _, t := range j.taps {
		if t == nil {
			continue
		}
		t.mu.Lock()
		err := errClosed
		if !t.closed {
			err = t.scan()
		}
		t.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Inexact reports whether something was read since it was asked last that had been overwritten without being caught: it is
// from a later time than the rest.
func (j *Joint) Inexact() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	was := j.inexact || j.blind
	j.inexact = false
	return was
}

// Made says that the write that Next of a disk's tap gave last is made: reads are of behind it from now on.
func (j *Joint) Made(disk int) error {
	if err := j.look(); err != nil { // it may have come behind the last look
		return err
	}
	t := j.taps[disk]
	t.mu.Lock()
	given := t.given
	t.mu.Unlock()
	j.made(disk, given)
	return nil
}

// made takes the writes of a disk up to a position in its ring as made.
func (j *Joint) made(disk int, given uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := j.waiting[disk]
	for len(list) > 0 && int64(list[0].pos-given) <= 0 {
		w := list[0]
		list = list[1:]
		j.ahead.drop(w)
		j.reached = w.at
		for _, m := range j.images.overlapping(w.Range) {
			if m.at <= w.at && j.reaches(w, m.Range) { // what it shows is not there any more
				j.forget(m)
			}
		}
	}
	j.waiting[disk] = list
	for len(j.old) > 0 && (j.old[0].gone || j.bytes > passedMost && j.old[0].at < j.reached) {
		j.forget(j.old[0])
		j.old[0] = nil
		j.old = j.old[1:]
	}
}

// saw takes in a record of a tap's ring. The tap's lock is held.
func (j *Joint) saw(disk int, pos uint64, r *ring.Record) {
	switch r.Kind {
	case ring.Write, ring.Zeroes, ring.Discard:
		j.sawWrite(disk, pos, r)
	case ring.PreImage:
		if r.Extra > 0 && len(r.Data) > 0 {
			j.sawImage(int(r.Extra)-1, r)
		}
	}
}

func (j *Joint) sawImage(disk int, r *ring.Record) {
	pieces := j.where.Pieces(disk, block.Write{Op: block.OpWrite, Off: r.Off, Len: r.Len, Data: r.Data})
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		p, ok := pieces.Next()
		if !ok {
			return
		}
		m := &span{Range: block.Range{Off: p.Off, Len: p.Len}, at: r.Time, data: slices.Clone(p.Data)}
		j.images.add(m)
		j.old = append(j.old, m)
		j.bytes += len(m.data)
	}
}

func (j *Joint) sawWrite(disk int, pos uint64, r *ring.Record) {
	pieces := j.where.Pieces(disk, block.Write{Op: block.OpWrite, Off: r.Off, Len: r.Len})
	var list []*span
	n := 0
	var around block.Range
	for {
		p, ok := pieces.Next()
		if !ok {
			break
		}
		if n++; n <= fewPieces {
			list = append(list, &span{Range: block.Range{Off: p.Off, Len: p.Len}, at: r.Time, pos: pos})
		}
		if n == 1 {
			around = block.Range{Off: p.Off, Len: p.Len}
		}
		end := max(around.End(), p.End())
		around.Off = min(around.Off, p.Off)
		around.Len = end - around.Off
	}
	if n > fewPieces {
		list = []*span{{Range: around, at: r.Time, pos: pos, on: &onDisk{disk, block.Range{Off: r.Off, Len: r.Len}}}}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, w := range list {
		if j.blind = j.blind || len(j.waiting[disk]) >= aheadMost; j.blind {
			return
		}
		j.ahead.add(w)
		j.waiting[disk] = append(j.waiting[disk], w)
	}
}

// reaches reports whether a write, whose range overlaps r, reaches it; r lies in one piece on one disk.
func (j *Joint) reaches(w *span, r block.Range) bool {
	if w.on == nil {
		return true
	}
	p := j.where.Locate(r.Off)
	return !p.Zero && p.Disk == w.on.disk && p.Off < w.on.End() && w.on.Off < p.Off+r.Len
}

// forget drops an image.
func (j *Joint) forget(m *span) {
	if !m.gone {
		j.images.drop(m)
		j.bytes -= len(m.data)
		m.data = nil
	}
}

// overlay puts the images of a range over what was read, of each byte the oldest, and notes what is from a later time.
func (j *Joint) overlay(b []byte, off int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at := block.Range{Off: off, Len: int64(len(b))}
	list := j.images.overlapping(at)
	for _, m := range slices.Backward(list) {
		if m.Off >= off {
			copy(b[m.Off-off:], m.data)
		} else {
			copy(b, m.data[off-m.Off:])
		}
	}
	writes := j.ahead.overlapping(at)
	if len(writes) == 0 || j.inexact {
		return
	}
	// Of each sector: when its content was caught.
	const sector = 512
	first := off / sector
	caught := make([]int64, (at.End()-1)/sector-first+1)
	for i := range caught {
		caught[i] = math.MaxInt64
	}
	// each calls f for the sectors of a range that were read.
	each := func(r block.Range, f func(at int64, c *int64)) {
		for s := max(r.Off/sector, first); s <= (min(r.End(), at.End())-1)/sector; s++ {
			f(s*sector, &caught[s-first])
		}
	}
	for _, m := range slices.Backward(list) {
		each(m.Range, func(_ int64, c *int64) { *c = m.at })
	}
	// The first write that comes decides: those behind it overwrite what nobody asks for.
	const decided = math.MinInt64
	for _, w := range writes {
		each(w.Range, func(at int64, c *int64) {
			if *c != decided && j.reaches(w, block.Range{Off: at, Len: sector}) {
				j.inexact = j.inexact || *c > w.at
				*c = decided
			}
		})
	}
}

var _ block.Device = (*Joint)(nil)
