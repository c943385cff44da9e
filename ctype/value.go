package ctype

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
)

const (
	maxElems = 16  // elements printed of an array
	maxQuote = 256 // bytes printed of a char array
	longEnum = 256 // enumerators that count as one more value printed
)

// Print writes the value of the object: numbers in decimal, large unsigned ones
// and pointers in hex, enums by name, char arrays quoted. Structs in it are
// written down to depth levels, arrays are cut after 16 elements.
//
// The object is read once, at most 1 MiB, and printed from the copy. Where part
// of it cannot be read, the rest is printed, the missing values as "?", and the
// fault is returned.
func (o Object) Print(w io.Writer, depth int) error {
	var buf []byte
	var rerr error
	if o.bitSize != 0 {
		v, err := o.bits()
		if err != nil {
			return err
		}
		buf = le.AppendUint64(nil, v)
		o.bitOff = 0
	} else if buf, rerr = o.Bytes(); buf == nil {
		return rerr
	}
	v := valuer{w: bufio.NewWriter(w), budget: maxLines, buf: buf}
	v.value(Field{Type: o.Type, BitSize: o.bitSize}, 0, depth)
	v.w.WriteByte('\n')
	if v.budget <= 0 {
		fmt.Fprintf(v.w, "/* cut after %d values */\n", maxLines)
	}
	if err := v.w.Flush(); err != nil {
		return err
	}
	return rerr
}

type valuer struct {
	w      *bufio.Writer
	budget int
	buf    []byte // the outermost object
}

// value writes what lies at f, whose offset is that in the outermost object.
func (v *valuer) value(f Field, indent, depth int) {
	if v.budget--; v.budget <= 0 {
		v.w.WriteString("…")
		return
	}
	u := f.Type.Underlying()
	switch u.Kind() {
	case Struct, Union:
		if depth < 0 || indent > maxDepth {
			v.w.WriteString("{…}")
			return
		}
		v.members(u, f.Offset, indent, depth)
	case Array:
		v.array(u, f.Offset, indent, depth)
	case Int, Enum, Enum64, Pointer:
		v.number(u, f)
	case Float:
		v.raw(f.Offset, u.Size())
	default:
		fmt.Fprintf(v.w, "/* %v */", u.Kind())
	}
}

func (v *valuer) newline(indent int) {
	v.w.WriteByte('\n')
	for range indent {
		v.w.WriteByte('\t')
	}
}

func (v *valuer) members(u Type, base uint64, indent, depth int) {
	v.w.WriteByte('{')
	for m := range u.Members() {
		if v.budget <= 0 {
			break
		}
		f := m.Field
		f.Offset += base
		v.newline(indent + 1)
		d := depth - 1
		if m.Name != "" {
			fmt.Fprintf(v.w, ".%s = ", clean(m.Name))
		} else {
			d = depth // an anonymous struct is no level of its own
		}
		v.value(f, indent+1, d)
		v.w.WriteByte(',')
	}
	v.newline(indent)
	v.w.WriteByte('}')
}

func (v *valuer) array(u Type, base uint64, indent, depth int) {
	elem, n := u.Elem(), uint64(u.Len())
	if t := elem.Underlying(); t.Kind() == Int && t.Size() == 1 && t.Name() == "char" {
		v.text(base, n)
		return
	}
	size := elem.Size()
	v.w.WriteByte('{')
	for i := range min(n, maxElems) {
		if v.budget <= 0 {
			break
		}
		if i > 0 {
			v.w.WriteString(", ")
		}
		v.value(Field{Offset: base + i*size, Type: elem}, indent, depth)
	}
	if n > maxElems {
		fmt.Fprintf(v.w, ", … %d more", n-maxElems)
	}
	v.w.WriteByte('}')
}

// at gives n bytes of the object, nil if they were not read.
func (v *valuer) at(off, n uint64) []byte {
	if off > uint64(len(v.buf)) || n > uint64(len(v.buf))-off {
		return nil
	}
	return v.buf[off : off+n]
}

// text writes a char array up to its first NUL, quoted.
func (v *valuer) text(off, n uint64) {
	n = min(n, maxQuote+1)
	b := v.at(off, n)
	if b == nil {
		v.w.WriteByte('?')
		return
	}
	more := ""
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	} else if len(b) > maxQuote {
		b, more = b[:maxQuote], "…"
	}
	v.w.WriteString(strconv.Quote(string(b)) + more)
}

// raw writes bytes that are no number of C.
func (v *valuer) raw(off, n uint64) {
	b := v.at(off, n)
	if b == nil {
		v.w.WriteByte('?')
		return
	}
	fmt.Fprintf(v.w, "[% x]", b[:min(len(b), maxElems)])
}

func (v *valuer) number(u Type, f Field) {
	size := u.Size()
	n := size
	if f.BitSize != 0 {
		n = (uint64(f.BitOffset) + uint64(f.BitSize) + 7) / 8
	}
	b := v.at(f.Offset, n)
	switch {
	case b == nil:
		v.w.WriteByte('?')
		return
	case f.BitSize > 64 || f.BitSize == 0 && n > 8:
		v.raw(f.Offset, n)
		return
	}
	var word [16]byte // a bit-field of 64 bits may touch 9 bytes
	copy(word[:], b)
	x, width := le.Uint64(word[:]), uint(8*size)
	if f.BitSize != 0 {
		width = uint(f.BitSize)
		x >>= f.BitOffset
		if f.BitOffset != 0 {
			x |= le.Uint64(word[8:]) << (64 - f.BitOffset)
		}
		x &= 1<<width - 1
	}
	v.budget -= u.Len() / longEnum // it is searched for a name
	v.w.WriteString(number(u, x, width))
}

// number writes a value of type u, of width bits.
func number(u Type, x uint64, width uint) string {
	signed := extend(x, width, u.Signed())
	switch u.Kind() {
	case Pointer:
		return fmt.Sprintf("%#x", x)
	case Enum, Enum64:
		if name, ok := u.EnumName(signed); ok {
			return clean(name)
		}
	case Int:
		if u.IsBool() && x <= 1 {
			return strconv.FormatBool(x == 1)
		}
	}
	if u.Signed() {
		return strconv.FormatInt(signed, 10)
	}
	if x >= 1<<32 {
		return fmt.Sprintf("%#x", x)
	}
	return strconv.FormatUint(x, 10)
}
