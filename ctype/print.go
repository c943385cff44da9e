package ctype

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Print writes the type's definition as pahole does: each member of a struct
// with its offset and size in bytes, a bit-field with the offset of its storage
// unit, its first bit there and the unit's size, anonymous structs in place,
// holes named. Other types are written as C declares them.
//
// Names are the guest's; what does not fit a terminal is escaped.
func (t Type) Print(w io.Writer) error {
	p := printer{w: bufio.NewWriter(w), budget: maxLines}
	switch t.Kind() {
	case Struct, Union:
		p.line(0, "%s {", typeName(t))
		p.members(t, 1, 0)
		p.footer(t)
		p.line(0, "};")
	case Enum, Enum64:
		p.line(0, "%s {", typeName(t))
		p.enumerators(t, 1)
		p.line(0, "}; /* size: %d */", t.Size())
	case Typedef:
		p.typedef(t)
	case Func:
		base, decl := declarator(t, "")
		p.line(0, "%s %s;", base, decl)
	default:
		p.line(0, "%s; /* size: %d */", t, t.Size())
	}
	if p.budget <= 0 {
		p.line(0, "/* cut after %d lines */", maxLines)
	}
	return p.w.Flush()
}

// maxLines bounds what one Print writes; each longLine bytes of a line count as
// one more.
const (
	maxLines = 1 << 14
	longLine = 256
)

type printer struct {
	w      *bufio.Writer
	budget int
}

func (p *printer) line(indent int, format string, args ...any) {
	for range indent {
		p.w.WriteByte('\t')
	}
	n, _ := fmt.Fprintf(p.w, format, args...)
	p.w.WriteByte('\n')
	p.budget -= n / longLine
}

// spend counts one line and reports whether it may still be written.
func (p *printer) spend() bool {
	p.budget--
	return p.budget > 0
}

func (p *printer) typedef(t Type) {
	name := clean(t.Name())
	to := t.target()
	switch k := to.Kind(); {
	case (k == Struct || k == Union) && to.Name() == "":
		p.line(0, "typedef %s {", k)
		p.members(to, 1, 0)
		p.footer(to)
		p.line(0, "} %s;", name)
	case enumSize(k) != 0 && to.Name() == "":
		p.line(0, "typedef enum {")
		p.enumerators(to, 1)
		p.line(0, "} %s; /* size: %d */", name, to.Size())
	default:
		p.line(0, "typedef %s; /* size: %d */", declare(to, name), t.Size())
	}
}

func (p *printer) enumerators(t Type, indent int) {
	for name, v := range t.Enumerators() {
		if !p.spend() {
			return
		}
		if t.Signed() {
			p.line(indent, "%-26s = %d,", clean(name), v)
		} else {
			p.line(indent, "%-26s = %d,", clean(name), uint64(v))
		}
	}
}

func (p *printer) footer(t Type) {
	p.line(1, "/* size: %d, members: %d */", t.Size(), t.Len())
}

// place is offset and size as the comment behind a member: two numbers, or
// "offset:bit size" of its storage unit for a bit-field.
func place(f Field, base uint64) string {
	if f.BitSize == 0 {
		return fmt.Sprintf("/* %5d %5d */", base+f.Offset, f.Type.Size())
	}
	byteOff, bit := f.unit()
	return fmt.Sprintf("/* %5d:%2d %2d */", base+byteOff, bit, f.Type.Size())
}

// unit gives the storage unit of a bit-field, as wide as its declared type, and
// the first bit in it.
func (f Field) unit() (off, bit uint64) {
	size := f.Type.Size()
	if size != 1 && size != 2 && size != 4 && size != 8 {
		return f.Offset, uint64(f.BitOffset)
	}
	off = f.Offset &^ (size - 1)
	bit = (f.Offset-off)*8 + uint64(f.BitOffset)
	if bit+uint64(f.BitSize) > 8*size { // packed: the unit is not aligned
		return f.Offset, uint64(f.BitOffset)
	}
	return off, bit
}

// members writes the members of t, which begins base bytes into the outermost
// struct.
func (p *printer) members(t Type, indent int, base uint64) {
	end := uint64(0) // bits, of the members so far
	n := 0
	for m := range t.Members() {
		if !p.spend() {
			return
		}
		n++
		begin, size := 8*m.Offset+uint64(m.BitOffset), uint64(m.BitSize)
		if m.BitSize == 0 {
			size = 8 * m.Type.Size()
		}
		if t.Kind() == Struct {
			p.gap(indent, begin, end, "hole")
			end = max(end, begin+size)
		}
		p.member(m, indent, base, t.Kind() == Struct && n == t.Len())
	}
	if t.Kind() == Struct && t.Len() > 0 {
		p.gap(indent, 8*t.Size(), end, "padding")
	}
}

// gap names bits that no member has.
func (p *printer) gap(indent int, begin, end uint64, what string) {
	switch n := begin - end; {
	case begin <= end:
	case n%8 == 0:
		p.line(indent, "/* %d bytes %s */", n/8, what)
	default:
		p.line(indent, "/* %d bits %s */", n, what)
	}
}

func (p *printer) member(m Member, indent int, base uint64, last bool) {
	name := clean(m.Name)
	if m.BitSize != 0 {
		name += fmt.Sprintf(":%d", m.BitSize)
	}
	b, decl := declarator(m.Type, name)
	if head, ok := strings.CutSuffix(decl, "[0]"); ok && last { // BTF does not tell x[] from x[0]
		decl = head + "[]"
	}
	leaf := m.Type.leaf()
	if before, after, ok := strings.Cut(b, "{...}"); ok && leaf.Name() == "" && indent < maxDepth {
		p.line(indent, "%s{", before)
		if enumSize(leaf.Kind()) != 0 {
			p.enumerators(leaf, indent+1)
		} else {
			p.members(leaf, indent+1, base+m.Offset)
		}
		b = strings.TrimSuffix("}"+after+" "+decl, " ")
	} else if decl != "" {
		b = fmt.Sprintf("%-26s %s", b, decl)
	}
	p.line(indent, "%-*s %s", 56-8*min(indent, 7), b+";", place(m.Field, base))
}

// leaf is the type that a declaration of t begins with, if no function is on
// the way.
func (t Type) leaf() Type {
	for range maxDepth {
		switch t.Kind() {
		case Pointer, Array, Const, Volatile, Restrict, TypeTag:
			t = t.Elem()
		default:
			return t
		}
	}
	return Type{}
}
