package ctype

import (
	"errors"
	"slices"
	"testing"
)

// zoo is one of each.
func zoo() *builder {
	b := newBuilder()
	i := b.int("int", 4, intSigned)                                          // 1
	u8 := b.int("unsigned char", 1, 0)                                       // 2
	ch := b.int("char", 1, intSigned)                                        // 3
	boolean := b.int("_Bool", 1, intBool)                                    // 4
	ul := b.int("long unsigned int", 8, 0)                                   // 5
	name := b.add(Array, "", 0, 0, ch, i, 8)                                 // 6
	self := b.add(Pointer, "", 0, b.next+4)                                  // 7
	inner := b.strukt(Struct, "", 0, 8, memb{"a", i, 0}, memb{"b", i, 32})   // 8
	un := b.strukt(Union, "", 0, 8, memb{"", inner, 0}, memb{"both", ul, 0}) // 9
	atomic := b.add(Typedef, "atomic_t", 0, b.next+2)                        // 10
	b.strukt(Struct, "node", kindFlag, 80,                                   // 11
		memb{"id", i, 0},
		memb{"low", i, 32 | 3<<24},
		memb{"mid", i, 35 | 7<<24},
		memb{"flag", boolean, 42 | 1<<24},
		memb{"", un, 64},
		memb{"name", name, 128},
		memb{"next", self, 192},
		memb{"count", atomic, 256},
		memb{"state", b.next + 2, 288},
		memb{"text", b.next + 3, 320},
		memb{"arr", b.next + 4, 384},
		memb{"tail", b.next + 5, 640})
	b.strukt(Struct, "", 0, 4, memb{"counter", i, 0})    // 12
	b.enum("state", 0, "IDLE", 0, "BUSY", 1, "BUSY2", 1) // 13
	b.add(Pointer, "", 0, ch)                            // 14
	b.add(Array, "", 0, 0, inner, i, 4)                  // 15
	b.add(Array, "", 0, 0, u8, i, 0)                     // 16
	b.add(Fwd, "later", 0, 0)                            // 17
	b.add(Fwd, "later_u", kindFlag, 0)                   // 18
	return b
}

func TestMember(t *testing.T) {
	ts := zoo().parse(t)
	node := lookup(t, ts, "node")
	for _, c := range []struct {
		path      string
		off       uint64
		bit, bits uint8
		typ       string
	}{
		{"id", 0, 0, 0, "int"},
		{"low", 4, 0, 3, "int"},
		{"mid", 4, 3, 7, "int"},
		{"flag", 5, 2, 1, "_Bool"},
		{"a", 8, 0, 0, "int"},
		{"b", 12, 0, 0, "int"},
		{"both", 8, 0, 0, "long unsigned int"},
		{"name", 16, 0, 0, "char [8]"},
		{"name[7]", 23, 0, 0, "char"},
		{"next", 24, 0, 0, "struct node *"},
		{"count", 32, 0, 0, "atomic_t"},
		{"count.counter", 32, 0, 0, "int"},
		{"arr[3].b", 48 + 3*8 + 4, 0, 0, "int"},
		{"tail[5]", 85, 0, 0, "unsigned char"},
	} {
		f, err := node.Member(c.path)
		if err != nil || f.Offset != c.off || f.BitOffset != c.bit || f.BitSize != c.bits || f.Type.String() != c.typ || !f.Valid() {
			t.Errorf("%s: %+v, %v; want %+v", c.path, f, err, c)
		}
	}
	for _, path := range []string{
		"", ".", ".id", "id.", "id.x", "none", "name[8]", "name[-1]", "name[]", "name[1", "name]", "[0]", "name[0]x",
		"next.id", "next[0]", "name.x", "id[0]", "count..counter", "arr[99999999999999999999]",
	} {
		f, err := node.Member(path)
		var e *LookupError
		if !errors.Is(err, ErrNoMember) || !errors.As(err, &e) || e.Type != "struct node" || f.Valid() {
			t.Errorf("%q: %+v, %v", path, f, err)
		}
	}
	if _, err := node.Offset("low"); !errors.Is(err, ErrNoMember) {
		t.Errorf("offset of a bit-field: %v", err)
	}
	if f, err := ts.Type(15).Member("[2].b"); err != nil || f.Offset != 20 {
		t.Errorf("path into an array: %+v, %v", f, err)
	}
	if _, err := lookup(t, ts, "later").Member("x"); !errors.Is(err, ErrNoMember) {
		t.Errorf("member of a declared struct: %v", err)
	}
}

// Before kind_flag the integer told where a bit-field's bits lie.
func TestOldBitFields(t *testing.T) {
	b := newBuilder()
	i := b.int("unsigned int", 4, 0)
	three := b.add(Int, "unsigned int", 0, 4, 2<<16|3) // 3 bits, 2 bits further on
	b.strukt(Struct, "old", 0, 4, memb{"w", i, 0}, memb{"x", three, 11}, memb{"y", i, 13})
	old := lookup(t, b.parse(t), "old")
	for _, c := range []struct {
		name      string
		off       uint64
		bit, bits uint8
	}{{"w", 0, 0, 0}, {"x", 1, 5, 3}, {"y", 1, 5, 32}} {
		if f, err := old.Member(c.name); err != nil || f.Offset != c.off || f.BitOffset != c.bit || f.BitSize != c.bits {
			t.Errorf("%s: %+v, %v", c.name, f, err)
		}
	}
}

func TestLookupRules(t *testing.T) {
	b := newBuilder()
	i := b.int("int", 4, intSigned)
	b.add(Fwd, "s", 0, 0)
	first := b.strukt(Struct, "s", 0, 4, memb{"x", i, 0})
	b.strukt(Struct, "s", 0, 8)
	td := b.add(Typedef, "s", 0, i)
	un := b.strukt(Union, "u", 0, 4)
	en := b.enum("e", 0, "ONE", 1)
	fw := b.add(Fwd, "only", 0, 0)
	fu := b.add(Fwd, "only_u", kindFlag, 0)
	fn := b.add(Func, "run", 0, b.next+1)
	b.add(FuncProto, "", 1, i, b.str("arg"), i)
	v := b.add(Var, "cpu", 0, i, 0)
	ts := b.parse(t)
	for name, id := range map[string]uint32{
		"s": first, "struct s": first, "struct  s": first, "u": un, "union u": un, "e": en, "enum e": en, "int": i,
		"only": fw, "struct only": fw, "union only_u": fu,
	} {
		if typ, err := ts.Lookup(name); err != nil || typ.ID() != id {
			t.Errorf("%q: type %d, %v; want %d", name, typ.ID(), err, id)
		}
	}
	for _, name := range []string{"", "struct u", "union s", "enum s", "struct only_u", "run", "cpu", "ONE", "struct ", "x s"} {
		if typ, err := ts.Lookup(name); !errors.Is(err, ErrNoType) || !typ.IsVoid() {
			t.Errorf("%q: %v, %v", name, typ, err)
		}
	}
	if typ, err := ts.Func("run"); err != nil || typ.ID() != fn || typ.String() != "int run(int arg)" {
		t.Errorf("run: %v, %v", typ, err)
	}
	if typ, err := ts.Var("cpu"); err != nil || typ.ID() != v {
		t.Errorf("cpu: %v, %v", typ, err)
	}
	if _, err := ts.Var("run"); !errors.Is(err, ErrNoType) {
		t.Error(err)
	}
	if _, err := ts.Enum("TWO"); !errors.Is(err, ErrNoEnumerator) {
		t.Error(err)
	}

	// A module: its own types come first, but not a mere declaration.
	m := splitBuilder(ts)
	m.add(Fwd, "s", 0, 0)
	mu := m.strukt(Struct, "u", 0, 16, memb{"p", first, 0})
	m.add(Typedef, "mine", 0, td)
	mod, err := ParseSplit(m.blob(), ts)
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]uint32{"s": first, "u": mu, "union u": un, "e": en, "mine": mu + 1, "int": i} {
		if typ, err := mod.Lookup(name); err != nil || typ.ID() != id {
			t.Errorf("module, %q: type %d, %v; want %d", name, typ.ID(), err, id)
		}
	}
	if v, err := mod.Enum("ONE"); v != 1 || err != nil {
		t.Error(v, err)
	}
	if f, err := lookup(t, mod, "struct u").Member("p.x"); err != nil || f.Type != ts.Type(i) {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestEnums(t *testing.T) {
	values := func(typ Type) (s []int64) {
		for _, v := range typ.Enumerators() {
			s = append(s, v)
		}
		return s
	}
	// A producer that does not mark signed enums means all to be signed.
	b := newBuilder()
	e := b.enum("e", 0, "A", 1<<31, "B", 5)
	if got := values(b.parse(t).Type(e)); !slices.Equal(got, []int64{-1 << 31, 5}) {
		t.Error(got)
	}
	b.enum("neg", kindFlag, "C", 1<<32-1)
	e64 := b.add(Enum64, "big", 2, 8, b.str("D"), 1, 2, b.str("E"), 0, 1<<31)
	ts := b.parse(t)
	if got := values(ts.Type(e)); !slices.Equal(got, []int64{1 << 31, 5}) {
		t.Error(got)
	}
	if got := values(ts.Type(e64)); !slices.Equal(got, []int64{2<<32 | 1, -1 << 63}) {
		t.Error(got)
	}
	for name, want := range map[string]int64{"A": 1 << 31, "C": -1, "D": 2<<32 | 1} {
		if v, err := ts.Enum(name); v != want || err != nil {
			t.Errorf("%s = %d, %v", name, v, err)
		}
	}
	if name, ok := ts.Type(e).EnumName(5); name != "B" || !ok {
		t.Error(name, ok)
	}
	if name, ok := ts.Type(e).EnumName(6); ok {
		t.Error(name)
	}
}
