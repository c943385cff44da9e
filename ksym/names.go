package ksym

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"vmscope/mem"
)

const (
	// maxSyms bounds the number of symbols; a big kernel with
	// CONFIG_KALLSYMS_ALL has 200,000.
	maxSyms = 2_000_000
	// maxNames bounds the bytes of the compressed names; real ones have 1 to
	// 3 MiB.
	maxNames = 16 << 20

	markEvery = 256 // records between two of the kernel's markers
	fineEvery = 16  // records between two of ours
)

// names holds the compressed names of a table: a copy, so no bounds need be
// checked again after walk has accepted it.
type names struct {
	n    int
	tok  *tokens
	recs []byte   // n records
	fine []uint32 // offset in recs of every fineEvery-th record
	seqs []byte   // n big-endian u24: the records in the order of names; or nil

	once  sync.Once
	index *hashIndex // where there are no seqs, built at the first lookup
}

// record returns the tokens of the record at off and where the next one starts;
// next < 0 if there is none in b.
//
// Up to Linux 6.0 a length is one byte and names are too short for bit 7; then
// "kallsyms: support "big" kernel symbols" made it two if bit 7 is set.
func record(b []byte, off int) (rec []byte, next int) {
	if uint(off) >= uint(len(b)) {
		return nil, -1
	}
	n := int(b[off])
	off++
	if n&0x80 != 0 {
		if off >= len(b) {
			return nil, -1
		}
		n = n&0x7f | int(b[off])<<7
		off++
	}
	if n == 0 || n > maxName || n > len(b)-off {
		return nil, -1
	}
	return b[off : off+n], off + n
}

// walk accepts n records at the start of b if the kernel's markers, which
// follow them, agree, and returns where the markers end. Both alignments that
// kernels use for the markers are tried; base is the address of b[0].
func walk(tok *tokens, b []byte, base uint64, n int) (*names, int, error) {
	if n < 1 || n > maxSyms || n > len(b)/2 {
		return nil, 0, fmt.Errorf("kallsyms of %d symbols in %d bytes: %w", n, len(b), mem.ErrInconsistent)
	}
	x := &names{n: n, tok: tok, fine: make([]uint32, 0, (n+fineEvery-1)/fineEvery)}
	off := 0
	for i := range n {
		if i%fineEvery == 0 {
			x.fine = append(x.fine, uint32(off))
		}
		// The common case of record, by hand: this loop sees every name.
		if off < len(b) && b[off]-1 < 0x7f && int(b[off]) < len(b)-off {
			off += 1 + int(b[off])
			continue
		}
		if _, off = record(b, off); off < 0 {
			return nil, 0, fmt.Errorf("kallsyms name %d of %d: %w", i, n, mem.ErrInconsistent)
		}
	}
	x.recs = b[:off:off]
	for _, al := range []uint64{4, 8} {
		at := int(align(base+uint64(off), al) - base)
		if x.marked(b, at) {
			return x, at + 4*x.marks(), nil
		}
	}
	return nil, 0, fmt.Errorf("kallsyms markers contradict the %d names: %w", n, mem.ErrInconsistent)
}

func (x *names) marks() int { return (x.n + markEvery - 1) / markEvery }

// marked reports whether the kernel's markers are at b[at:].
func (x *names) marked(b []byte, at int) bool {
	if at > len(b) || len(b)-at < 4*x.marks() {
		return false
	}
	for k := range x.marks() {
		if binary.LittleEndian.Uint32(b[at+4*k:]) != x.fine[k*(markEvery/fineEvery)] {
			return false
		}
	}
	return true
}

func align(a, to uint64) uint64 { return (a + to - 1) &^ (to - 1) }

// rec returns the tokens of symbol i.
func (x *names) rec(i int) []byte {
	off := int(x.fine[i/fineEvery])
	for range i % fineEvery {
		if l := x.recs[off]; l < 0x80 {
			off += 1 + int(l)
		} else {
			off += 2 + int(l&0x7f) + int(x.recs[off+1])<<7
		}
	}
	r, _ := record(x.recs, off)
	return r
}

// text decodes symbol i: type letter and name. A record of empty tokens gives
// type 0 and no name.
func (x *names) text(buf *nameBuf, i int) (typ byte, name []byte) {
	s := x.tok.expand(buf, x.rec(i))
	if len(s) == 0 {
		return 0, nil
	}
	return s[0], s[1:]
}

// seq returns the k-th symbol in the order of names.
func (x *names) seq(k int) int {
	b := x.seqs[3*k : 3*k+3]
	return int(b[0])<<16 | int(b[1])<<8 | int(b[2])
}

// setSeqs takes b as the permutation that sorts the names if it is one: every
// symbol once, and of a sample of neighbours each in order.
func (x *names) setSeqs(b []byte) bool {
	if len(b) < 3*x.n {
		return false
	}
	x.seqs = b[: 3*x.n : 3*x.n]
	if x.permutes() && x.sampleSorted() {
		return true
	}
	x.seqs = nil
	return false
}

func (x *names) permutes() bool {
	seen := make([]uint64, (x.n+63)/64)
	for k := range x.n {
		i := x.seq(k)
		if i >= x.n || seen[i/64]>>(i%64)&1 != 0 {
			return false
		}
		seen[i/64] |= 1 << (i % 64)
	}
	return true
}

func (x *names) sampleSorted() bool {
	var a, b nameBuf
	step := max(1, x.n/256)
	for k := 0; k+1 < x.n; k += step {
		_, s := x.text(&a, x.seq(k))
		_, t := x.text(&b, x.seq(k+1))
		if string(s) > string(t) {
			return false
		}
	}
	return true
}

// each calls f with the symbols of that name, in the order of the table where
// seqs are absent and in the order of seqs where they are present (by address),
// until f returns false.
func (x *names) each(name string, f func(i int) bool) {
	if strings.IndexByte(name, 0) >= 0 {
		return
	}
	var buf nameBuf
	if x.seqs == nil {
		x.once.Do(func() { x.index = newHashIndex(x) })
		x.index.each(x, &buf, name, f)
		return
	}
	lo, hi := 0, x.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if _, s := x.text(&buf, x.seq(mid)); string(s) < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for ; lo < x.n; lo++ {
		i := x.seq(lo)
		if _, s := x.text(&buf, i); string(s) != name || !f(i) {
			return
		}
	}
}

// find returns the first symbol of that name.
func (x *names) find(name string) (i int, ok bool) {
	x.each(name, func(j int) bool { i, ok = j, true; return false })
	return i, ok
}
