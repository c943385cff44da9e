package ctype

import (
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
)

func TestBind(t *testing.T) {
	ts := zoo().parse(t)
	var l struct {
		ID    Field `c:"node.id"`
		Alt   Field `c:"node.gone|struct node.name"`
		Mid   Field `c:"node.mid"`
		Gone  Field `c:"node.gone,optional"`
		GoneN int   `c:"nowhere.x,optional"`
		Node  Type  `c:"node"`
		Elem  Type  `c:"node.arr[0]"`
		Inner struct {
			Size uint32 `c:"sizeof(node)"`
			Name uint64 `c:"sizeof(node.name)"`
			Busy int8   `c:"enum(NOPE)|enum(BUSY)"`
			B    mem.VA `c:"node.arr[2].b"`
		}
		Plain int
	}
	l.GoneN, l.Plain = -7, 9
	if err := Bind(ts, &l); err != nil {
		t.Fatal(err)
	}
	node := lookup(t, ts, "node")
	if !l.ID.Valid() || l.ID.Offset != 0 || l.ID.Type.String() != "int" || l.Alt.Offset != 16 || l.Mid.BitSize != 7 || l.Gone.Valid() ||
		l.GoneN != -7 || l.Node != node || l.Elem.Size() != 8 || l.Inner.Size != 80 || l.Inner.Name != 8 || l.Inner.Busy != 1 ||
		l.Inner.B != 68 || l.Plain != 9 {
		t.Errorf("%+v", l)
	}
	if l.Alt.At(0x1000) != 0x1010 || l.Alt.Size() != 8 {
		t.Errorf("%#x, %d bytes", l.Alt.At(0x1000), l.Alt.Size())
	}
}

func TestBindMissing(t *testing.T) {
	var l struct {
		A Field  `c:"node.gone"`
		B Field  `c:"node.id"`
		C Field  `c:"none.x|node.absent"`
		D int64  `c:"enum(NOPE)"`
		E uint64 `c:"sizeof(later)"`
		F uint64 `c:"node.mid"` // a bit-field
		G int8   `c:"node.tail[900]"`
	}
	err := Bind(zoo().parse(t), &l)
	var be *BindError
	if !errors.As(err, &be) || len(be.Missing) != 6 {
		t.Fatalf("%v", err)
	}
	for _, class := range []error{ErrNoType, ErrNoMember, ErrNoEnumerator} {
		if !errors.Is(err, class) {
			t.Errorf("not an %v", class)
		}
	}
	for _, s := range []string{`"struct node.gone"`, `"none"`, `"NOPE"`, "later", "mid", "980"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not named in: %v", s, err)
		}
	}
	if !l.B.Valid() {
		t.Error("what is there was not filled in")
	}
}

func TestBindRefuses(t *testing.T) {
	ts := zoo().parse(t)
	for name, dst := range map[string]any{
		"not a pointer": struct{}{},
		"nil":           (*struct{})(nil),
		"not a struct":  new(int),
		"unexported": &struct {
			a Field `c:"node.id"`
		}{},
		"option": &struct {
			A Field `c:"node.id,maybe"`
		}{},
		"kind of field": &struct {
			A string `c:"node.id"`
		}{},
		"no member": &struct {
			A Field `c:"node"`
		}{},
		"size in a field": &struct {
			A Field `c:"sizeof(node)"`
		}{},
	} {
		err := Bind(ts, dst)
		var be *BindError
		if err == nil || errors.As(err, &be) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBindModule(t *testing.T) {
	base := zoo().parse(t)
	m := splitBuilder(base)
	m.strukt(Struct, "own", 0, 8, memb{"p", 7, 0})
	mod, err := ParseSplit(m.blob(), base)
	if err != nil {
		t.Fatal(err)
	}
	var l struct {
		P  Field `c:"own.p"`
		ID Field `c:"node.count"`
	}
	if err := Bind(mod, &l); err != nil || l.P.Type.Elem() != lookup(t, base, "node") || l.ID.Offset != 32 {
		t.Errorf("%+v, %v", l, err)
	}
}
