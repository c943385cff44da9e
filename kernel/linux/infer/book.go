package infer

import (
	"cmp"
	"maps"
	"slices"

	"vmscope/ctype"
)

// book holds the members that were found.
type book struct {
	c       *ctype.Builder
	w       int // bytes of a pointer
	structs map[string][]member
	more    func() // what else the types must have
}

type member struct {
	name string
	off  int
	kind kind
}

// kind makes the type of a member.
type kind func(*ctype.Builder) uint32

func newBook(w int) *book {
	return &book{c: ctype.NewBuilder(), w: w, structs: make(map[string][]member), more: func() {}}
}

func int32Type(c *ctype.Builder) uint32  { return c.Int("int", 4, ctype.Signed) }
func uint32Type(c *ctype.Builder) uint32 { return c.Int("unsigned int", 4, 0) }
func uint64Type(c *ctype.Builder) uint32 { return c.Int("long long unsigned int", 8, 0) }

func pointerType(c *ctype.Builder) uint32 { return c.To(ctype.Pointer, 0) }

// listHead is two pointers.
func (b *book) listHead(c *ctype.Builder) uint32 {
	p := pointerType(c)
	return c.Anonymous(ctype.Struct, uint32(2*b.w), []ctype.NewMember{{Name: "next", Type: p}, {Name: "prev", Type: p, Offset: 8 * uint64(b.w)}})
}

// char is text of n bytes.
func char(n uint32) kind {
	return func(c *ctype.Builder) uint32 { return c.Array(c.Int("char", 1, ctype.Signed), n) }
}

// opaque is a struct of n bytes.
func opaque(n int) kind {
	return func(c *ctype.Builder) uint32 { return c.Anonymous(ctype.Struct, uint32(n), nil) }
}

func (b *book) add(typ, name string, off int, k kind) {
	b.structs[typ] = append(b.structs[typ], member{name, off, k})
}

func (b *book) names() (out []string) {
	for typ, members := range b.structs {
		for _, m := range members {
			out = append(out, typ+"."+m.name)
		}
	}
	slices.Sort(out)
	return out
}

// types makes types of all that is in the book.
func (b *book) types() (*ctype.Types, error) {
	for _, typ := range slices.Sorted(maps.Keys(b.structs)) {
		members := b.structs[typ]
		slices.SortFunc(members, func(x, y member) int { return cmp.Compare(x.off, y.off) })
		var all []ctype.NewMember
		size := uint64(0)
		for _, m := range members {
			id := m.kind(b.c)
			all = append(all, ctype.NewMember{Name: m.name, Type: id, Offset: 8 * uint64(m.off)})
			size = max(size, uint64(m.off)+b.c.Size(id, b.w))
		}
		b.c.Define(b.c.Reserve(ctype.Struct, typ, uint32(size)), all)
	}
	b.c.Int("long unsigned int", uint32(b.w), 0) // by which it is known how large a pointer is
	b.more()
	return b.c.Types()
}
