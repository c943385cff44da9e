package ctype

import (
	"iter"
	"math/bits"
	"strconv"
	"strings"

	"vmscope/mem"
)

// Field is where a member lies in the struct or union it was asked of. The zero
// Field is no member.
type Field struct {
	Offset    uint64 // bytes; of a bit-field, the byte that holds its first bit
	BitOffset uint8  // of a bit-field: its first bit in that byte, 0 to 7 from the lowest
	BitSize   uint8  // of a bit-field: how many bits; else 0
	Type      Type
}

// Valid reports whether the field is there: an optional one that the kernel
// lacks is not.
func (f Field) Valid() bool { return f.Type.t != nil }

// At is the field's address in the object at base.
func (f Field) At(base mem.VA) mem.VA { return base + mem.VA(f.Offset) }

// Size is the field's size in bytes; of a bit-field, of its declared type.
func (f Field) Size() uint64 { return f.Type.Size() }

// Member is a named Field; an anonymous struct or union has no name.
type Member struct {
	Name string
	Field
}

// Members gives the members of a struct or union in their order. It does not
// descend into anonymous ones.
func (t Type) Members() iter.Seq[Member] {
	return func(yield func(Member) bool) {
		u := t.Underlying()
		if k := u.Kind(); k != Struct && k != Union {
			return
		}
		for e := u.elems(12); len(e) >= 12; e = e[12:] {
			if !yield(Member{u.t.str(le.Uint32(e)), u.field(e)}) {
				return
			}
		}
	}
}

// field decodes one struct btf_member.
func (t Type) field(e []byte) Field {
	typ, off := t.t.at(le.Uint32(e[4:])), le.Uint32(e[8:])
	if t.flag() {
		size := uint8(off >> 24)
		off &= 0xffffff
		if size == 0 {
			return Field{Offset: uint64(off / 8), Type: typ}
		}
		return Field{Offset: uint64(off / 8), BitOffset: uint8(off % 8), BitSize: size, Type: typ}
	}
	// The older way: the bits are told by the integer type itself.
	f := Field{Offset: uint64(off / 8), Type: typ}
	if u := typ.Underlying(); u.Kind() == Int {
		_, bitOff, bitSize := u.encoding()
		if uint64(bitSize) != 8*u.Size() || off%8 != 0 {
			at := uint64(off) + uint64(bitOff)
			f.Offset, f.BitOffset, f.BitSize = at/8, uint8(at%8), bitSize
		}
	}
	return f
}

// step is one part of a member path: a name or an array index.
type step struct {
	name  string
	index uint64
}

// cut takes the first step off a path. first says that nothing came before it.
func cut(path string, first bool) (s step, rest string, ok bool) {
	if strings.HasPrefix(path, "[") {
		end := strings.IndexByte(path, ']')
		if end < 0 {
			return s, "", false
		}
		n, err := strconv.ParseUint(path[1:end], 10, 32)
		return step{index: n}, path[end+1:], err == nil
	}
	if !first {
		if !strings.HasPrefix(path, ".") {
			return s, "", false
		}
		path = path[1:]
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		end = len(path)
	}
	return step{name: path[:end]}, path[end:], end > 0
}

// Member finds a member by its path: "pid", "se.exec_start", "comm[0]". Members
// of anonymous structs and unions are found as C finds them. An index must be
// within the array, but arrays of length 0 (at a struct's end) take any.
//
// A path does not follow pointers: that takes an Object. A failure is an
// ErrNoMember.
func (t Type) Member(path string) (Field, error) {
	f := Field{Type: t}
	for rest := path; rest != "" || path == ""; {
		s, left, ok := cut(rest, len(rest) == len(path))
		if !ok {
			return Field{}, t.noMember(path, "not a member path")
		}
		g, why := f.Type.step(s)
		if why != "" {
			return Field{}, t.noMember(path, why)
		}
		sum, carry := bits.Add64(f.Offset, g.Offset, 0)
		if carry != 0 {
			return Field{}, t.noMember(path, "offset out of range")
		}
		g.Offset, f, rest = sum, g, left
		f.Offset = sum
	}
	return f, nil
}

// Offset is the offset of a member in bytes. It refuses bit-fields, which have
// none.
func (t Type) Offset(path string) (uint64, error) {
	f, err := t.Member(path)
	if err == nil && f.BitSize != 0 {
		return 0, t.noMember(path, "a bit-field has no offset in bytes")
	}
	return f.Offset, err
}

func (t Type) noMember(path, why string) error {
	e := &LookupError{Type: t.String(), Member: path, Reason: why, Err: ErrNoMember}
	if why == tooDeep {
		e.Err = mem.ErrInconsistent
	}
	return e
}

const tooDeep = "types nested without end"

// step goes one step down from t. A non-empty why says that it cannot.
func (t Type) step(s step) (f Field, why string) {
	u := t.Underlying()
	if s.name == "" {
		if u.Kind() != Array {
			return f, "not an array"
		}
		n := uint64(u.Len())
		if n != 0 && s.index >= n {
			return f, "index outside the array"
		}
		elem := u.Elem()
		hi, off := bits.Mul64(elem.Size(), s.index)
		if hi != 0 {
			return f, "offset out of range"
		}
		return Field{Offset: off, Type: elem}, ""
	}
	switch u.Kind() {
	case Struct, Union:
	case Fwd:
		return f, "the type is declared but not defined"
	case Pointer:
		return f, "a pointer, not a struct"
	default:
		return f, "not a struct or union"
	}
	budget := maxMembers
	f, ok := u.findMember(s.name, maxDepth, &budget)
	switch {
	case ok:
		return f, ""
	case budget <= 0:
		return f, tooDeep
	}
	return f, "none of that name"
}

// maxMembers bounds how many members one search visits. The largest structs of
// stock kernels have some thousand; anonymous structs that share types could
// make a tree of any size.
const maxMembers = 1 << 17

// findMember searches u, a struct or union, and the anonymous ones in it.
func (u Type) findMember(name string, depth int, budget *int) (Field, bool) {
	for e := u.elems(12); len(e) >= 12; e = e[12:] {
		if *budget--; *budget <= 0 {
			return Field{}, false
		}
		off := le.Uint32(e)
		if u.t.nameIs(off, name) {
			if f := u.field(e); f.Valid() { // a member of type void is none
				return f, true
			}
			continue
		}
		if off != 0 && u.t.strAt(off)[0] != 0 {
			continue
		}
		inner := u.t.at(le.Uint32(e[4:])).Underlying()
		if k := inner.Kind(); k != Struct && k != Union {
			continue
		}
		if depth == 0 {
			*budget = 0
			return Field{}, false
		}
		if f, ok := inner.findMember(name, depth-1, budget); ok {
			f.Offset += u.field(e).Offset
			return f, true
		}
	}
	return Field{}, false
}
