package ctype

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
)

func TestParseRefuses(t *testing.T) {
	good := func() *builder {
		b := newBuilder()
		b.int("int", 4, intSigned)
		return b
	}
	edit := func(off int, bytes ...byte) []byte {
		p := good().blob()
		copy(p[off:], bytes)
		return p
	}
	typ := func(f func(b *builder)) []byte {
		b := good()
		f(b)
		return b.blob()
	}
	for _, c := range []struct {
		name string
		blob []byte
		want error
	}{
		{"nothing", nil, mem.ErrInconsistent},
		{"magic", edit(0, 0, 0), mem.ErrInconsistent},
		{"big endian", edit(0, 0xeb, 0x9f), errors.ErrUnsupported},
		{"version", edit(2, 2), errors.ErrUnsupported},
		{"flags", edit(3, 1), errors.ErrUnsupported},
		{"short header", edit(4, 20), mem.ErrInconsistent},
		{"header beyond the blob", edit(4, 0, 0, 1), mem.ErrInconsistent},
		{"types beyond the blob", edit(12, 0xff, 0xff), mem.ErrInconsistent},
		{"type offset beyond", edit(8, 0xff, 0xff, 0xff, 0xff), mem.ErrInconsistent},
		{"strings beyond the blob", edit(20, 0xff, 0xff, 0xff, 0xff), mem.ErrInconsistent},
		{"no strings", edit(20, 0), mem.ErrInconsistent},
		{"strings end without NUL", edit(20, 4), mem.ErrInconsistent},
		{"record cut short", edit(12, 14), mem.ErrInconsistent},
		{"void record", typ(func(b *builder) { b.add(Void, "", 0, 0) }), mem.ErrInconsistent},
		{"unknown kind", typ(func(b *builder) { b.add(numKinds, "", 0, 0) }), mem.ErrInconsistent},
		{"vlen beyond the section", typ(func(b *builder) { b.add(Struct, "s", 0xffffff, 4) }), mem.ErrInconsistent},
		{"type id", typ(func(b *builder) { b.add(Pointer, "", 0, 3) }), mem.ErrInconsistent},
		{"element type", typ(func(b *builder) { b.add(Array, "", 0, 0, 9, 1, 1) }), mem.ErrInconsistent},
		{"member type", typ(func(b *builder) { b.strukt(Struct, "s", 0, 4, memb{"m", 9, 0}) }), mem.ErrInconsistent},
		{"member name", typ(func(b *builder) { b.add(Struct, "s", 1, 4, 99, 1, 0) }), mem.ErrInconsistent},
		{"parameter", typ(func(b *builder) { b.add(FuncProto, "", 1, 0, 0, 77) }), mem.ErrInconsistent},
		{"variable in a section", typ(func(b *builder) { b.add(DataSec, "d", 1, 4, 7, 0, 0) }), mem.ErrInconsistent},
		{"enumerator name", typ(func(b *builder) { b.add(Enum, "e", 1, 4, 1<<31, 0) }), mem.ErrInconsistent},
		{"enum64 name", typ(func(b *builder) { b.add(Enum64, "e", 1, 8, 1<<31, 0, 0) }), mem.ErrInconsistent},
	} {
		ts, err := Parse(c.blob)
		if ts != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := Parse(good().blob()); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := ParseSplit(good().blob(), nil); err == nil {
		t.Error("ParseSplit without a base")
	}
	_, err := Parse(typ(func(b *builder) { b.add(Pointer, "", 0, 3) }))
	if err == nil || !strings.Contains(err.Error(), "BTF type 2 at offset 0x10 ") {
		t.Errorf("no coordinates: %v", err)
	}
}

// Types that contain themselves: everything ends, nothing has a size.
func TestLoops(t *testing.T) {
	b := newBuilder()
	td := b.add(Typedef, "loop_t", 0, b.next)
	arr := b.add(Array, "", 0, 0, b.next, td, 1000)
	self := b.strukt(Struct, "self", 0, 8, memb{"", b.next, 0}, memb{"x", td, 0})
	// A tree: each level holds 40 times the next, all anonymous.
	for range 20 {
		ms := make([]memb, 40)
		for i := range ms {
			ms[i] = memb{"", b.next + 1, 0}
		}
		b.strukt(Struct, "", 0, 8, ms...)
	}
	b.strukt(Struct, "", 0, 8)
	tree := b.strukt(Struct, "tree", 0, 8, memb{"", self + 1, 0}, memb{"behind", self + 1, 0})
	fn := b.next
	b.add(Pointer, "", 0, fn+1)
	b.add(FuncProto, "", 2, fn, 0, fn, 0, fn)
	con := b.add(Const, "", 0, b.next)
	ts := b.parse(t)

	for id := range uint32(ts.Len()) {
		typ := ts.Type(id)
		typ.Size()
		if s := typ.String(); len(s) > 1<<16 {
			t.Errorf("type %d: a declaration of %d bytes", id, len(s))
		}
		_ = typ.Print(io.Discard)
	}
	for _, id := range []uint32{td, arr, con} {
		if u := ts.Type(id); u.Size() != 0 || u.Kind() != Array && !u.Underlying().IsVoid() {
			t.Errorf("type %d: %v of %d bytes", id, u.Underlying(), u.Size())
		}
	}
	if _, err := ts.Type(tree).Member("none"); !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("member search in a tree without end: %v", err)
	}
	if _, err := ts.Type(self).Member("x"); err == nil {
		t.Log("found before the loop") // allowed: a member that is there may be found
	}
}

func TestSizes(t *testing.T) {
	b := newBuilder()
	i := b.int("int", 4, intSigned)
	a := b.add(Array, "", 0, 0, i, i, 10)
	aa := b.add(Array, "", 0, 0, a, i, 3)
	p := b.add(Pointer, "", 0, 0)
	fwd := b.add(Fwd, "f", 0, 0)
	proto := b.add(FuncProto, "", 0, i)
	c := b.add(Const, "", 0, aa)
	huge := i
	for range 4 {
		huge = b.add(Array, "", 0, 0, huge, i, 1<<32-1)
	}
	v := b.add(Var, "v", 0, a, 1)
	ts := b.parse(t)
	for _, x := range []struct {
		id   uint32
		size uint64
	}{{0, 0}, {i, 4}, {a, 40}, {aa, 120}, {p, 8}, {fwd, 0}, {proto, 0}, {c, 120}, {huge, 0}, {v, 40}, {9999, 0}} {
		if got := ts.Type(x.id).Size(); got != x.size {
			t.Errorf("%v: %d bytes, want %d", ts.Type(x.id), got, x.size)
		}
	}

	b = newBuilder()
	b.int("long unsigned int", 4, 0)
	p = b.add(Pointer, "", 0, 0)
	if ts := b.parse(t); ts.Type(p).Size() != 4 || ts.PtrSize() != 4 {
		t.Errorf("32-bit kernel: pointers of %d bytes", ts.PtrSize())
	}
}

// A kind that is newer than this reader is passed over where the blob says how.
func TestLayoutSection(t *testing.T) {
	b := newBuilder()
	i := b.int("int", 4, intSigned)
	b.layout = make([]byte, 4*(numKinds+2))
	b.layout[4*(numKinds+1)], b.layout[4*(numKinds+1)+1] = 4, 8 // 4 bytes, and 8 for each element
	odd := b.add(numKinds+1, "", 2, 0, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff)
	p := b.add(Pointer, "", 0, i)
	ts := b.parse(t)
	if ts.Type(p).Elem() != ts.Type(i) {
		t.Error("what follows the unknown kind is misread")
	}
	if k := ts.Type(odd).Kind(); k != numKinds+1 || ts.Type(odd).Size() != 0 {
		t.Errorf("unknown kind: %v", k)
	}
	for _, f := range []func(){
		func() { b.layout[4*(numKinds+1)] = 2 },
		func() { b.layout = b.layout[:4*(numKinds+1)] },
	} {
		f()
		if _, err := Parse(b.blob()); err == nil {
			t.Error("an unknown kind of unknown size was accepted")
		}
	}
}

// Linux 7.2 gives vlen 24 bits.
func TestWideVlen(t *testing.T) {
	b := newBuilder()
	var vs []any
	for i := range 70000 {
		vs = append(vs, "", i)
	}
	vs = append(vs, "LAST", 70000)
	e := b.enum("big", 0, vs...)
	ts := b.parse(t)
	if n := ts.Type(e).Len(); n != 70001 {
		t.Errorf("%d enumerators", n)
	}
	if v, err := ts.Enum("LAST"); v != 70000 || err != nil {
		t.Error(v, err)
	}
}

// TestMutatedKernel damages the types of a real kernel in places that the
// random numbers choose: whatever is still accepted can be used.
func TestMutatedKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("copies 4 MB for each round")
	}
	blob := fixture(t, "")
	types := int(le.Uint32(blob[12:]))
	r := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range 150 {
		b := slices.Clone(blob)
		for range 1 + r.IntN(20) {
			at := minHeader + r.IntN(types)
			if r.IntN(3) > 0 { // ids and counts are small: change the low bytes
				at = at&^3 + r.IntN(2)
			}
			b[at] = byte(r.Uint32())
		}
		ts, err := Parse(b)
		classified(t, ts, err)
		if err != nil {
			continue
		}
		accepted++
		var l bigLayout
		_ = Bind(ts, &l)
		for _, name := range []string{"task_struct", "module", "sk_buff", "rq"} {
			if typ, err := ts.Lookup(name); err == nil {
				_ = typ.Print(io.Discard)
			}
		}
	}
	if accepted == 0 {
		t.Error("no damaged blob was accepted: nothing was tested")
	}
	t.Logf("%d of 150 accepted", accepted)
}
