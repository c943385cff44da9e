package ctype

import (
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
)

// zeros is a guest that has nothing but zeros, everywhere.
type zeros struct{}

func (zeros) Translate(va mem.VA) (mem.Mapping, error) {
	return mem.Mapping{PA: mem.PA(va & (1<<40 - 1)), Size: mem.PageSize}, nil
}

func (zeros) ReadPhys(p []byte, _ mem.PA) (int, error) {
	clear(p)
	return len(p), nil
}

// counter is a writer that knows how much it was given.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// walk uses everything of what was accepted. The expensive uses are bounded by
// themselves, so a blob of many types gets only some of them.
func walk(t *testing.T, ts *Types, blob []byte) {
	t.Helper()
	if len(ts.offs)*recSize > len(blob) {
		t.Fatalf("%d types in %d bytes", len(ts.offs), len(blob))
	}
	space := mem.NewSpace("zeros", zeros{}, zeros{})
	n := 0
	for typ := range ts.All() {
		if n++; n > 200 {
			break
		}
		name := typ.Name()
		if len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			t.Fatalf("name %q", name)
		}
		if lookedUp(typ.Kind()) && name != "" && len(name) < maxName && !strings.Contains(name, " ") {
			if got, err := ts.Lookup(name); err != nil || got.Name() != name {
				t.Fatalf("%q is there, but: %v, %v", name, got, err)
			}
		}
		if s := typ.String(); len(s) > (maxDeclNodes+2)*(4*maxName+16) {
			t.Fatalf("a declaration of %d bytes", len(s))
		}
		typ.Underlying()
		typ.Signed()
		typ.IsBool()
		typ.IsChar()
		typ.Elem()
		if typ.Size() > 1<<63-1 {
			t.Fatalf("size %d", typ.Size())
		}
		k := 0
		for range typ.Enumerators() {
			k++
		}
		for range typ.Params() {
			k++
		}
		for m := range typ.Members() {
			if k++; k > 50 || m.Name == "" || len(m.Name) == maxName || strings.ContainsAny(m.Name, ".[]") {
				continue
			}
			f, err := typ.Member(m.Name)
			if f.Valid() != (err == nil) {
				t.Fatalf("%v.%s: %+v, %v", typ, m.Name, f, err)
			}
			if err != nil && !errors.Is(err, mem.ErrInconsistent) && !m.Type.IsVoid() {
				t.Fatalf("%v has a member %q, but: %v", typ, m.Name, err)
			}
			if o, err := typ.At(space, 0x1000).Field(m.Name); err == nil {
				_, _ = o.Int()
				_, _ = o.String()
				_, _ = o.Deref()
				_, _ = o.Index(1)
			}
		}
		if k > len(blob)/8 {
			t.Fatalf("%d elements in %d bytes", k, len(blob))
		}
		if n <= 16 {
			var c counter
			_ = typ.Print(&c)
			_ = typ.At(space, 0x1000).Print(&c, 3)
			if c > 2*maxLines*(4*maxName+4*maxDeclNodes*maxName) {
				t.Fatalf("%d bytes printed", c)
			}
		}
	}
	if _, err := ts.Enum("no such enumerator\x00"); !errors.Is(err, ErrNoEnumerator) {
		t.Fatal(err)
	}
	var l struct {
		A Field `c:"node.arr[1].b|s.x,optional"`
		B int64 `c:"enum(BUSY),optional"`
		C int64 `c:"sizeof(node),optional"`
	}
	if err := Bind(ts, &l); err != nil {
		t.Fatalf("nothing but optional fields: %v", err)
	}
	_, _ = ts.Func("main")
}

func classified(t *testing.T, ts *Types, err error) {
	t.Helper()
	if (ts == nil) != (err != nil) {
		t.Fatalf("%v beside %v", ts, err)
	}
	if err != nil && !errors.Is(err, mem.ErrInconsistent) && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("unclassified: %v", err)
	}
}

// loops is the worst that TestLoops knows, in small.
func loops() *builder {
	b := newBuilder()
	td := b.add(Typedef, "loop_t", 0, b.next)
	b.add(Array, "", 0, 0, b.next, td, 1000)
	b.strukt(Struct, "self", 0, 8, memb{"", b.next, 0}, memb{"x", td, 0}, memb{"", b.next, 0})
	b.add(FuncProto, "", 2, b.next, 0, b.next, 0, b.next)
	return b
}

func FuzzParse(f *testing.F) {
	f.Add(zoo().blob())
	f.Add(loops().blob())
	b := zoo()
	b.layout = make([]byte, 4*(numKinds+1))
	b.layout[4*numKinds] = 8
	b.add(numKinds, "new", 0, 0, 1, 2)
	b.add(Enum64, "big", 1, 8, b.str("D"), 1, 2)
	b.add(Func, "main", 0, b.next+1)
	b.add(FuncProto, "", 1, 1, b.str("x"), 1)
	b.add(Var, "v", 0, 1, 0)
	b.add(DataSec, "d", 1, 4, b.next-1, 0, 4)
	b.add(Float, "double", 0, 8)
	b.add(DeclTag, "tag", 0, 1, 0)
	b.add(TypeTag, "rcu", 0, 1)
	f.Add(b.blob())
	f.Fuzz(func(t *testing.T, blob []byte) {
		ts, err := Parse(blob)
		classified(t, ts, err)
		if err == nil {
			walk(t, ts, blob)
		}
	})
}

func FuzzParseSplit(f *testing.F) {
	base, err := Parse(zoo().blob())
	if err != nil {
		f.Fatal(err)
	}
	m := splitBuilder(base)
	m.add(Fwd, "s", 0, 0)
	m.strukt(Struct, "own", 0, 16, memb{"p", 7, 0}, memb{"n", 11, 64})
	m.add(Typedef, "mine", 0, m.next-1)
	f.Add(m.blob())
	f.Add(loops().blob())
	f.Fuzz(func(t *testing.T, blob []byte) {
		ts, err := ParseSplit(blob, base)
		classified(t, ts, err)
		if err == nil {
			walk(t, ts, blob)
		}
	})
}

// FuzzMember takes any path into real types: it ends, and what it finds lies
// where the members on the way say.
func FuzzMember(f *testing.F) {
	ts, err := Parse(zoo().blob())
	if err != nil {
		f.Fatal(err)
	}
	node, err := ts.Lookup("node")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"id", "arr[3].b", "name[7]", "next.id", "count.counter", "[0]", "a..b", "tail[4294967295]", "tail[", "x]"} {
		f.Add(s)
	}
	o := node.At(mem.NewSpace("zeros", zeros{}, zeros{}), 0x1000)
	f.Fuzz(func(t *testing.T, path string) {
		fd, err := node.Member(path)
		if fd.Valid() != (err == nil) || err != nil && !errors.Is(err, ErrNoMember) {
			t.Fatalf("%q: %+v, %v", path, fd, err)
		}
		if fd.Offset >= 80+1<<32 {
			t.Fatalf("%q: offset %d", path, fd.Offset)
		}
		if x, oerr := o.Field(path); err == nil && (oerr != nil || x.Addr != fd.At(o.Addr) || x.Type != fd.Type) {
			t.Fatalf("%q: the object's is %+v, %v; the type's %+v", path, x, oerr, fd)
		}
	})
}
