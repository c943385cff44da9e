package ctype

import (
	"bytes"
	"strings"
	"testing"
)

func TestDeclarations(t *testing.T) {
	b := newBuilder()
	i := b.int("int", 4, intSigned)
	s := b.strukt(Struct, "s", 0, 4)
	c := b.add(Const, "", 0, s)
	pc := b.add(Pointer, "", 0, c)
	cp := b.add(Const, "", 0, pc)
	a := b.add(Array, "", 0, 0, pc, i, 3)
	pa := b.add(Pointer, "", 0, a)
	proto := b.add(FuncProto, "", 3, i, b.str("x"), i, 0, pc, 0, 0)
	fp := b.add(Pointer, "", 0, proto)
	tag := b.add(TypeTag, "rcu", 0, s)
	pt := b.add(Pointer, "", 0, tag)
	afp := b.add(Array, "", 0, 0, fp, i, 2)
	none := b.add(FuncProto, "", 0, 0)
	vol := b.add(Volatile, "", 0, i)
	td := b.add(Typedef, "t", 0, fp)
	ptd := b.add(Pointer, "", 0, td)
	anon := b.strukt(Struct, "", 0, 4)
	evil := b.add(Typedef, "a\x1b[2J\xff", 0, i)
	rp := b.add(Restrict, "", 0, cp)
	f := b.add(Func, "main", 0, proto)
	ts := b.parse(t)
	for _, x := range []struct {
		id   uint32
		want string
	}{
		{0, "void v"}, {i, "int v"}, {s, "struct s v"}, {c, "const struct s v"}, {pc, "const struct s * v"}, {cp, "const struct s * const v"},
		{a, "const struct s * v[3]"}, {pa, "const struct s * (*v)[3]"}, {proto, "int v(int x, const struct s *, ...)"},
		{fp, "int (*v)(int x, const struct s *, ...)"}, {pt, "struct s * v"}, {afp, "int (*v[2])(int x, const struct s *, ...)"},
		{none, "void v(void)"}, {vol, "volatile int v"}, {td, "t v"}, {ptd, "t * v"}, {anon, "struct {...} v"}, {evil, `a\x1b[2J\xff v`},
		{rp, "const struct s * const restrict v"},
	} {
		if got := declare(ts.Type(x.id), "v"); got != x.want {
			t.Errorf("type %d: %q, want %q", x.id, got, x.want)
		}
	}
	for id, want := range map[uint32]string{0: "void", pc: "const struct s *", fp: "int (*)(int x, const struct s *, ...)", f: "int main(int x, const struct s *, ...)"} {
		if got := ts.Type(id).String(); got != want {
			t.Errorf("type %d: %q, want %q", id, got, want)
		}
	}
}

func TestPrintType(t *testing.T) {
	ts := zoo().parse(t)
	for _, c := range []struct{ name, want string }{
		{"node", `struct node {
	int                        id;                   /*     0     4 */
	int                        low:3;                /*     4: 0  4 */
	int                        mid:7;                /*     4: 3  4 */
	_Bool                      flag:1;               /*     5: 2  1 */
	/* 21 bits hole */
	union {
		struct {
			int                        a;    /*     8     4 */
			int                        b;    /*    12     4 */
		};                                       /*     8     8 */
		long unsigned int          both;         /*     8     8 */
	};                                               /*     8     8 */
	char                       name[8];              /*    16     8 */
	struct node *              next;                 /*    24     8 */
	atomic_t                   count;                /*    32     4 */
	enum state                 state;                /*    36     4 */
	char *                     text;                 /*    40     8 */
	struct {
		int                        a;            /*    48     4 */
		int                        b;            /*    52     4 */
	} arr[4];                                        /*    48    32 */
	unsigned char              tail[];               /*    80     0 */
	/* size: 80, members: 12 */
};
`},
		{"state", "enum state {\n\tIDLE                       = 0,\n\tBUSY                       = 1,\n\tBUSY2                      = 1,\n}; /* size: 4 */\n"},
		{"atomic_t", "typedef struct {\n\tint                        counter;              /*     0     4 */\n\t/* size: 4, members: 1 */\n} atomic_t;\n"},
		{"int", "int; /* size: 4 */\n"},
		{"later", "struct later; /* size: 0 */\n"},
		{"later_u", "union later_u; /* size: 0 */\n"},
	} {
		var w bytes.Buffer
		if err := lookup(t, ts, c.name).Print(&w); err != nil || w.String() != c.want {
			t.Errorf("%v; got:\n%swant:\n%s", err, &w, c.want)
		}
	}
	b := newBuilder()
	i := b.int("int", 4, intSigned)
	evil := b.strukt(Struct, "x\x1b[31m", 0, 4, memb{"m\n\x07", i, 0})
	en := b.enum("e\r", 0, "v\x9b", 1)
	fn := b.add(Func, "f", 0, b.next+1)
	b.add(FuncProto, "", 0, i)
	ts = b.parse(t)
	var w bytes.Buffer
	for _, id := range []uint32{evil, en, fn} {
		if err := ts.Type(id).Print(&w); err != nil {
			t.Fatal(err)
		}
	}
	if strings.ContainsAny(w.String(), "\x1b\x07\r\x9b") || !strings.Contains(w.String(), `m\n\a;`) || !strings.HasSuffix(w.String(), "int f(void);\n") {
		t.Errorf("%q", w.String())
	}
}
