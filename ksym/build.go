package ksym

import (
	"encoding/binary"
	"fmt"

	"vmscope/mem"
)

// readFunc fills p from the bytes at a, or fails.
type readFunc func(p []byte, a uint64) error

// builder puts a table together from its blocks. It is made once for the blocks
// of names; the blocks of addresses are then tried where they may lie.
type builder struct {
	read   readFunc
	names  *names
	p      Places // of the blocks of names
	buf    []byte // from num_syms to the end of token_index
	marked int    // offset in buf where the markers end
}

// newBuilder reads the blocks of names: num_syms up to token_index.
func newBuilder(read readFunc, p Places) (*builder, error) {
	b := &builder{read: read, p: p}
	b.buf = make([]byte, p.TokenIndex+indexSize-p.NumSyms)
	if err := read(b.buf, uint64(p.NumSyms)); err != nil {
		return nil, fmt.Errorf("read kallsyms names: %w", err)
	}
	index := b.buf[p.TokenIndex-p.NumSyms:]
	tok, err := parseTokens(b.buf[p.TokenTable-p.NumSyms:p.TokenIndex-p.NumSyms], index)
	if err != nil {
		return nil, err
	}
	first := p.Names - p.NumSyms
	n := binary.LittleEndian.Uint32(b.buf)
	if n > maxSyms {
		return nil, fmt.Errorf("kallsyms of %d symbols: %w", n, mem.ErrInconsistent)
	}
	b.names, b.marked, err = walk(tok, b.buf[first:p.TokenTable-p.NumSyms], uint64(p.Names), int(n))
	if err != nil {
		return nil, err
	}
	b.marked += int(first)
	return b, nil
}

// findSeqs looks for the index by name where the layouts have it: behind the
// markers, or at the address behind the blocks of addresses.
func (b *builder) findSeqs(l Layout, behind uint64) {
	if b.names.seqs != nil {
		return
	}
	if l == BaseFirst {
		// Present in 6.1.y stable kernels, absent in 5.10.
		end := int(b.p.TokenTable - b.p.NumSyms)
		for _, al := range []uint64{4, 8} {
			at := int(align(uint64(b.p.NumSyms)+uint64(b.marked), al) - uint64(b.p.NumSyms))
			if at < end && b.names.setSeqs(b.buf[at:end]) {
				return
			}
		}
		return
	}
	s := make([]byte, 3*b.names.n)
	if b.read(s, behind) == nil {
		b.names.setSeqs(s)
	}
}

// table builds the table whose offsets are at the given place, and lets it
// prove itself. physical says that the addresses of the builder are.
func (b *builder) table(p Places, w word, physical bool) (*Table, error) {
	l, err := p.layout()
	if err != nil {
		return nil, err
	}
	n := b.names.n
	o := &offsets{raw: make([]byte, 4*n), word: w}
	if err := b.read(o.raw, uint64(p.Offsets)); err != nil {
		return nil, fmt.Errorf("read kallsyms offsets: %w", err)
	}
	t := &Table{names: b.names, offsets: o}
	behind := uint64(p.Offsets) + 4*uint64(n)
	if l == PlaceRelative {
		o.scheme, t.base = OwnPlace, uint64(p.Offsets)
	} else {
		var q [8]byte
		if err := b.read(q[:w.size], uint64(p.RelativeBase)); err != nil {
			return nil, fmt.Errorf("read kallsyms_relative_base: %w", err)
		}
		t.base = binary.LittleEndian.Uint64(q[:])
		if t.base < w.min || t.base > w.mask {
			return nil, fmt.Errorf("kallsyms_relative_base %#x is no kernel address: %w", t.base, mem.ErrInconsistent)
		}
		behind = align(uint64(p.RelativeBase)+w.size, w.size)
		o.scheme = o.guess()
	}
	t.proof = Proof{Layout: l, Scheme: o.scheme, Symbols: n, Physical: l == PlaceRelative && physical}
	t.pass("the kernel's markers agree with a walk over all %d names", n)
	t.pass("token table and token index describe each other")
	if err := t.proveOrder(); err != nil {
		return nil, err
	}
	b.findSeqs(l, behind)
	if t.proof.Seqs = b.names.seqs != nil; t.proof.Seqs {
		t.pass("the index by name holds each symbol once, a sample is sorted")
	}
	if err := t.proveSymbols(p, physical); err != nil {
		return nil, err
	}
	return t, nil
}

// guess tells the scheme of a table with a base: with per-CPU symbols absolute,
// the others, which are most, are negative.
func (o *offsets) guess() Scheme {
	neg := 0
	for i := 3; i < len(o.raw); i += 4 {
		neg += int(o.raw[i] >> 7)
	}
	if neg > len(o.raw)/8 {
		return AbsolutePerCPU
	}
	return Plain
}

func (t *Table) pass(format string, a ...any) {
	t.proof.Checks = append(t.proof.Checks, fmt.Sprintf(format, a...))
}

// proveOrder demands that addresses rise, as scripts/kallsyms.c sorts them.
// With a base, one in a hundred may be out of order.
func (t *Table) proveOrder() error {
	prev, bad := uint64(0), 0
	for i := range t.n {
		a := t.addr(i)
		if a < prev {
			bad++
		}
		prev = a
	}
	// A place-relative table has no excuse, and read one entry early it has its
	// one exception at the start.
	if bad > t.n/100 || bad > 0 && t.scheme == OwnPlace {
		return fmt.Errorf("kallsyms: %d of %d addresses are not in order: %w", bad, t.n, mem.ErrInconsistent)
	}
	t.sound, t.proof.Unsorted = bad == 0, bad
	t.pass("addresses rise (%d exceptions)", bad)
	return nil
}

// proveSymbols demands that symbols with a known place have it: _stext begins a
// page, and kallsyms_token_table, where the kernel lists it (from 6.12 on), is
// where the token table was found.
func (t *Table) proveSymbols(p Places, physical bool) error {
	stext, ok := t.find("_stext")
	if !ok {
		return fmt.Errorf("kallsyms lists no _stext: %w", mem.ErrInconsistent)
	}
	a := t.addr(stext)
	if a%mem.PageSize != 0 || t.absolute(stext) {
		return fmt.Errorf("kallsyms: _stext at %#x begins no page: %w", a, mem.ErrInconsistent)
	}
	if !t.proof.Physical && (a < t.word.min || a > t.word.mask) {
		return fmt.Errorf("kallsyms: _stext at %#x is no kernel address: %w", a, mem.ErrInconsistent)
	}
	t.pass("_stext begins a page")
	i, ok := t.find("kallsyms_token_table")
	if !ok {
		// Read one entry off, a place-relative table has all the right
		// addresses, each under its neighbour's name.
		if t.scheme == OwnPlace && !t.proof.Seqs {
			return fmt.Errorf("kallsyms: nothing tells where place-relative offsets begin: %w", mem.ErrInconsistent)
		}
		return nil
	}
	// Found physically, a table with a base tells the distance to virtual
	// addresses, which is whole pages.
	got, want := t.addr(i), uint64(p.TokenTable)
	if physical && t.scheme != OwnPlace {
		got, want = got%mem.PageSize, want%mem.PageSize
	}
	if got != want {
		return fmt.Errorf("kallsyms_token_table is listed at %#x, found at %#x: %w", t.addr(i), uint64(p.TokenTable), mem.ErrInconsistent)
	}
	t.pass("kallsyms_token_table is listed where it was found")
	return nil
}
