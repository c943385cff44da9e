package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"vmscope/internal/ramfile"
	"vmscope/mem"
	"vmscope/vm"
)

// The header before each range of a LiME dump (LiME doc/README.md, struct
// lime_mem_range_header), and of AVML's, which differs by its magic and has the
// range behind it as framed Snappy and then its packed size (AVML src/image.rs):
// magic, version, first address, last address, 8 bytes of nothing.
const (
	limeMagic  = "EMiL"
	avmlMagic  = "AVML"
	limeHeader = 32
)

// limeRange is a header, decoded.
type limeRange struct {
	packed bool
	pa     uint64
	size   uint64
}

// limeAt reads the header at off.
func limeAt(src interface {
	ReadAt([]byte, int64) (int, error)
}, off uint64) (limeRange, error) {
	var h [limeHeader]byte
	if err := readFull(src, h[:], off); err != nil {
		return limeRange{}, fmt.Errorf("%w: header of a range at offset %#x: %w", ErrTruncated, off, err)
	}
	le := binary.LittleEndian
	magic, version, start, last := string(h[:4]), le.Uint32(h[4:]), le.Uint64(h[8:]), le.Uint64(h[16:])
	r := limeRange{packed: magic == avmlMagic, pa: start, size: last - start + 1}
	switch {
	case magic == limeMagic && version == 1, magic == avmlMagic && version == 2:
	default:
		return r, fmt.Errorf("%w: magic %q, version %d in the header of a range at offset %#x: not known", ErrFormat, magic, version, off)
	}
	if last > maxPA || last+1 < start {
		return r, fmt.Errorf("%w: a range of %#x to %#x at offset %#x: no machine has that", ErrFormat, start, last, off)
	}
	return r, nil
}

// openLime opens a LiME dump: ranges, each as it is.
func openLime(path string, file *ramfile.File, o options) (vm.Machine, error) {
	var list []piece
	for off := uint64(0); off < file.Size(); {
		r, err := limeAt(file, off)
		if errors.Is(err, ErrTruncated) && o.truncated && len(list) > 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("LiME dump: %w", err)
		}
		off += limeHeader
		left := file.Size() - off
		switch {
		case r.packed:
			return nil, fmt.Errorf("%w: LiME dump: a range of AVML at offset %#x", ErrFormat, off-limeHeader)
		case r.size > left && !o.truncated:
			return nil, fmt.Errorf("%w: LiME dump: the range at offset %#x has %d bytes, of which the file has %d", ErrTruncated, off, r.size, left)
		case len(list) == maxSegs:
			return nil, fmt.Errorf("%w: LiME dump of more than %d ranges", ErrFormat, maxSegs)
		}
		if n := min(r.size, left); n > 0 {
			list = append(list, piece{r.pa, n, off})
		}
		off += min(r.size, left)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: LiME dump without memory", ErrFormat)
	}
	places, err := pages(file, union(list))
	if err != nil {
		return nil, err
	}
	return newMachine(path, file, places, "the ranges of LiME")
}

// openAVML opens a dump of AVML: ranges of framed Snappy. The frames, of at most
// 64 KiB each, are listed, and unpacked when they are read. src is its own from then
// on.
func openAVML(path string, src source, o options) (vm.Machine, error) {
	a := &avml{src: src}
	if err := a.list(o.truncated); err != nil {
		src.Close()
		return nil, fmt.Errorf("AVML dump: %w", err)
	}
	return newLazy(path, "AVML, unpacked as it is read:", "the ranges of AVML; it leaves out blocks of zeros", a, src.Close), nil
}

// frame is a run of memory, packed.
type frame struct {
	pa, off   uint64 // off: of the check sum and what follows it
	size, len uint32
	codec     codec
}

// avml is where an AVML dump has its memory.
type avml struct {
	src    source
	frames []frame // sorted, disjoint
	ram    []mem.Range
}

// maxFramesAVML bounds the frames of a file of size bytes. All are of 64 KiB, and of
// those one of zeros is the shortest, which takes 3 KiB; but the last of a range is
// as long as what is left.
func maxFramesAVML(size uint64) uint64 { return 1<<16 + size/1024 }

// list reads the headers of all ranges and frames.
func (a *avml) list(truncated bool) error {
	for off := uint64(0); off < a.src.Size(); {
		end, err := a.block(off)
		if errors.Is(err, ErrTruncated) && truncated && len(a.frames) > 0 {
			break
		}
		if err != nil {
			return err
		}
		off = end
	}
	slices.SortFunc(a.frames, func(x, y frame) int {
		if x.pa < y.pa {
			return -1
		}
		return 1
	})
	for i, f := range a.frames {
		r := mem.Range{Start: mem.PA(f.pa), Size: uint64(f.size)}
		switch n := len(a.ram); {
		case i > 0 && a.ram[n-1].End() > r.Start:
			return fmt.Errorf("%w: memory at %#x is there twice, once at offset %#x", ErrFormat, f.pa, f.off)
		case i > 0 && a.ram[n-1].End() == r.Start:
			a.ram[n-1].Size += r.Size
		default:
			a.ram = append(a.ram, r)
		}
	}
	if len(a.ram) == 0 {
		return fmt.Errorf("%w: without memory", ErrFormat)
	}
	return nil
}

// block lists the frames of the range at off and gives the offset behind it.
func (a *avml) block(off uint64) (uint64, error) {
	r, err := limeAt(a.src, off)
	if err != nil {
		return 0, err
	}
	begin := off + limeHeader
	at, pa, end := begin, r.pa, r.pa+r.size
	if !r.packed {
		return 0, fmt.Errorf("%w: a range of LiME at offset %#x", ErrFormat, off)
	}
	for pa < end {
		f, next, err := a.frame(at)
		if err != nil {
			return 0, err
		}
		at = next
		if f.size == 0 {
			continue
		}
		if uint64(len(a.frames)) == maxFramesAVML(a.src.Size()) {
			return 0, fmt.Errorf("%w: frame at offset %#x: more frames of less than 64 KiB than AVML writes", ErrFormat, f.off)
		}
		if uint64(f.size) > end-pa {
			return 0, fmt.Errorf("%w: frame at offset %#x: more memory than the range at offset %#x has", ErrFormat, f.off, off)
		}
		f.pa = pa
		pa += uint64(f.size)
		a.frames = append(a.frames, f)
	}
	var b [8]byte
	if err := readFull(a.src, b[:], at); err != nil {
		return 0, fmt.Errorf("%w: the end of the range at offset %#x: %w", ErrTruncated, off, err)
	}
	if n := binary.LittleEndian.Uint64(b[:]); n != at-begin {
		return 0, fmt.Errorf("%w: the range at offset %#x takes %d bytes, and says %d at its end", ErrFormat, off, at-begin, n)
	}
	return at + 8, nil
}

// frame reads the header of a chunk of framed Snappy (google/snappy,
// framing_format.txt) and gives the offset behind it. One without data has size 0.
func (a *avml) frame(at uint64) (frame, uint64, error) {
	var h [13]byte
	n, _ := a.src.ReadAt(h[:], int64(at))
	if n < 4 {
		return frame{}, 0, fmt.Errorf("%w: no frame at offset %#x", ErrTruncated, at)
	}
	typ, size := h[0], uint32(h[1])|uint32(h[2])<<8|uint32(h[3])<<16
	f, next := frame{off: at + 4, len: size}, at+4+uint64(size)
	if next > a.src.Size() {
		return f, 0, fmt.Errorf("%w: the frame at offset %#x has %d bytes, of which the file has %d", ErrTruncated, at, size, a.src.Size()-at-4)
	}
	bad := func() (frame, uint64, error) {
		return f, 0, fmt.Errorf("%w: frame of type %#x and %d bytes at offset %#x", ErrFormat, typ, size, at)
	}
	switch {
	case typ == 0 && size > 4:
		v, k := binary.Uvarint(h[8:n])
		if k <= 0 || v == 0 || v > maxUnit || size > 2*maxUnit {
			return bad()
		}
		f.size, f.codec = uint32(v), byFrame
	case typ == 1 && size > 4 && size <= maxUnit+4:
		f.size, f.off, f.len, f.codec = size-4, f.off+4, size-4, stored
	case typ == 0xff && size == 6, typ >= 0x80 && typ < 0xff: // head, padding, to be skipped
	default:
		return bad()
	}
	return f, next, nil
}

func (a *avml) find(pa mem.PA) (unit, error) {
	i, _ := slices.BinarySearchFunc(a.frames, uint64(pa), func(f frame, pa uint64) int {
		if f.pa+uint64(f.size) <= pa {
			return -1
		}
		return 1
	})
	if i == len(a.frames) || a.frames[i].pa > uint64(pa) {
		return unit{}, mem.ErrNoRAM
	}
	f := a.frames[i]
	return unit{pa: mem.PA(f.pa), size: uint64(f.size), src: a.src, off: f.off, len: uint64(f.len), codec: f.codec}, nil
}

func (a *avml) ranges() []mem.Range { return a.ram }

func (a *avml) extents() ([]mem.Range, error) { return a.ram, nil }
