package dump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"vmscope/mem"
	"vmscope/vm"
)

const kdumpMagic = "KDUMP   "

// The places of a 64-bit machine's kdump-compressed dump: struct
// disk_dump_header, in the next block struct kdump_sub_header, then two bitmaps
// of page frames (RAM, and what of it was dumped), then a page descriptor for
// each dumped frame, then the pages (makedumpfile's IMPLEMENTATION and
// diskdump_mod.h; QEMU include/sysemu/dump.h).
const (
	kdVersion     = 8
	kdMachine     = 12 + 4*65 // of struct new_utsname
	kdStatus      = 424
	kdBlockSize   = 428
	kdSubBlocks   = 432
	kdBitmap      = 436 // blocks, both bitmaps
	kdMaxFrame    = 440 // 32 bits of it
	kdHeader      = 464
	kdSubLevel    = 8
	kdSubSplit    = 12
	kdSubNote     = 48
	kdSubNoteSize = 56
	kdSubStart    = 80 // of split dumps; from header version 6
	kdSubEnd      = 88
	kdSubMax      = 96
	kdSubSize     = 104

	kdIncomplete = 8 // of the status

	kdDesc = 24 // of struct page_desc: offset, size, flags, page flags

	// maxFrames is 16 TiB of RAM in pages of 4 KiB. Both bitmaps are held in
	// memory: what of them the dump has, at most 1 GiB.
	maxFrames = 1 << 32
)

// ErrExcluded says that whoever made a dump left a page of the guest's RAM out
// of it. It is a mem.ErrUnreachable as well.
var ErrExcluded error = excluded{}

type excluded struct{}

func (excluded) Error() string        { return "the dump leaves this page out" }
func (excluded) Is(target error) bool { return target == mem.ErrUnreachable }

// kdump is a kdump-compressed dump, or a piece of one that was split.
type kdump struct {
	src        source
	page       uint64 // bytes
	level      uint32 // of what was left out (makedumpfile -d)
	ram        bitmap
	dumped     bitmap
	first, end uint64 // the frames whose pages are here
	split      bool
	desc       uint64 // offset of the descriptor of the first of them
	before     uint64 // frames dumped below first
	status     uint32
	machine    string
	rams       []mem.Range
	notes      []byte
}

// parseKdump reads the headers and bitmaps.
func parseKdump(src source, truncated bool) (*kdump, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: kdump-compressed dump: %s", ErrFormat, fmt.Sprintf(format, a...))
	}
	cut := func(what string, end uint64) error {
		return fmt.Errorf("%w: kdump-compressed dump: %s end at byte %d, the file has %d", ErrTruncated, what, end, src.Size())
	}
	var h [kdHeader]byte
	if err := readFull(src, h[:], 0); err != nil {
		return nil, cut("its headers", uint64(len(h)))
	}
	le := binary.LittleEndian
	version := le.Uint32(h[kdVersion:])
	machine, _, _ := strings.Cut(string(h[kdMachine:kdMachine+65]), "\x00")
	k := &kdump{src: src, page: uint64(le.Uint32(h[kdBlockSize:])), status: le.Uint32(h[kdStatus:]), machine: machine}
	switch {
	case version < 1 || version > 64:
		return nil, bad("header version %d; big-endian machines are not supported", version)
	case k.page < mem.PageSize || k.page > maxUnit || k.page&(k.page-1) != 0:
		return nil, bad("pages of %d bytes in the header at offset %d; 32-bit machines are not supported", k.page, kdBlockSize)
	case k.status&kdIncomplete != 0 && !truncated:
		return nil, fmt.Errorf("%w: kdump-compressed dump: its writer ran out of room, says the header", ErrTruncated)
	}
	var s [kdSubSize]byte
	subBlocks := uint64(le.Uint32(h[kdSubBlocks:]))
	if subBlocks == 0 || subBlocks > 1<<20 {
		return nil, bad("a sub-header of %d blocks", subBlocks)
	}
	if err := readFull(src, s[:], k.page); err != nil {
		return nil, cut("its headers", k.page+kdSubSize)
	}
	k.level = le.Uint32(s[kdSubLevel:])
	frames := uint64(le.Uint32(h[kdMaxFrame:]))
	if version >= 6 {
		frames = le.Uint64(s[kdSubMax:])
	}
	bitmaps := uint64(le.Uint32(h[kdBitmap:])) * k.page
	start := (1 + subBlocks) * k.page
	switch {
	case frames == 0 || frames > maxFrames:
		return nil, bad("%d page frames", frames)
	case (frames+7)/8 > bitmaps/2:
		return nil, bad("bitmaps of %d bytes for %d page frames", bitmaps, frames)
	case start+bitmaps > src.Size():
		return nil, cut("its bitmaps", start+bitmaps)
	}
	var err error
	if k.ram, err = readBitmap(src, start, frames); err != nil {
		return nil, err
	}
	if k.dumped, err = readBitmap(src, start+bitmaps/2, frames); err != nil {
		return nil, err
	}
	k.desc, k.end = start+bitmaps, frames
	if k.split = version >= 2 && le.Uint32(s[kdSubSplit:]) != 0; k.split {
		if version < 6 {
			k.first, k.end = le.Uint64(s[16:]), le.Uint64(s[24:])
		} else {
			k.first, k.end = le.Uint64(s[kdSubStart:]), le.Uint64(s[kdSubEnd:])
		}
		if k.first > k.end || k.end > frames {
			return nil, bad("a piece of the frames %#x to %#x, of %#x", k.first, k.end, frames)
		}
	}
	k.before = k.dumped.below(k.first)
	count := k.dumped.below(k.end) - k.before
	if end := k.desc + count*kdDesc; end > src.Size() {
		return nil, cut(fmt.Sprintf("its %d page descriptors", count), end)
	}
	if count > 0 && !truncated {
		u, err := k.descriptor(count - 1)
		if err == nil && u.off+u.len > src.Size() {
			return nil, cut("its pages", u.off+u.len)
		}
	}
	if k.rams, err = k.ram.runs(k.page); err != nil {
		return nil, bad("%v", err)
	}
	if version >= 4 {
		off, size := le.Uint64(s[kdSubNote:]), le.Uint64(s[kdSubNoteSize:])
		if off < src.Size() { // registers are a hint
			k.notes = make([]byte, min(size, src.Size()-off, maxNotes))
			if err := readFull(src, k.notes, off); err != nil {
				return nil, fmt.Errorf("%w: kdump-compressed dump: notes at offset %#x: %w", ErrTruncated, off, err)
			}
		}
	}
	return k, nil
}

// descriptor reads the nth page descriptor of the file.
func (k *kdump) descriptor(n uint64) (unit, error) {
	var b [kdDesc]byte
	at := k.desc + n*kdDesc
	if err := readFull(k.src, b[:], at); err != nil {
		return unit{}, fmt.Errorf("%w: %q, page descriptor at offset %#x: %w", mem.ErrUnreachable, k.src.Name(), at, err)
	}
	u, err := k.decode(b[:])
	if err != nil {
		return unit{}, fmt.Errorf("%w: %q, page descriptor at offset %#x: %w", mem.ErrUnreachable, k.src.Name(), at, err)
	}
	return u, nil
}

// decode decodes struct page_desc.
func (k *kdump) decode(b []byte) (unit, error) {
	le := binary.LittleEndian
	off, size, flags := le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	u := unit{size: k.page, src: k.src, off: off, len: uint64(size)}
	switch flags & 0x27 {
	case 0:
		u.codec = stored
	case 1:
		u.codec = byZlib
	case 2:
		u.codec = byLZO
	case 4:
		u.codec = bySnappy
	case 0x20:
		u.codec = byZstd
	default:
		return u, fmt.Errorf("compression %#x is not known", flags)
	}
	if off > maxFile || u.len == 0 || u.len > 2*k.page || u.codec == stored && u.len != k.page {
		return u, fmt.Errorf("a page of %d bytes, compression %#x, at offset %#x", size, flags, off)
	}
	return u, nil
}

func (k *kdump) find(pa mem.PA) (unit, error) {
	n := uint64(pa) / k.page
	switch {
	case !k.ram.has(n):
		return unit{}, mem.ErrNoRAM
	case !k.dumped.has(n):
		return k.leftOut(n)
	case n < k.first || n >= k.end:
		return unit{}, fmt.Errorf("%w: it is in another piece of the split dump; this one has %#x to %#x", ErrExcluded, k.first*k.page, k.end*k.page)
	}
	u, err := k.descriptor(k.dumped.below(n) - k.before)
	u.pa = mem.PA(n * k.page)
	return u, err
}

// leftOut is a page that is RAM and not in the dump: zeros, if nothing else was
// left out (makedumpfile -d 1).
func (k *kdump) leftOut(n uint64) (unit, error) {
	if k.level == 1 {
		return unit{pa: mem.PA(n * k.page), size: k.page, src: k.src, codec: blank}, nil
	}
	return unit{}, ErrExcluded
}

func (k *kdump) ranges() []mem.Range { return k.rams }

// extents are the dumped pages but for those of zeros, which share one place in
// the file.
func (k *kdump) extents() ([]mem.Range, error) {
	var out []mem.Range
	zeroAt := ^uint64(0)
	last, before := zeroAt, uint64(0) // of the page before: where it is packed, its frame
	x := newUnpacker()
	page := make([]byte, k.page)
	buf := make([]byte, 4096*kdDesc)
	left := k.dumped.below(k.end) - k.before
	at, have := k.desc, 0
	for n := range k.dumped.from(k.first, k.end) {
		if have == 0 {
			have = int(min(left, 4096))
			if err := readFull(k.src, buf[:have*kdDesc], at); err != nil {
				return nil, fmt.Errorf("%w: %q, page descriptors at offset %#x: %w", mem.ErrUnreachable, k.src.Name(), at, err)
			}
			buf = buf[:have*kdDesc]
			at, left = at+uint64(len(buf)), left-uint64(have)
		}
		d := buf[len(buf)-have*kdDesc:]
		have--
		off := binary.LittleEndian.Uint64(d)
		if off == last && off != zeroAt {
			u, err := k.decode(d)
			if err == nil && x.read(page, u, 0) == nil && isZero(page) {
				zeroAt = off
				// The page before was the first of them.
				if i := len(out) - 1; i >= 0 && out[i].End() > mem.PA(before*k.page) {
					if out[i].Size -= k.page; out[i].Size == 0 {
						out = out[:i]
					}
				}
			}
		}
		last, before = off, n
		if off == zeroAt || !k.ram.has(n) {
			continue
		}
		out = addExtent(out, mem.Range{Start: mem.PA(n * k.page), Size: k.page}, maxExtents)
	}
	return out, nil
}

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if string(p[:n]) != string(zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// openKdump opens a kdump-compressed dump; flattened tells in which form. file is its
// own from then on.
func openKdump(path string, file source, flattened bool, o options) (vm.Machine, error) {
	src, how := file, "kdump-compressed"
	if flattened {
		flat, err := openFlat(file)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		var magic [8]byte
		if err := readFull(flat, magic[:], 0); err != nil || string(magic[:]) != kdumpMagic {
			return nil, errors.Join(fmt.Errorf("%w: it is a flattened dump, but not a kdump-compressed one; put it in order first: makedumpfile -R", ErrFormat), file.Close())
		}
		src, how = flat, "flattened kdump-compressed"
	}
	k, err := parseKdump(src, o.truncated)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	var in store = k
	layout, done := k.layout(), file.Close
	if k.split {
		s, err := k.join(o.truncated)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		in, layout, done = s, layout+s.missing(), func() error { return errors.Join(s.close(), file.Close()) }
	}
	m := newLazy(path, how+", unpacked as it is read:", layout, in, done)
	if k.machine == "x86_64" {
		c := core{machine: emX86}
		m.regs = c.registers(notes(k.notes))
	}
	return m, nil
}

// layout says what the dump lacks.
func (k *kdump) layout() string {
	s := "the dump's bitmap of RAM"
	if k.status&kdIncomplete != 0 {
		s += "; incomplete"
	}
	all, here := k.ram.below(k.ram.bits), k.dumped.below(k.dumped.bits)
	if all > here {
		s += fmt.Sprintf("; %d of %d pages left out (level %d)", all-here, all, k.level)
	}
	return s
}
