package logwrites

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"vmscope/block"
	"vmscope/mem"
)

// Options say how a log is read.
type Options struct {
	// Follow makes the reader wait for more entries at the end of the log, as long as its context lasts. The log may still be empty.
	Follow bool
	// Poll is how often a followed log is looked at for more: 2 ms if 0. QEMU counts entries when the guest flushes.
	Poll time.Duration
	// Memory and File bound what the overlay keeps of the writes, in bytes: 64 MiB and 1 TiB if 0. See block.NewOverlay.
	Memory, File int64
	// Mark is called with the name of each mark as the reader passes it.
	Mark func(name string)
}

// Reader is the tap of a disk whose writes were logged. It holds the entries
// that the log's first sector counts; what a writer that died left behind them
// is not looked at. A Reader is for one goroutine, but for its Device.
type Reader struct {
	log   io.ReaderAt
	close io.Closer
	base  block.Device
	over  *block.Overlay
	opts  Options

	super super
	index uint64 // of the next entry
	off   int64  // of the next entry in the log
	head  []byte // a sector
	buf   []byte // data
}

// maxData is how much of an entry is given as one write. A write of zeros is
// logged as a hole, which can be as large as the disk.
const maxData = 1 << 20

// Open reads the log at path, which was begun when the disk held what base
// holds. Close the Reader when done; base is not closed.
func Open(path string, base block.Device, opts Options) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := NewReader(f, base, opts)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.close = f
	return r, nil
}

// NewReader reads a log from any source, which it does not close. A log that is
// not followed must be there already: else the error is ErrNotLog.
func NewReader(log io.ReaderAt, base block.Device, opts Options) (*Reader, error) {
	if opts.Poll <= 0 {
		opts.Poll = 2 * time.Millisecond
	}
	if opts.Memory == 0 {
		opts.Memory = 64 << 20
	}
	if opts.File == 0 {
		opts.File = 1 << 40
	}
	r := &Reader{log: log, base: base, opts: opts, over: block.NewOverlay(base, opts.Memory, opts.File)}
	if _, err := r.refresh(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close frees what the Reader holds.
func (r *Reader) Close() error {
	err := r.over.Close()
	if r.close != nil {
		err = errors.Join(err, r.close.Close())
	}
	return err
}

// Device is the disk as of the write that Writes gave last.
func (r *Reader) Device() block.Device { return r.over }

// refresh reads the first sector again, and tells whether entries are there
// that have not been read.
func (r *Reader) refresh() (bool, error) {
	var p [superLen]byte
	n, err := r.log.ReadAt(p[:], 0)
	if n < len(p) && err != nil && err != io.EOF {
		return false, fmt.Errorf("logwrites: read the first sector: %w", err)
	}
	if r.opts.Follow && r.super.sector == 0 && (n < len(p) || p == [superLen]byte{}) {
		return false, nil // nothing has been flushed yet
	}
	s, err := parseSuper(&p)
	switch {
	case err != nil:
		return false, err
	case r.super.sector == 0:
		r.off = s.sector
	case s.sector != r.super.sector || s.entries < r.super.entries:
		return false, fmt.Errorf("logwrites: the log was begun anew after %d entries: %w", r.index, mem.ErrInconsistent)
	}
	r.super = s
	return r.index < s.entries, nil
}

// next gives the next entry; io.EOF at the end of a log that is not followed.
func (r *Reader) next(ctx context.Context) (Entry, error) {
	for r.index >= r.super.entries {
		if err := ctx.Err(); err != nil {
			return Entry{}, err
		}
		more, err := r.refresh()
		switch {
		case err != nil:
			return Entry{}, err
		case more:
		case !r.opts.Follow:
			return Entry{}, io.EOF
		default:
			select {
			case <-ctx.Done():
			case <-time.After(r.opts.Poll):
			}
		}
	}
	p, err := r.header(ctx)
	if err != nil {
		return Entry{}, err
	}
	e, err := parseEntry(p, r.index, r.off)
	if err != nil {
		return Entry{}, err
	}
	r.index++
	r.off = e.next
	return e, nil
}

// patience is how long an entry that is counted already may take to be there.
const patience = time.Second

// header reads the sector of the next entry. A writer with several requests at
// once (QEMU) may count an entry before it has written it: that of a followed log
// is waited for.
func (r *Reader) header(ctx context.Context) ([]byte, error) {
	if len(r.head) == 0 {
		r.head = make([]byte, r.super.sector)
	}
	for begun := time.Now(); ; {
		err := r.read(r.head, r.off)
		if err == nil && isZero(r.head[:entryLen]) {
			err = mem.ErrInconsistent // a write of nothing
		}
		if err == nil {
			return r.head, nil
		}
		if !r.opts.Follow || time.Since(begun) > patience {
			return nil, fmt.Errorf("logwrites: entry %d of %d at %d: %w", r.index, r.super.entries, r.off, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(r.opts.Poll):
		}
	}
}

// read fills p, or gives io.ErrUnexpectedEOF.
func (r *Reader) read(p []byte, off int64) error {
	n, err := r.log.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at %d: %w", len(p), off, err)
}

// Entries gives the entries as they lie in the log, without their data and
// without making the writes on the Device. It goes on where the Reader is.
func (r *Reader) Entries(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
			e, err := r.next(ctx)
			if err == io.EOF || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Writes gives the writes of the log, numbered from 1. The log has no times:
// that of a followed log is when the entry was read, that of others is zero. A
// long write comes in pieces, and what holds zeros only as OpZeroes.
func (r *Reader) Writes(ctx context.Context) iter.Seq2[block.Write, error] {
	return func(yield func(block.Write, error) bool) {
		var seq uint64
		give := func(w block.Write) bool {
			seq++
			w.Seq = seq
			if r.opts.Follow {
				w.Time = time.Now()
			}
			if err := r.over.Apply(w); err != nil {
				yield(block.Write{}, fmt.Errorf("logwrites: entry %d: %w", r.index-1, err))
				return false
			}
			return yield(w, nil)
		}
		for e, err := range r.Entries(ctx) {
			if err != nil {
				yield(block.Write{}, err)
				return
			}
			if e.Flags&Mark != 0 {
				if r.opts.Mark != nil {
					r.opts.Mark(e.Name)
				}
				continue
			}
			if e.Flags&Flush != 0 && !give(block.Write{Op: block.OpFlush}) {
				return
			}
			switch {
			case e.Len == 0:
			case e.Flags&Discard != 0:
				if !give(block.Write{Op: block.OpDiscard, Off: e.Off, Len: e.Len}) {
					return
				}
			default:
				if err := r.data(ctx, &e, give); err != nil {
					if err != errStop {
						yield(block.Write{}, err)
					}
					return
				}
			}
		}
	}
}

// errStop says that nobody wants more.
var errStop = errors.New("stop")

// data gives the data of an entry in pieces.
func (r *Reader) data(ctx context.Context, e *Entry, give func(block.Write) bool) error {
	if e.Off > r.base.Size() || e.Len > r.base.Size()-e.Off {
		return fmt.Errorf("logwrites: entry %d: %d bytes at %d: %w", e.Index, e.Len, e.Off, block.ErrOutOfRange)
	}
	for done := int64(0); done < e.Len; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(e.Len-done, maxData)
		if int64(len(r.buf)) < n {
			r.buf = make([]byte, n)
		}
		p := r.buf[:n]
		if err := r.read(p, e.data+done); err != nil {
			return fmt.Errorf("logwrites: data of entry %d: %w", e.Index, err)
		}
		w := block.Write{Op: block.OpWrite, FUA: e.Flags&FUA != 0, Off: e.Off + done, Len: n, Data: p}
		if isZero(p) {
			w.Op, w.Data = block.OpZeroes, nil
		}
		if !give(w) {
			return errStop
		}
		done += n
	}
	return nil
}

// zeros is a page to compare with.
var zeros [4096]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// Index is the number of entries that were read.
func (r *Reader) Index() uint64 { return r.index }
