package tap

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/fsinfer/ext4"
)

// TestPast lets a guest work for some seconds while nobody reads the tap, and then goes through what it did: at each
// commit, each block that the transaction changes and that no transaction before it has changed since it was written
// home must read as it was on the disk then, though the disk has gone on long since.
func TestPast(t *testing.T) {
	g := lab(t)
	tap := attachTo(t, g, "vda", Options{})
	f, err := ext4.Attach(tap.Device())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	format, where, ok := f.Journal()
	if !ok {
		t.Fatal("no journal")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	volume := []block.Segment{{Len: tap.Size(), Legs: []block.Leg{{}}}}
	gen, err := tap.Capture(ctx, []Journal{{Format: format, Volume: volume, Extents: where}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, err := tap.Next(ctx)
		var mark *CapturingError
		if errors.As(err, &mark) && mark.Gen == gen {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run(t, g, "sync")
	shadow := copyOf(t, tap.Device())
	replay(t, tap, shadow, 300*time.Millisecond)
	shadow = copyOf(t, tap.Device()) // quiet: it is what the disk holds

	run(t, g, `cd /mnt; for r in 1 2 3 4 5 6; do
		mkdir -p a b; for i in 1 2 3 4 5 6 7 8 9; do echo $r$i >a/f$i; mkdir -p b/d$r$i; done; sync; sync
		rm -rf b a/f3 a/f5; mv a c$r; sync
	done; cd /; umount /mnt; mount -t ext4 /dev/vda /mnt; rm -rf /mnt/c*; sync`)

	l, err := newLogReader(Journal{Format: format, Volume: volume, Extents: where})
	if err != nil {
		t.Fatal(err)
	}
	overlay := map[int64]bool{} // blocks whose newest content is in the journal only
	commits, checked, stale := 0, 0, 0
	var tx []block.Range
	old, now := make([]byte, format.BlockSize), make([]byte, format.BlockSize)
	for {
		qctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		w, err := tap.Next(qctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if w.Op == block.OpWrite {
			l.read(w.Off, w.Data, func(r place) { tx = append(tx, r.Range) }, func() {
				commits++
				for _, r := range tx {
					if overlay[r.Off] {
						continue
					}
					checked++
					if err := block.ReadFull(tap.Device(), old, r.Off); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(old, shadow[r.Off:r.End()]) {
						t.Errorf("commit %d: block at %#x does not read as it was", commits, r.Off)
					}
					if err := block.ReadFull(tap.past.conn, now, r.Off); err == nil && !bytes.Equal(old, now) {
						stale++
					}
				}
				for _, r := range tx {
					overlay[r.Off] = true
				}
				tx = nil
			})
		}
		copy(shadow[w.Off:w.End()], w.Data)
		if w.Op == block.OpZeroes {
			clear(shadow[w.Off:w.End()])
		}
		for off := w.Off &^ int64(format.BlockSize-1); off < w.End(); off += int64(format.BlockSize) {
			delete(overlay, off)
		}
	}
	if commits < 10 || checked < 50 || stale == 0 {
		t.Errorf("%d commits, %d blocks looked at, %d of them changed since: too few to tell anything", commits, checked, stale)
	}
	t.Logf("%d commits, %d blocks, %d of them different by now", commits, checked, stale)
}
