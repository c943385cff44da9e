package dump

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"vmscope/mem"
)

// Note is an entry of an ELF core's PT_NOTE segment.
type Note struct {
	Name string
	Type uint32
	Desc []byte
}

// Segment is a PT_LOAD segment of a core to be written.
type Segment struct {
	VA    mem.VA
	PA    mem.PA
	Size  uint64
	Flags uint32 // of the program header: 4 read, 2 write, 1 execute
	// Read fills p from the segment's bytes at off. Nil: the bytes are those of
	// segment Of from Off on, and stand in the file once.
	Read func(p []byte, off uint64) error
	Of   int
	Off  uint64
	// Data are the runs of the segment that may hold anything but zeros, as
	// offsets into it; nil is all of it.
	Data []Run
}

// Run is a run of bytes of a segment.
type Run struct{ Off, Size uint64 }

// maxSegments is what the header's 16-bit count holds without section 0.
const maxSegments = pnXNum - 2

// WriteCore writes an ELF64 core of an x86-64 machine, as crash, drgn, gdb and
// Open read it. Runs without data become holes where out is a file that can be
// sought. progress, if not nil, is told the bytes of segments done so far.
//
// A guest that runs changes while it is copied: pause it for a core that is of
// one moment.
func WriteCore(ctx context.Context, out io.Writer, notes []Note, segs []Segment, progress func(done, total uint64)) error {
	if len(segs) > maxSegments {
		return fmt.Errorf("a core of %d segments: at most %d fit", len(segs), maxSegments)
	}
	w := newSparse(out)
	noteBytes := encodeNotes(notes)
	headers := uint64(64 + 56*(len(segs)+1))
	first := align(headers+uint64(len(noteBytes)), mem.PageSize)

	offs := make([]uint64, len(segs))
	at, total := first, uint64(0)
	for i, s := range segs {
		if s.Read != nil {
			offs[i] = at
			at = align(at+s.Size, mem.PageSize)
			total += s.Size
		}
	}
	for i, s := range segs {
		if s.Read == nil {
			offs[i] = offs[s.Of] + s.Off
		}
	}
	if _, err := w.Write(coreHeaders(segs, offs, headers, uint64(len(noteBytes)))); err != nil {
		return err
	}
	if _, err := w.Write(noteBytes); err != nil {
		return err
	}
	if err := w.skip(first - headers - uint64(len(noteBytes))); err != nil {
		return err
	}
	done := uint64(0)
	report := func(n uint64) {
		done += n
		if progress != nil {
			progress(done, total)
		}
	}
	for _, s := range segs {
		if s.Read == nil {
			continue
		}
		if err := w.segment(ctx, s, report); err != nil {
			return err
		}
		if err := w.skip(align(s.Size, mem.PageSize) - s.Size); err != nil {
			return err
		}
	}
	return w.finish()
}

func align(n, to uint64) uint64 { return (n + to - 1) / to * to }

// coreHeaders encodes the ELF header and the program headers (System V ABI,
// chapters 4 and 5).
func coreHeaders(segs []Segment, offs []uint64, noteOff, noteSize uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, 64+56*(len(segs)+1))
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, etCore)
	b = le.AppendUint16(b, emX86)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)  // entry
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)  // no sections
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, 64)
	b = le.AppendUint16(b, 56)
	b = le.AppendUint16(b, uint16(len(segs)+1))
	b = append(b, 0, 0, 0, 0, 0, 0)
	prog := func(typ, flags uint32, off, va, pa, filesz, memsz, algn uint64) {
		b = le.AppendUint32(b, typ)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{off, va, pa, filesz, memsz, algn} {
			b = le.AppendUint64(b, v)
		}
	}
	prog(ptNote, 0, noteOff, 0, 0, noteSize, noteSize, 4)
	for i, s := range segs {
		prog(ptLoad, s.Flags, offs[i], uint64(s.VA), uint64(s.PA), s.Size, s.Size, mem.PageSize)
	}
	return b
}

func encodeNotes(notes []Note) []byte {
	var b []byte
	le := binary.LittleEndian
	for _, n := range notes {
		b = le.AppendUint32(b, uint32(len(n.Name)+1))
		b = le.AppendUint32(b, uint32(len(n.Desc)))
		b = le.AppendUint32(b, n.Type)
		for _, part := range [][]byte{append([]byte(n.Name), 0), n.Desc} {
			b = append(b, part...)
			b = append(b, make([]byte, align(uint64(len(part)), 4)-uint64(len(part)))...)
		}
	}
	return b
}

// sparse writes a stream in which long runs of zeros cost nothing if the file
// can be sought.
type sparse struct {
	out  io.Writer
	file *os.File // out, if it is a regular file
	base int64    // where in file the stream begins
	pos  uint64
}

func newSparse(out io.Writer) *sparse {
	w := &sparse{out: out}
	if f, ok := out.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil {
				w.file, w.base = f, at
			}
		}
	}
	return w
}

func (w *sparse) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.pos += uint64(n)
	return n, err
}

var zeros [64 << 10]byte

func (w *sparse) skip(n uint64) error {
	if w.file != nil {
		w.pos += n
		_, err := w.file.Seek(int64(n), io.SeekCurrent)
		return err
	}
	for n > 0 {
		k, err := w.Write(zeros[:min(n, uint64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= uint64(k)
	}
	return nil
}

// finish gives the file its length if it ends in a hole.
func (w *sparse) finish() error {
	if w.file == nil {
		return nil
	}
	return w.file.Truncate(w.base + int64(w.pos))
}

// chunk is how much of a segment is in memory at a time.
const chunk = 1 << 20

func (w *sparse) segment(ctx context.Context, s Segment, report func(uint64)) error {
	runs := s.Data
	if runs == nil {
		runs = []Run{{0, s.Size}}
	}
	buf := make([]byte, chunk)
	at := uint64(0)
	for _, r := range runs {
		if r.Off < at || r.Off+r.Size > s.Size || r.Off+r.Size < r.Off {
			return fmt.Errorf("core segment at %#x: run %#x+%#x out of place", uint64(s.PA), r.Off, r.Size)
		}
		if err := w.skip(r.Off - at); err != nil {
			return err
		}
		report(r.Off - at)
		for at = r.Off; at < r.Off+r.Size; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(chunk, r.Off+r.Size-at)]
			if err := s.Read(p, at); err != nil {
				return err
			}
			if _, err := w.Write(p); err != nil {
				return err
			}
			at += uint64(len(p))
			report(uint64(len(p)))
		}
	}
	report(s.Size - at)
	return w.skip(s.Size - at)
}
