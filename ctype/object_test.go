package ctype

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
)

// menagerie is memory with two nodes of the zoo: one at base, that points to
// another at base+0x100.
func menagerie(t *testing.T) (Object, []byte) {
	const base = 0xffff888000001000
	b := make([]byte, 0x1000)
	put := func(off int, v uint64, n int) { copy(b[off:off+n], le.AppendUint64(nil, v)) }
	put(0, 1<<32-7, 4)         // id = -7
	put(4, 0b1_1010101_101, 2) // flag, mid, low
	put(4, 0b101|0b1010101<<3|1<<10, 2)
	put(8, 0x1122334455667788, 8)  // a, b, both
	copy(b[16:], "swapper\xff")    // no NUL
	put(24, base+0x100, 8)         // next
	put(32, 1<<32-2, 4)            // count = -2
	put(36, 1, 4)                  // state = BUSY
	put(40, base+0x200, 8)         // text
	put(48, 0x0000000500000004, 8) // arr[0]
	put(72, 0x0000000700000006, 8) // arr[3]
	put(0x100, 42, 4)
	copy(b[0x110:], "a\"\x1b\x00zz")
	copy(b[0x200:], "hello\x00")
	ts := zoo().parse(t)
	return lookup(t, ts, "node").At(ram{base, b}.space(), base), b
}

func TestObjectValues(t *testing.T) {
	o, _ := menagerie(t)
	for _, c := range []struct {
		path string
		u    uint64
		i    int64
	}{
		{"id", 1<<32 - 7, -7},
		{"low", 5, -3},
		{"mid", 0x55, -43},
		{"flag", 1, 1},
		{"a", 0x55667788, 0x55667788},
		{"b", 0x11223344, 0x11223344},
		{"both", 0x1122334455667788, 0x1122334455667788},
		{"count", 1<<32 - 2, -2},
		{"count.counter", 1<<32 - 2, -2},
		{"state", 1, 1},
		{"arr[3].b", 7, 7},
		{"arr[0].a", 4, 4},
		{"name[7]", 0xff, -1},
		{"next.id", 42, 42},
		{"next[0].id", 42, 42},
		{"text[1]", 'e', 'e'},
		{"next", 0xffff888000001100, -0x777fffffef00},
	} {
		f, err := o.Field(c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		u, err := f.Uint()
		if err != nil || u != c.u {
			t.Errorf("%s = %#x, %v; want %#x", c.path, u, err, c.u)
		}
		if i, err := f.Int(); err != nil || i != c.i {
			t.Errorf("%s = %d, %v; want %d", c.path, i, err, c.i)
		}
	}
	for path, want := range map[string]string{"name": "swapper\xff", "next.name": "a\"\x1b", "text": "hello"} {
		f, err := o.Field(path)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := f.String(); s != want || err != nil {
			t.Errorf("%s = %q, %v; want %q", path, s, err, want)
		}
	}
}

func TestObjectShortcuts(t *testing.T) {
	o, _ := menagerie(t)
	if s, err := o.Text("next.name"); s != "a\"\x1b" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if n, err := o.Number("count"); n != -2 || err != nil {
		t.Error(n, err)
	}
	if _, err := o.Text("none"); !errors.Is(err, ErrNoMember) {
		t.Error(err)
	}
	if _, err := o.Number("next.next.id"); !errors.Is(err, mem.ErrNotMapped) {
		t.Error(err)
	}
}

func TestObjectRefuses(t *testing.T) {
	o, _ := menagerie(t)
	field := func(path string) Object {
		t.Helper()
		f, err := o.Field(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	var fault *mem.FaultError
	if _, err := o.Field("next.next.id"); !errors.Is(err, mem.ErrNotMapped) || !errors.As(err, &fault) || fault.Space != "kernel" {
		t.Errorf("through a null pointer: %v", err)
	}
	for _, path := range []string{"", "none", "next.none", "id.x", "name[8]", "next..id", "text.x"} {
		if _, err := o.Field(path); !errors.Is(err, ErrNoMember) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := field("arr").Uint(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an array as a number: %v", err)
	}
	if _, err := o.Uint(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a struct as a number: %v", err)
	}
	if _, err := field("id").Deref(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an int as a pointer: %v", err)
	}
	if _, err := field("arr").String(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("structs as text: %v", err)
	}
	if p, err := field("both").Pointer(); p != 0x1122334455667788 || err != nil {
		t.Errorf("an unsigned long as an address: %#x, %v", p, err)
	}
	if _, err := (Object{Space: o.Space, Addr: o.Addr}).Uint(); err == nil {
		t.Error("void has a value")
	}
	var zero Object
	if _, err := zero.Bytes(); err == nil {
		t.Error("the zero object has bytes")
	}
}

func TestContainerOf(t *testing.T) {
	o, _ := menagerie(t)
	f, err := o.Field("arr[2]")
	if err != nil {
		t.Fatal(err)
	}
	back, err := f.ContainerOf(o.Type, "arr[2]")
	if err != nil || back != o {
		t.Errorf("%+v, %v; want %+v", back, err, o)
	}
	if _, err := f.ContainerOf(o.Type, "low"); !errors.Is(err, ErrNoMember) {
		t.Error(err)
	}
}

// A packed bit-field goes over the end of its word.
func TestBitsAcrossWords(t *testing.T) {
	b := newBuilder()
	u := b.int("u64", 8, 0)
	s := b.int("s64", 8, intSigned)
	b.strukt(Struct, "packed", kindFlag, 16, memb{"pad", u, 63 << 24}, memb{"x", u, 63 | 64<<24}, memb{"y", s, 60 | 9<<24})
	typ := lookup(t, b.parse(t), "packed")
	o := typ.At(ram{0x1000, []byte{0, 0, 0, 0, 0, 0, 0, 0xd0, 0x55, 1, 0, 0, 0, 0, 0, 0x80}}.space(), 0x1000)
	x, err := o.Field("x")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := x.Uint(); v != 0x00000000000002ab || err != nil {
		t.Errorf("x = %#x, %v", v, err)
	}
	y, err := o.Field("y")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := y.Int(); v != 0x15d-512 && v != 0x15d || err != nil {
		t.Errorf("y = %#x, %v", v, err)
	}
	var w bytes.Buffer
	if err := o.Print(&w, 1); err != nil || !strings.Contains(w.String(), ".x = 683,") {
		t.Errorf("%v:\n%s", err, &w)
	}
}

func TestPrintObject(t *testing.T) {
	o, mem0 := menagerie(t)
	var w bytes.Buffer
	if err := o.Print(&w, 1); err != nil {
		t.Fatal(err)
	}
	const want = `{
	.id = -7,
	.low = -3,
	.mid = -43,
	.flag = true,
	{
		{
			.a = 1432778632,
			.b = 287454020,
		},
		.both = 0x1122334455667788,
	},
	.name = "swapper\xff",
	.next = 0xffff888000001100,
	.count = {
		.counter = -2,
	},
	.state = BUSY,
	.text = 0xffff888000001200,
	.arr = {{
		.a = 4,
		.b = 5,
	}, {
		.a = 0,
		.b = 0,
	}, {
		.a = 0,
		.b = 0,
	}, {
		.a = 6,
		.b = 7,
	}},
	.tail = {},
}
`
	if w.String() != want {
		t.Errorf("got:\n%swant:\n%s", &w, want)
	}
	w.Reset()
	if err := o.Print(&w, 0); err != nil || !strings.Contains(w.String(), ".count = {…},") || !strings.Contains(w.String(), ".arr = {{…}, ") {
		t.Errorf("depth 0: %v:\n%s", err, &w)
	}
	w.Reset()
	low, err := o.Field("low")
	if err != nil {
		t.Fatal(err)
	}
	if err := low.Print(&w, 0); err != nil || w.String() != "-3\n" {
		t.Errorf("a bit-field: %q, %v", w.String(), err)
	}
	// Half of the object is not there.
	w.Reset()
	o.Space = ram{o.Addr, mem0[:36]}.space()
	err = o.Print(&w, 1)
	if !errors.Is(err, mem.ErrNoRAM) && !errors.Is(err, mem.ErrNotMapped) {
		t.Errorf("the fault was swallowed: %v", err)
	}
	if s := w.String(); !strings.Contains(s, ".id = -7,") || !strings.Contains(s, ".state = ?,") {
		t.Errorf("half an object:\n%s", s)
	}
}
