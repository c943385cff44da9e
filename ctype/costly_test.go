package ctype

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Types that are sound but made to cost: what they take is bounded.

// TestLongNames: names that Lookup cuts are equal to none, so a table that held
// them would have to pass all of them to place one more.
func TestLongNames(t *testing.T) {
	b := newBuilder()
	kept := strings.Repeat("y", maxName-1)
	b.add(Fwd, kept, 0, 0)
	off := b.str(strings.Repeat("x", maxName))
	for range 1000 {
		for _, v := range []uint32{off, uint32(Fwd) << 24, 0} {
			b.types = le.AppendUint32(b.types, v)
		}
	}
	ts := b.parse(t)
	lookup(t, ts, kept)
	if _, err := ts.Lookup(strings.Repeat("x", maxName)); !errors.Is(err, ErrNoType) {
		t.Error(err)
	}
	taken := 0
	for _, id := range ts.index.slots {
		if id != 0 {
			taken++
		}
	}
	if taken != 1 {
		t.Errorf("%d names in the table, want 1", taken)
	}
}

// TestLongDeclarations: each member is declared by half a megabyte.
func TestLongDeclarations(t *testing.T) {
	b := newBuilder()
	name := strings.Repeat("\xff", maxName-1)
	num := b.int(name, 4, 0)
	var params []uint32
	for range 240 {
		params = append(params, b.str(name), num)
	}
	proto := b.add(FuncProto, "", uint32(len(params)/2), num, params...)
	var ms []memb
	for range 200 {
		ms = append(ms, memb{"f", proto, 0})
	}
	b.strukt(Struct, "s", 0, 8, ms...)
	var out bytes.Buffer
	if err := lookup(t, b.parse(t), "s").Print(&out); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 2*maxLines*longLine || !strings.Contains(out.String(), "cut after") {
		t.Errorf("%d bytes printed", out.Len())
	}
}

// TestLongEnum: a value is looked for among all names of its enum.
func TestLongEnum(t *testing.T) {
	b := newBuilder()
	const n = 1 << 18
	x := b.str("X")
	var consts []uint32
	for i := range uint32(n) {
		consts = append(consts, x, i+1)
	}
	enum := b.add(Enum, "e", n, 4, consts...)
	var ms []memb
	for range 10000 {
		ms = append(ms, memb{"m", enum, 0})
	}
	b.strukt(Struct, "s", 0, 4, ms...)
	ts := b.parse(t)
	if name, ok := lookup(t, ts, "e").EnumName(n); !ok || name != "X" {
		t.Errorf("%q, %v", name, ok)
	}
	var out bytes.Buffer
	r := ram{0x1000, make([]byte, 4096)}
	if err := lookup(t, ts, "s").At(r.space(), 0x1000).Print(&out, 1); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), ".m = "); n > 100 || !strings.Contains(out.String(), "cut after") {
		t.Errorf("%d values printed", n)
	}
}
