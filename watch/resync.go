package watch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmscope/event"
	"vmscope/fsinfer"
	"vmscope/fsinfer/ext4"
)

// hold is the default of Options.Hold.
const hold = 64 << 20

// portion is how many names are read of a tree before something else is done.
const portion = 1 << 10

// busy says whether a volume's crawl goes on, or its tree is read.
func (w *Watch) busy(v *volume) bool {
	return v.crawl || w.opt.Hold > 0 && v.then == nil && v.tree.unread(w.filter.changes(), v.at)
}

// readTree goes on reading what is to be held of a volume; false if there is nothing more to be read.
func (w *Watch) readTree(v *volume) bool {
	if w.opt.Hold < 0 || v.then != nil || !v.tree.unread(w.filter.changes(), v.at) {
		return false
	}
	if v.tree == nil || v.tree.other(w.filter.changes(), v.at) {
		v.tree = w.newTree(v)
	}
	v.tree.read(v.fs.Look(), portion)
	return true
}

func (w *Watch) newTree(v *volume) *tree {
	at := v.at
	scope := func(path string) scope {
		if at != "" {
			path = strings.TrimSuffix(at+path, "/")
		}
		return w.filter.scope(path)
	}
	t := newTree(w.opt.Hold, w.filter.changes(), at, scope, func(err error) { w.opt.Warn(fmt.Errorf("%s: %w", v.name, err)) })
	t.doubt = v.doubtful
	return t
}

// mend has what was not told be told as a difference, as if writes had been lost. A disk that contradicts itself may ask for
// that all the time: it is done now and then only.
func (w *Watch) mend() {
	if w.untold == "" || w.again != "" {
		return
	}
	if now := w.opt.Clock(); now.Sub(w.mended) >= mendAfter {
		w.again, w.mended = w.untold, now
	}
}

// mendAfter is how often differences are told of what could not be told.
const mendAfter = 10 * time.Second

// known is the tree that a reader of the events knows, as far as it is held.
func (v *volume) known() *tree {
	if v.then != nil {
		return v.then
	}
	return v.tree
}

// unknown says of which volumes no difference can be told.
func (w *Watch) unknown() string {
	var s strings.Builder
	for _, v := range w.volumes {
		t := v.known()
		switch {
		case t.useful(w.filter.changes(), v.at):
		case t != nil && t.full:
			fmt.Fprintf(&s, "; what changes on %s until it is attached is not told: what is watched there is too much to be held", v.name)
		case w.opt.Hold < 0:
			fmt.Fprintf(&s, "; what changes on %s until it is attached is not told", v.name)
		default:
			fmt.Fprintf(&s, "; what changes on %s until it is attached is not told: what is watched there had not been read to its end", v.name)
		}
	}
	return s.String()
}

// caughtUp is called when what comes is newer than a volume's model. Behind a loss, it tells what changed meanwhile, and only
// then that events are complete.
func (w *Watch) caughtUp(ctx context.Context, v *volume) error {
	waited := !v.since.IsZero()
	if v.joint != nil {
		v.joint.Inexact() // what was read until here may be older than the model, too
	}
	v.since = time.Time{}
	v.fs.CaughtUp()
	for i := range w.disks {
		if waited {
			w.choose(i) // what waits while the tree is read is to be little
		}
	}
	if v.then == nil {
		return nil
	}
	old, now := v.then, w.newTree(v)
	v.then = nil
	look := v.fs.Look()
	for !now.done() {
		if err := ctx.Err(); err != nil {
			return err
		}
		now.read(look, portion)
	}
	if w.inexact(v) {
		v.then = old // the next time
		return nil
	}
	v.tree = now
	why := errors.New("what is watched is another than before")
	switch {
	case now.full:
		why = errors.New("what is watched is too much to be held")
	case now.err != nil:
		why = now.err
	case now.whole() && !old.other(now.turn, now.at):
		why = tellDifference(old, now, look, uint64(v.fs.Last()), func(e event.Event) error { return w.pass(v, &e) })
		if why != nil && why != errTangled {
			return why
		}
	}
	if why != nil {
		e := event.Event{Op: event.Lost, Path: "/", Detail: "the difference is not told: " + why.Error()}
		v.finish(&e)
		if err := w.send(e); err != nil {
			return err
		}
	}
	return w.attached(v)
}

// attached tells that events of a volume are complete from here on.
func (w *Watch) attached(v *volume) error {
	e := event.Event{Op: event.Attached, Path: "/", TID: uint64(v.fs.Last()), Detail: v.part.Type}
	v.finish(&e)
	return w.send(e)
}

var _ fsinfer.Looker = (*ext4.FS)(nil)
