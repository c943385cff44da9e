package ctype

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// rebuild makes all types of ts anew by a Builder.
func rebuild(ts *Types) *Builder {
	b := NewBuilder()
	ids := make(map[Type]uint32)
	type struc struct {
		t  Type
		id uint32
	}
	var later []struc
	var id func(t Type) uint32
	members := func(t Type) (ms []NewMember) {
		for m := range t.Members() {
			ms = append(ms, NewMember{m.Name, id(m.Type), 8*m.Offset + uint64(m.BitOffset), m.BitSize})
		}
		return ms
	}
	id = func(t Type) (n uint32) {
		if n, ok := ids[t]; ok {
			return n
		}
		switch k := t.Kind(); k {
		case Int:
			enc, _, _ := t.encoding()
			n = b.Int(t.Name(), uint32(t.Size()), Encoding(enc))
		case Float:
			n = b.Float(t.Name(), uint32(t.Size()))
		case Pointer, Const, Volatile, Restrict:
			n = b.To(k, id(t.Elem()))
		case Typedef:
			n = b.Typedef(t.Name(), id(t.Elem()))
		case Array:
			n = b.Array(id(t.Elem()), uint32(t.Len()))
		case Fwd:
			kind := Struct
			if t.flag() {
				kind = Union
			}
			n = b.Declared(kind, t.Name())
		case Struct, Union:
			if t.Name() == "" {
				n = b.Anonymous(k, uint32(t.Size()), members(t))
				break
			}
			n = b.Reserve(k, t.Name(), uint32(t.Size()))
			later = append(later, struc{t, n})
		case Enum, Enum64:
			var vs []NewValue
			for name, v := range t.Enumerators() {
				vs = append(vs, NewValue{name, v})
			}
			n = b.Enum(t.Name(), uint32(t.Size()), t.Signed(), vs)
		case FuncProto:
			var ps []NewParam
			for p := range t.Params() {
				ps = append(ps, NewParam{p.Name, id(p.Type)})
			}
			n = b.Proto(id(t.Elem()), ps)
		case TypeTag:
			n = id(t.Elem())
		}
		ids[t] = n
		return n
	}
	for t := range ts.All() {
		id(t)
		for len(later) > 0 {
			s := later[0]
			later = later[1:]
			b.Define(s.id, members(s.t))
		}
	}
	return b
}

// TestBuilderKernel builds all types of a real kernel anew, and compares each
// that has a name.
func TestBuilderKernel(t *testing.T) {
	want := kernel(t)
	b := rebuild(want)
	got, err := b.Types()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for typ := range want.All() {
		name := typ.String()
		if !lookedUp(typ.Kind()) || typ.Name() == "" || typ.Kind() == Fwd || lookup(t, want, name) != typ {
			continue
		}
		n++
		var g, w bytes.Buffer
		lookup(t, got, name).Print(&g)
		typ.Print(&w)
		if g.String() != w.String() {
			t.Fatalf("got %s\nwant %s", g.String(), w.String())
		}
	}
	if n < 9000 {
		t.Errorf("only %d types compared", n)
	}
	blob, err := b.Blob()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatalf("another reader: %v", err)
	}
	compareSpecs(t, got, spec)
}

func TestBuilder(t *testing.T) {
	b := NewBuilder()
	long := b.Int("long int", 4, Signed)
	char := b.Int("char", 1, Signed|Char)
	later := b.Declared(Struct, "later")
	never := b.Declared(Union, "never")
	node := b.Reserve(Struct, "node", 16)
	inner := b.Anonymous(Union, 4, []NewMember{{"a", long, 0, 0}, {"b", b.To(Pointer, b.To(Const, char)), 0, 0}})
	if again := b.Anonymous(Union, 4, []NewMember{{"a", long, 0, 0}, {"b", b.To(Pointer, b.To(Const, char)), 0, 0}}); again != inner {
		t.Errorf("a type like %d became %d", inner, again)
	}
	b.Define(node, []NewMember{
		{"next", b.To(Pointer, node), 0, 0}, {"p", b.To(Pointer, later), 32, 0}, {"q", b.To(Pointer, never), 64, 0}, {"", inner, 96, 0},
	})
	bits := b.Reserve(Struct, "later", 8)
	b.Define(bits, []NewMember{{"x", long, 3, 5}, {"far", long, 1 << 24, 0}, {"y", long, 32, 0}})
	b.Enum("wide", 8, false, []NewValue{{"MINUS", -32}, {"BIG", 1 << 40}})
	b.Enum("small", 4, true, []NewValue{{"NEG", -2}, {"POS", 7}})
	b.Typedef("fn_t", b.Proto(long, []NewParam{{"x\x00y", char}, {"", 0}}))
	ts, err := b.Types()
	if err != nil {
		t.Fatal(err)
	}
	if ts.PtrSize() != 4 {
		t.Errorf("pointers of %d bytes", ts.PtrSize())
	}
	typ := lookup(t, ts, "node")
	p, err := typ.Member("p")
	if err != nil || p.Type.Elem() != lookup(t, ts, "struct later") || p.Type.Elem().Kind() != Struct {
		t.Errorf("what was declared and then defined is %v, %v", p.Type.Elem().Kind(), err)
	}
	if q, err := typ.Member("q"); err != nil || q.Type.Elem().Kind() != Fwd || q.Type.String() != "union never *" {
		t.Errorf("what was only declared is %v, %v", q.Type, err)
	}
	if a, err := typ.Member("b"); err != nil || a.Offset != 12 || a.Type.String() != "const char *" {
		t.Errorf("in a union without a name: %v, %v", a, err)
	}
	if x, err := lookup(t, ts, "later").Member("x"); err != nil || x.BitOffset != 3 || x.BitSize != 5 {
		t.Errorf("a bit-field: %v, %v", x, err)
	}
	if y, err := lookup(t, ts, "later").Member("y"); err != nil || y.Offset != 4 || y.BitSize != 0 {
		t.Errorf("a member beside a bit-field: %v, %v", y, err)
	}
	if _, err := lookup(t, ts, "later").Member("far"); !errors.Is(err, ErrNoMember) {
		t.Errorf("a member that BTF cannot tell: %v", err)
	}
	for name, want := range map[string]int64{"MINUS": -32, "BIG": 1 << 40, "NEG": -2, "POS": 7} {
		if v, err := ts.Enum(name); err != nil || v != want {
			t.Errorf("%s is %d, %v", name, v, err)
		}
	}
	var params []string
	for p := range lookup(t, ts, "fn_t").Elem().Params() {
		params = append(params, p.Type.String()+" "+p.Name)
	}
	if !slices.Equal(params, []string{"char x", "void "}) {
		t.Errorf("parameters %q", params)
	}
	if n := b.Size(b.Array(node, 3), 4); n != 48 {
		t.Errorf("3 of 16 bytes are %d", n)
	}
}
