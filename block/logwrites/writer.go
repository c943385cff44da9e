package logwrites

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"vmscope/block"
)

// Writer writes a log. It is not safe for concurrent use.
type Writer struct {
	out io.WriterAt
	// holes: what is not written reads as zeros.
	holes bool
	close io.Closer

	super super
	off   int64 // where the next byte goes, those in buf counted
	buf   *bufio.Writer
	head  []byte // a sector
	err   error
}

// ErrUnaligned says that a write does not begin or end at a sector of the log.
var ErrUnaligned = errors.New("logwrites: not whole sectors")

// Create begins a log in a new file, with sectors of so many bytes: those of
// the disk, or 512.
func Create(path string, sector int) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w, err := NewWriter(f, sector)
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	w.close, w.holes = f, true
	return w, nil
}

// NewWriter begins a log on out, of which every byte will be written.
func NewWriter(out io.WriterAt, sector int) (*Writer, error) {
	if sector < minSector || sector > maxSector || bits.OnesCount(uint(sector)) != 1 {
		return nil, fmt.Errorf("logwrites: sectors of %d bytes: %w", sector, errors.ErrUnsupported)
	}
	w := &Writer{out: out, super: super{sector: int64(sector)}, head: make([]byte, sector), off: int64(sector)}
	w.buf = bufio.NewWriterSize(&tail{out, w.off}, 1<<18)
	return w, w.Flush()
}

// tail writes one after the other.
type tail struct {
	out io.WriterAt
	off int64
}

func (t *tail) Write(p []byte) (int, error) {
	n, err := t.out.WriteAt(p, t.off)
	t.off += int64(n)
	return n, err
}

// Add logs a write; one of nothing is passed over. It fails with ErrUnaligned for what is not whole sectors,
// and refuses a write whose content is not known. After an error of the file
// every call gives that error.
func (w *Writer) Add(b block.Write) error {
	e := Entry{Off: b.Off, Len: b.Len}
	if b.FUA {
		e.Flags |= FUA
	}
	if mask := w.super.sector - 1; b.Off < 0 || b.Len < 0 || b.Off&mask != 0 || b.Len&mask != 0 {
		return fmt.Errorf("%w: write %d, %d bytes at %d", ErrUnaligned, b.Seq, b.Len, b.Off)
	}
	if b.Len == 0 && b.Op != block.OpFlush {
		return w.err
	}
	switch b.Op {
	case block.OpFlush:
		w.entry(&Entry{Flags: Flush})
		return w.Flush()
	case block.OpDiscard:
		e.Flags |= Discard
		return w.entry(&e)
	case block.OpZeroes:
		w.entry(&e)
		return w.zeroes(b.Len)
	case block.OpWrite:
		if int64(len(b.Data)) != b.Len {
			return fmt.Errorf("logwrites: write %d has %d bytes of %d", b.Seq, len(b.Data), b.Len)
		}
		w.entry(&e)
		return w.write(b.Data)
	}
	return fmt.Errorf("logwrites: write %d: unknown %v", b.Seq, b.Op)
}

// Mark gives a name to this place of the log. It must fit into a sector.
func (w *Writer) Mark(name string) error {
	if len(name) >= len(w.head)-entryLen {
		return fmt.Errorf("logwrites: a mark of %d bytes is too long", len(name))
	}
	w.entry(&Entry{Flags: Mark, Name: name})
	return w.Flush()
}

// entry logs the sector of an entry and counts it.
func (w *Writer) entry(e *Entry) error {
	e.encode(w.head)
	w.super.entries++
	return w.write(w.head)
}

func (w *Writer) write(p []byte) error {
	if w.err == nil {
		var n int
		n, w.err = w.buf.Write(p)
		w.off += int64(n)
	}
	return w.err
}

// zeroes leaves a hole, or writes zeros.
func (w *Writer) zeroes(n int64) error {
	if !w.holes {
		for ; n > 0 && w.err == nil; n -= min(n, int64(len(zeros))) {
			w.write(zeros[:min(n, int64(len(zeros)))])
		}
		return w.err
	}
	if w.err == nil {
		w.err = w.buf.Flush()
	}
	w.off += n
	w.buf.Reset(&tail{w.out, w.off})
	return w.err
}

// Flush hands all entries to the file, and then counts them in the first
// sector: a reader that follows the log sees them from then on. It does not
// make them durable.
func (w *Writer) Flush() error {
	if w.err == nil {
		w.err = w.buf.Flush()
	}
	if f, ok := w.out.(*os.File); ok && w.err == nil && w.holes {
		w.err = f.Truncate(w.off) // a hole at the end
	}
	if w.err != nil {
		return w.err
	}
	clear(w.head)
	w.super.encode((*[superLen]byte)(w.head))
	_, w.err = w.out.WriteAt(w.head, 0)
	return w.err
}

// Close flushes the log and closes the file that Create made.
func (w *Writer) Close() error {
	err := w.Flush()
	if w.close != nil {
		err = errors.Join(err, w.close.Close())
	}
	return err
}
