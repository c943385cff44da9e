package watch

import (
	"bytes"
	"context"
	"errors"
	"io"

	"vmscope/block"
	"vmscope/block/tap"
	"vmscope/event"
)

// add puts a disk to the others. Run's goroutines wait for mu, or are not there yet.
func (w *Watch) add(d Disk) {
	w.disks = append(w.disks, disk{Disk: d})
	w.live++
	w.turns.add()
}

// errOver says that a watch has ended.
var errOver = errors.New("the watch has ended")

// Plug adds a disk that the machine has got while it is watched. The file systems on it are attached like those that were
// there from the beginning. A disk that the machine loses ends with tap.ErrUnplugged, which is a LOST for what lay on it;
// where no other disk is watched, it is the error of Run.
func (w *Watch) Plug(d Disk) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.spawn != nil && w.live == 0 {
		return errOver
	}
	w.add(d)
	if w.spawn != nil { // else Run will do it
		w.divided()
		w.spawn(len(w.disks) - 1)
		w.turns.wake()
	}
	return nil
}

// divided has the disks be looked at anew, soon.
func (w *Watch) divided() { w.rescan, w.stale = true, w.opt.Clock() }

// unplug ends a disk that is not there any more, and what lay on it.
func (w *Watch) unplug(disk int) error {
	d := &w.disks[disk]
	gone := d.Gone
	d.Source = absent{}
	w.live--
	w.divided() // a volume on several disks
	var kept []*volume
	var err error
	for _, v := range w.volumes {
		if !v.on(disk) {
			kept = append(kept, v)
			continue
		}
		if err == nil {
			e := event.Event{Op: event.Lost, Path: "/", Detail: tap.ErrUnplugged.Error()}
			v.finish(&e)
			err = w.send(e)
		}
		v.close()
	}
	w.volumes = kept
	if gone != nil {
		gone()
	}
	return err
}

// absent stands for a disk that was unplugged, so that the others keep their numbers.
type absent struct{}

func (absent) Device() block.Device { return bytes.NewReader(nil) }

func (absent) Next(context.Context) (block.Write, error) { return block.Write{}, io.EOF }
