package main

import (
	"context"
	"errors"
	"fmt"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/block/tap"
	"vmscope/watch"
)

// recorder is a tap of which all writes go into a log, before anything is told of them. Where writes are lost the log ends: what
// it holds up to there is all that was written.
type recorder struct {
	*tap.Tap
	log  *logwrites.Writer // nil behind its end
	warn func(error)
}

// Interest implements watch.Chooser: the content of all writes is wanted, whatever is said of it.
func (r *recorder) Interest(block.Range, bool) {}

// Next implements watch.Source.
func (r *recorder) Next(ctx context.Context) (block.Write, error) {
	w, err := r.Tap.Next(ctx)
	if r.log == nil {
		return w, err
	}
	lost := (*block.LostError)(nil)
	switch {
	case err == nil:
		if err := r.log.Add(w); err != nil {
			r.end(err)
		}
	case errors.As(err, &lost):
		r.end(lost)
	}
	return w, err
}

// end ends the log, and says why.
func (r *recorder) end(why error) {
	r.warn(errors.Join(fmt.Errorf("nothing is recorded any more: %w", why), r.log.Close()))
	r.log = nil
}

// close ends the log with the disk.
func (r *recorder) close() error {
	if r.log == nil {
		return nil
	}
	return r.log.Close()
}

// recorded makes a tap one that is recorded, if that is asked for; stop is to be called when it is not read any more.
func (f *watchFlags) recorded(source *tap.Tap, warn func(error)) (s watch.Source, stop func() error, err error) {
	if f.record == "" {
		return source, func() error { return nil }, nil
	}
	const sector = 512
	log, err := logwrites.Create(f.record, sector)
	if err != nil {
		return nil, nil, fmt.Errorf("--record: %w", err)
	}
	r := &recorder{source, log, warn}
	return r, r.close, nil
}
