package ctype

import (
	"testing"

	"vmscope/mem"
)

// builder writes BTF by hand.
type builder struct {
	types, strs []byte
	next        uint32 // id of the next type
	strBase     uint32
	layout      []byte
}

func newBuilder() *builder { return &builder{strs: []byte{0}, next: 1} }

// splitBuilder continues the ids and strings of base.
func splitBuilder(base *Types) *builder {
	return &builder{next: uint32(base.Len()), strBase: base.strBase + uint32(len(base.strs))}
}

func (b *builder) str(s string) uint32 {
	if s == "" {
		return 0
	}
	off := b.strBase + uint32(len(b.strs))
	b.strs = append(append(b.strs, s...), 0)
	return off
}

const kindFlag = 1 << 31

// add writes one record: info is vlen and perhaps kindFlag, more what follows.
func (b *builder) add(k Kind, name string, info, third uint32, more ...uint32) uint32 {
	for _, v := range append([]uint32{b.str(name), info | uint32(k)<<24, third}, more...) {
		b.types = le.AppendUint32(b.types, v)
	}
	b.next++
	return b.next - 1
}

func (b *builder) int(name string, size, enc uint32) uint32 {
	return b.add(Int, name, 0, size, enc<<24|8*size)
}

// mem is one member: bits and the width of a bit-field in the upper byte.
type memb struct {
	name string
	typ  uint32
	off  uint32
}

func (b *builder) strukt(k Kind, name string, flag, size uint32, ms ...memb) uint32 {
	var more []uint32
	for _, m := range ms {
		more = append(more, b.str(m.name), m.typ, m.off)
	}
	return b.add(k, name, uint32(len(ms))|flag, size, more...)
}

func (b *builder) enum(name string, flag uint32, vs ...any) uint32 {
	var more []uint32
	for i := 0; i < len(vs); i += 2 {
		more = append(more, b.str(vs[i].(string)), uint32(vs[i+1].(int)))
	}
	return b.add(Enum, name, uint32(len(vs)/2)|flag, 4, more...)
}

// blob joins the sections behind a header.
func (b *builder) blob() []byte {
	h := []byte{0x9f, 0xeb, 1, 0}
	hdr := uint32(minHeader)
	if b.layout != nil {
		hdr += 8
	}
	for _, v := range []uint32{hdr, 0, uint32(len(b.types)), uint32(len(b.types)), uint32(len(b.strs))} {
		h = le.AppendUint32(h, v)
	}
	if b.layout != nil {
		h = le.AppendUint32(h, uint32(len(b.types)+len(b.strs)))
		h = le.AppendUint32(h, uint32(len(b.layout)))
	}
	return append(append(append(h, b.types...), b.strs...), b.layout...)
}

func (b *builder) parse(t testing.TB) *Types {
	t.Helper()
	ts, err := Parse(b.blob())
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func lookup(t testing.TB, ts *Types, name string) Type {
	t.Helper()
	typ, err := ts.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

// ram is memory at virtual addresses from base on.
type ram struct {
	base mem.VA
	b    []byte
}

func (r ram) Translate(va mem.VA) (mem.Mapping, error) {
	if va < r.base || uint64(va-r.base) >= uint64(len(r.b)) {
		return mem.Mapping{}, &mem.FaultError{Op: "translate", Addr: uint64(va), Err: mem.ErrNotMapped}
	}
	return mem.Mapping{PA: mem.PA(va - r.base), Size: mem.PageSize}, nil
}

func (r ram) ReadPhys(p []byte, pa mem.PA) (int, error) {
	if uint64(pa) >= uint64(len(r.b)) {
		return 0, &mem.FaultError{Op: "read", Addr: uint64(pa), Err: mem.ErrNoRAM}
	}
	n := copy(p, r.b[pa:])
	if n < len(p) {
		return n, &mem.FaultError{Op: "read", Addr: uint64(pa) + uint64(n), Err: mem.ErrNoRAM}
	}
	return n, nil
}

func (r ram) space() *mem.Space { return mem.NewSpace("kernel", r, r) }
