package gunzip

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
)

// RFC 1951, the deflate format.
const (
	window   = 32 << 10 // how far back a match may reach, bytes
	maxMatch = 258

	// slack is how much of the output a step may write beyond what it says: a match, rounded up to words.
	slack = maxMatch + 16
	// ahead is how much of the input a symbol is decoded from at most, rounded up.
	ahead = 16

	primary = 10 // bits of a code that are looked up at once; longer codes, which are rare, bit by bit
	maxCode = 15 // bits of a code

	literals  = 288
	distances = 32
)

var errCorrupt = errors.New("the packed data are broken")

// entry is what a code stands for: its length in bits 0 to 3 (0: no such code of at most primary bits), how many bits extend it
// in bits 4 to 7, its kind in bits 8 and 9, and its value from bit 16 on.
type entry uint32

const (
	kindLiteral = 0 << 8
	kindMatch   = 1 << 8
	kindEnd     = 2 << 8
	kindBad     = 3 << 8
	kindMask    = 3 << 8
)

// Section 3.2.5. The last codes of both stand for nothing.
var lengthEntries, distanceEntries = makeEntries()

func makeEntries() (l [literals]entry, d [distances]entry) {
	for i := range 256 {
		l[i] = kindLiteral | entry(i)<<16
	}
	l[256] = kindEnd
	base := 3
	for i := range 28 {
		extra := max(0, i/4-1)
		l[257+i] = kindMatch | entry(extra)<<4 | entry(base)<<16
		base += 1 << extra
	}
	l[285] = kindMatch | maxMatch<<16
	l[286], l[287] = kindBad, kindBad
	base = 1
	for i := range 30 {
		extra := max(0, i/2-1)
		d[i] = kindMatch | entry(extra)<<4 | entry(base)<<16
		base += 1 << extra
	}
	d[30], d[31] = kindBad, kindBad
	return l, d
}

// huffman is a code of section 3.2.2.
type huffman struct {
	quick  [1 << primary]entry
	counts [maxCode + 1]uint16 // of codes by their length
	sorted [literals]entry     // by code
}

// set makes the code in which symbol i has lengths[i] bits. A code must leave nothing open, but that of one symbol (as zlib's
// inflate has it: of distances, and of literals that are but an end) and the empty one.
func (h *huffman) set(lengths []uint8, entries []entry) error {
	h.counts = [maxCode + 1]uint16{}
	for _, n := range lengths {
		h.counts[n]++
	}
	used := len(lengths) - int(h.counts[0])
	h.counts[0] = 0
	left := 1
	var code, at [maxCode + 2]uint16
	for n := 1; n <= maxCode; n++ {
		if left = left<<1 - int(h.counts[n]); left < 0 {
			return errCorrupt
		}
		at[n+1] = at[n] + h.counts[n]
		code[n+1] = (code[n] + h.counts[n]) << 1
	}
	if left > 0 && (used > 1 || used == 1 && h.counts[1] != 1) {
		return errCorrupt
	}
	clear(h.quick[:])
	for i, n := range lengths {
		if n == 0 {
			continue
		}
		e := entries[i] | entry(n)
		h.sorted[at[n]] = e
		at[n]++
		if n <= primary {
			for j := int(bits.Reverse16(code[n]) >> (16 - n)); j < len(h.quick); j += 1 << n {
				h.quick[j] = e
			}
		}
		code[n]++
	}
	return nil
}

// slow decodes the code that b begins with, bit by bit; 0: none.
func (h *huffman) slow(b uint64) entry {
	code, first, at := 0, 0, 0
	for n := 1; n <= maxCode; n++ {
		code |= int(b & 1)
		b >>= 1
		count := int(h.counts[n])
		if code-count < first {
			return h.sorted[at+code-first]
		}
		at += count
		first = (first + count) << 1
		code <<= 1
	}
	return 0
}

// state is what comes next in the packed data.
type state uint8

const (
	atMember  state = iota // header of a member, or the end
	atBlock                // header of a block
	inStored               // bytes as they are
	inCodes                // codes
	atTrailer              // check sums of a member
	atEnd
)

// decoder decodes members of gzip in turn. It can stop behind each symbol.
type decoder struct {
	src  io.ReaderAt
	size int64 // of src
	base int64 // of in, in src
	in   []byte
	pos  int    // in in, of what has not gone to hold yet
	hold uint64 // the next bits of the input, the first lowest
	n    uint   // how many of them count

	state  state
	final  bool  // the block is the last of its member
	block  int64 // the bit of src where its header is
	stored int   // bytes that it still has
	begin  int   // where the member begins in the output, as far as that is there

	check bool   // the check sums, from the beginning on
	sum   uint32 // CRC-32 of the member
	whole uint32 // its bytes, modulo 2^32

	lit, dist huffman
}

// inSize is how much of the input is read at once, in bytes.
const inSize = 64 << 10

// place goes to a bit of the input.
func (d *decoder) place(bit int64) error {
	d.base, d.in, d.pos, d.hold, d.n = bit/8, d.in[:0], 0, 0, 0
	_, err := d.bits(uint(bit % 8))
	return err
}

// bit is where the input goes on.
func (d *decoder) bit() int64 { return (d.base+int64(d.pos))*8 - int64(d.n) }

// giveBack leaves whole bytes in the buffer.
func (d *decoder) giveBack() {
	d.pos -= int(d.n / 8)
	d.n %= 8
	d.hold &= 1<<d.n - 1
}

// fill has at least a word in the buffer. Behind the end of the input are zeros; who takes of them finds bit beyond size.
func (d *decoder) fill() error {
	if d.in == nil {
		d.in = make([]byte, 0, inSize+ahead)
	}
	d.giveBack()
	n := copy(d.in[:inSize], d.in[d.pos:])
	d.base, d.pos = d.base+int64(d.pos), 0
	want := min(inSize, max(d.size-d.base, 0))
	for int64(n) < want {
		k, err := d.src.ReadAt(d.in[n:want], d.base+int64(n))
		if n += k; k == 0 {
			if errors.Is(err, io.EOF) { // it has become shorter
				err = io.ErrUnexpectedEOF
			}
			return cmp.Or(err, io.ErrNoProgress)
		}
	}
	d.in = d.in[:want]
	if want < inSize {
		d.in = d.in[:want+ahead]
		clear(d.in[want:])
	}
	return nil
}

// need has n bits in hold, at most 56.
func (d *decoder) need(n uint) error {
	if d.n >= n {
		return nil
	}
	if d.pos+8 > len(d.in) {
		if err := d.fill(); err != nil {
			return err
		}
	}
	d.hold |= binary.LittleEndian.Uint64(d.in[d.pos:]) << (d.n & 63)
	d.pos += int(63-d.n) >> 3
	d.n |= 56
	return nil
}

// bits takes n bits, at most 32.
func (d *decoder) bits(n uint) (uint32, error) {
	if err := d.need(n); err != nil {
		return 0, err
	}
	v := uint32(d.hold & (1<<n - 1))
	d.hold >>= n
	d.n -= n
	if d.bit() > d.size*8 {
		return 0, io.ErrUnexpectedEOF
	}
	return v, nil
}

// step decodes into out from n on, of which what is before is the output so far, up to its end but for slack, and gives where
// that ends.
func (d *decoder) step(out []byte, n int) (int, error) {
	from, limit := n, len(out)-slack
	sum := func() {
		if d.check {
			d.sum = crc32.Update(d.sum, crc32.IEEETable, out[from:n])
			d.whole += uint32(n - from)
			from = n
		}
	}
	for {
		var err error
		switch d.state {
		case atMember:
			d.begin, d.sum, d.whole = n, 0, 0
			err = d.member()
		case atBlock:
			err = d.header()
		case inStored, inCodes:
			if n > limit {
				sum()
				return n, nil
			}
			if d.state == inStored {
				n, err = d.copy(out, n)
			} else {
				n, err = d.codes(out, n)
			}
		case atTrailer:
			sum()
			err = d.trailer()
		case atEnd:
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// slide keeps in buf, of which n bytes are there, what a match may reach, and gives how much that is.
func (d *decoder) slide(buf []byte, n int) int {
	gone := max(0, n-window)
	d.begin = max(0, d.begin-gone)
	return copy(buf, buf[gone:n])
}

// header reads the header of a block.
func (d *decoder) header() error {
	d.block = d.bit()
	h, err := d.bits(3)
	if err != nil {
		return err
	}
	d.final = h&1 != 0
	switch h >> 1 {
	case 0:
		if _, err := d.bits(d.n % 8); err != nil {
			return err
		}
		n, err := d.bits(32)
		if err == nil && uint16(n) != ^uint16(n>>16) {
			err = errCorrupt
		}
		d.stored, d.state = int(uint16(n)), inStored
		return err
	case 1:
		var lengths [literals + distances]uint8
		for i := range lengths {
			switch {
			case i < 144:
				lengths[i] = 8
			case i < 256:
				lengths[i] = 9
			case i < 280:
				lengths[i] = 7
			case i < literals:
				lengths[i] = 8
			default:
				lengths[i] = 5
			}
		}
		return d.set(lengths[:literals], lengths[literals:])
	case 2:
		return d.dynamic()
	}
	return errCorrupt
}

// lengthOrder is that of the code in which the lengths of the others are told (section 3.2.7).
var lengthOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block that has its own.
func (d *decoder) dynamic() error {
	h, err := d.bits(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlen := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	var of [len(lengthOrder)]uint8
	for _, i := range lengthOrder[:nlen] {
		n, err := d.bits(3)
		if err != nil {
			return err
		}
		of[i] = uint8(n)
	}
	if err := d.lit.set(of[:], lengthEntries[:]); err != nil { // as literals: what they stand for is a number
		return err
	}
	var lengths [literals + distances]uint8
	for i := 0; i < nlit+ndist; {
		if err := d.need(maxCode); err != nil {
			return err
		}
		e := d.lit.quick[d.hold&(1<<primary-1)] // it has 7 bits at most
		if e == 0 {
			return errCorrupt
		}
		if _, err := d.bits(uint(e & 15)); err != nil {
			return err
		}
		value, times, extra := uint8(e>>16), uint32(1), uint(0)
		switch value {
		case 16:
			if i == 0 {
				return errCorrupt
			}
			value, times, extra = lengths[i-1], 3, 2
		case 17:
			value, times, extra = 0, 3, 3
		case 18:
			value, times, extra = 0, 11, 7
		}
		more, err := d.bits(extra)
		if err != nil {
			return err
		}
		if times += more; i+int(times) > nlit+ndist {
			return errCorrupt
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	if lengths[256] == 0 { // it could not end
		return errCorrupt
	}
	return d.set(lengths[:nlit], lengths[nlit:nlit+ndist])
}

func (d *decoder) set(lit, dist []uint8) error {
	d.state = inCodes
	if err := d.lit.set(lit, lengthEntries[:]); err != nil {
		return err
	}
	return d.dist.set(dist, distanceEntries[:])
}

// leave goes on behind a block.
func (d *decoder) leave() {
	d.state = atBlock
	if d.final {
		d.state = atTrailer
	}
}

// copy is step in a block of bytes as they are.
func (d *decoder) copy(out []byte, n int) (int, error) {
	d.giveBack()
	for d.stored > 0 && n <= len(out)-slack {
		if d.pos+8 > len(d.in) {
			if err := d.fill(); err != nil {
				return n, err
			}
		}
		left := min(int64(len(d.in)-d.pos), d.size-d.base-int64(d.pos))
		if left <= 0 {
			return n, io.ErrUnexpectedEOF
		}
		k := copy(out[n:min(n+d.stored, len(out)-slack+1)], d.in[d.pos:d.pos+int(left)])
		n, d.pos, d.stored = n+k, d.pos+k, d.stored-k
	}
	if d.stored == 0 {
		d.leave()
	}
	return n, nil
}

// codes is step in a block of codes.
func (d *decoder) codes(out []byte, n int) (int, error) {
	begin, limit := d.begin, len(out)-slack
	lit, dist := &d.lit.quick, &d.dist.quick
	in, pos, hold, k := d.in, d.pos, d.hold, d.n
	var err error
loop:
	for n <= limit {
		// A match takes 48 bits at most: 15 and 5 more, 15 and 13 more.
		if k < 48 {
			if pos+8 > len(in) {
				d.pos, d.hold, d.n = pos, hold, k
				if err = d.fill(); err != nil {
					break
				}
				in, pos, hold, k = d.in, d.pos, d.hold, d.n
			}
			hold |= binary.LittleEndian.Uint64(in[pos:]) << (k & 63)
			pos += int(63-k) >> 3
			k |= 56
		}
		e := lit[hold&(1<<primary-1)]
		if e == 0 {
			e = d.lit.slow(hold)
		}
		hold >>= e & 15
		k -= uint(e & 15)
		if e&kindMask == kindLiteral {
			if e == 0 {
				err = errCorrupt
				break
			}
			out[n] = byte(e >> 16)
			n++
			continue
		}
		if e&kindMask != kindMatch {
			if err = errCorrupt; e&kindMask == kindEnd {
				err = nil
				d.leave()
			}
			break loop
		}
		extra := uint(e>>4) & 15
		length := int(e>>16) + int(hold&(1<<extra-1))
		hold >>= extra
		k -= extra
		if e = dist[hold&(1<<primary-1)]; e == 0 {
			e = d.dist.slow(hold)
		}
		hold >>= e & 15
		k -= uint(e & 15)
		extra = uint(e>>4) & 15
		back := int(e>>16) + int(hold&(1<<extra-1))
		hold >>= extra
		k -= extra
		if e&kindMask != kindMatch || back > n-begin {
			err = errCorrupt
			break
		}
		switch from := n - back; {
		case length <= 16 && back >= 8:
			binary.LittleEndian.PutUint64(out[n:], binary.LittleEndian.Uint64(out[from:]))
			binary.LittleEndian.PutUint64(out[n+8:], binary.LittleEndian.Uint64(out[from+8:]))
			n += length
		default:
			for end := n + length; n < end; { // what was copied may be copied again
				n += copy(out[n:end], out[from:n])
			}
		}
	}
	d.pos, d.hold, d.n = pos, hold, k
	if d.bit() > d.size*8 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
