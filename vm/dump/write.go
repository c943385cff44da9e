package dump

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"vmscope/mem"
)

// Segment is a PT_LOAD segment of a core to be written.
type Segment struct {
	VA    mem.VA
	PA    mem.PA
	Size  uint64
	Flags uint32 // of the program header: 4 read, 2 write, 1 execute
	// Read fills p from the segment's bytes at off. Nil: the bytes are those of
	// the earlier segment Of from Off on, and stand in the file once.
	Read func(p []byte, off uint64) error
	Of   int
	Off  uint64
	// Absent says that the core has no bytes of the segment (p_filesz is 0): a
	// debugger takes them from the file that is mapped there.
	Absent bool
	// Data are the runs of the segment that may hold anything but zeros, as
	// offsets into it, in order; nil is all of it.
	Data []Run
}

// Run is a run of bytes of a segment.
type Run struct{ Off, Size uint64 }

// maxSegments is what Open reads, less the notes.
const maxSegments = maxSegs - 1

// WriteCore writes an ELF64 core of a machine with such a processor, as crash,
// drgn, gdb and Open read it; its notes are of that too. The first segment must have bytes of its own. Runs without data
// become holes where out is a regular file and written at its end. progress, if
// not nil, is told the bytes of segments done so far. Nothing is written if the
// segments make no sense.
//
// A guest that runs changes while it is copied: pause it for a core that is of
// one moment.
func WriteCore(ctx context.Context, out io.Writer, processor elf.Machine, notes []Note, segs []Segment, progress func(done, total uint64)) error {
	if err := check(segs); err != nil {
		return err
	}
	w := newSparse(out)
	noteBytes := encodeNotes(notes)
	headers := uint64(64 + 56*(len(segs)+1))
	if len(segs)+1 >= pnXNum {
		headers += 64
	}
	first := align(headers+uint64(len(noteBytes)), mem.PageSize)

	offs := make([]uint64, len(segs))
	at, total := first, uint64(0)
	for i, s := range segs {
		switch {
		case s.Absent:
			offs[i] = at
		case s.Read != nil:
			offs[i] = at
			at = align(at+s.Size, mem.PageSize)
			total += s.Size
		default:
			offs[i] = offs[s.Of] + s.Off
		}
	}
	if _, err := w.Write(coreHeaders(processor, segs, offs, headers, uint64(len(noteBytes)))); err != nil {
		return err
	}
	if _, err := w.Write(noteBytes); err != nil {
		return err
	}
	if err := w.skip(ctx, first-headers-uint64(len(noteBytes))); err != nil {
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
		if s.Read == nil || s.Absent {
			continue
		}
		if err := w.segment(ctx, s, report); err != nil {
			return err
		}
		if err := w.skip(ctx, align(s.Size, mem.PageSize)-s.Size); err != nil {
			return err
		}
	}
	return nil
}

// maxSegment bounds a segment, and their sum, far below what wraps around.
const maxSegment = 1 << 56

// check rejects segments that cannot be written as they are described.
func check(segs []Segment) error {
	bad := func(i int, format string, a ...any) error {
		return fmt.Errorf("segment %d of the core, at %#x: %s", i, uint64(segs[i].PA), fmt.Sprintf(format, a...))
	}
	if len(segs) > maxSegments {
		return fmt.Errorf("a core of %d segments: at most %d fit", len(segs), maxSegments)
	}
	sum := uint64(0)
	for i, s := range segs {
		if s.Size > maxSegment || sum+s.Size > maxSegment {
			return bad(i, "%d bytes are more than any machine has", s.Size)
		}
		sum += s.Size
		if s.Absent {
			continue
		}
		if s.Read == nil {
			switch {
			case s.Of < 0 || s.Of >= i || segs[s.Of].Read == nil || segs[s.Of].Absent:
				return bad(i, "its bytes would be those of segment %d, which has none before it", s.Of)
			case s.Off > segs[s.Of].Size || s.Size > segs[s.Of].Size-s.Off:
				return bad(i, "%#x+%#x lies outside of segment %d", s.Off, s.Size, s.Of)
			}
			continue
		}
		at := uint64(0)
		for _, r := range s.Data {
			if r.Off < at || r.Off > s.Size || r.Size > s.Size-r.Off {
				return bad(i, "run %#x+%#x is out of place", r.Off, r.Size)
			}
			at = r.Off + r.Size
		}
	}
	return nil
}

func align(n, to uint64) uint64 { return (n + to - 1) / to * to }

// coreHeaders encodes the ELF header and the program headers (System V ABI,
// chapters 4 and 5), and behind them, if there are more of these than fit the
// header's 16 bits, the section 0 that counts them.
//
// crash takes a core for a kernel's by p_align 0 in the first PT_LOAD, and all
// that precedes this segment in the file for the header, which it reads into
// memory (crash's netdump.c, is_netdump).
func coreHeaders(processor elf.Machine, segs []Segment, offs []uint64, noteOff, noteSize uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, 64+56*(len(segs)+1))
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, etCore)
	b = le.AppendUint16(b, uint16(processor))
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)  // entry
	b = le.AppendUint64(b, 64) // program headers
	num, sections := uint64(len(segs)+1), uint64(0)
	if num >= pnXNum {
		sections = 64 + 56*num
	}
	b = le.AppendUint64(b, sections)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, 64)
	b = le.AppendUint16(b, 56)
	b = le.AppendUint16(b, uint16(min(num, pnXNum)))
	if sections == 0 {
		b = append(b, 0, 0, 0, 0, 0, 0)
	} else {
		b = append(b, 64, 0, 1, 0, 0, 0)
	}
	prog := func(typ, flags uint32, off, va, pa, inFile, size, algn uint64) {
		b = le.AppendUint32(b, typ)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{off, va, pa, inFile, size, algn} {
			b = le.AppendUint64(b, v)
		}
	}
	prog(ptNote, 0, noteOff, 0, 0, noteSize, noteSize, 4)
	for i, s := range segs {
		inFile := s.Size
		if s.Absent {
			inFile = 0
		}
		prog(ptLoad, s.Flags, offs[i], uint64(s.VA), uint64(s.PA), inFile, s.Size, 0)
	}
	if sections != 0 {
		var zero [64]byte
		le.PutUint32(zero[44:], uint32(num)) // sh_info
		b = append(b, zero[:]...)
	}
	return b
}

// sparse writes a stream in which long runs of zeros cost nothing if it goes to
// the end of a regular file.
type sparse struct {
	out  io.Writer
	file *os.File // out, if it is such a file
	end  int64    // of file
	buf  []byte   // of a chunk
}

func newSparse(out io.Writer) *sparse {
	w := &sparse{out: out}
	f, ok := out.(*os.File)
	if !ok {
		return w
	}
	// Before the file's end a hole would show what is there.
	st, err := f.Stat()
	at, serr := f.Seek(0, io.SeekCurrent)
	if err == nil && serr == nil && st.Mode().IsRegular() && at == st.Size() {
		w.file, w.end = f, at
	}
	return w
}

func (w *sparse) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.end += int64(n)
	return n, err
}

var zeros [64 << 10]byte

func (w *sparse) skip(ctx context.Context, n uint64) error {
	if w.file != nil && n > 0 {
		// Growing it, rather than only seeking, serves files opened to append
		// and a hole at the end.
		w.end += int64(n)
		if err := w.file.Truncate(w.end); err != nil {
			return err
		}
		_, err := w.file.Seek(w.end, io.SeekStart)
		return err
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := w.Write(zeros[:min(n, uint64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= uint64(k)
	}
	return nil
}

// chunk is how much of a segment is in memory at a time.
const chunk = 1 << 20

func (w *sparse) segment(ctx context.Context, s Segment, report func(uint64)) error {
	runs := s.Data
	if runs == nil {
		runs = []Run{{0, s.Size}}
	}
	if w.buf == nil {
		w.buf = make([]byte, chunk)
	}
	at := uint64(0)
	for _, r := range runs {
		if err := w.skip(ctx, r.Off-at); err != nil {
			return err
		}
		report(r.Off - at)
		for at = r.Off; at < r.Off+r.Size; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := w.buf[:min(chunk, r.Off+r.Size-at)]
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
	return w.skip(ctx, s.Size-at)
}
