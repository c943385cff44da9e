package ctype

import (
	"fmt"
	"iter"
	"math/bits"
	"unsafe"
)

// bytesAsString views b as a string without copying. Blobs are never written
// after Parse, which is what makes it sound.
func bytesAsString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Type is one C type: a small value, to be copied and compared. The zero Type
// is void.
//
// Strings that it returns share the memory of its BTF.
type Type struct {
	t  *Types // that defines the id; nil for the zero Type
	id uint32
}

// Len is the number of type ids, those of the base and void included.
func (t *Types) Len() int { return int(t.end()) }

// PtrSize is the size of a pointer, bytes.
func (t *Types) PtrSize() int { return int(t.ptrSize) }

// Type gives the type of an id, void for an id that is not there.
func (t *Types) Type(id uint32) Type { return t.at(id) }

// All gives the types in the order of their ids, without those of the base.
func (t *Types) All() iter.Seq[Type] {
	return func(yield func(Type) bool) {
		for id := t.first; id < t.end(); id++ {
			if !yield(Type{t, id}) {
				return
			}
		}
	}
}

// at names a type by the Types that define it, so that a type reached through a
// module is equal to the same type reached through the kernel.
func (t *Types) at(id uint32) Type {
	if id == 0 || id >= t.end() {
		return Type{}
	}
	for id < t.first {
		t = t.base
	}
	return Type{t, id}
}

// rec is the record of a type and all behind it. Parse has checked that the
// record is whole. t is not void.
func (t Type) rec() []byte { return t.t.types[t.t.offs[t.id-t.t.first]:] }

// word is one of the three words every record begins with: name, info, and
// size or type.
func (t Type) word(i int) uint32 {
	if t.t == nil {
		return 0
	}
	return le.Uint32(t.rec()[4*i:])
}

// elems are the bytes of the vlen elements of size bytes each.
func (t Type) elems(size int) []byte {
	rec := t.rec()
	n := int(le.Uint32(rec[4:])&0xffffff) * size
	return rec[recSize : recSize+n]
}

// IsVoid reports whether t is void, or no type at all.
func (t Type) IsVoid() bool { return t.t == nil }

// ID is the BTF type id, 0 for void.
func (t Type) ID() uint32 { return t.id }

// Types are the types that t is one of; nil for void.
func (t Type) Types() *Types { return t.t }

// Kind is the kind of the type itself: Typedef for a typedef, whatever it names.
func (t Type) Kind() Kind { return Kind(t.word(1) >> 24 & 0x7f) }

func (t Type) flag() bool { return t.word(1)>>31 != 0 }

// Name is the type's own name without "struct" and the like; "" for anonymous
// types and for those that have no name, as pointers.
func (t Type) Name() string {
	if t.t == nil {
		return "void"
	}
	return t.t.str(t.word(0))
}

// maxDepth bounds chains of typedefs and qualifiers, arrays of arrays, structs
// in structs. The kernel's own limit is 32 (MAX_RESOLVE_DEPTH in
// kernel/bpf/btf.c).
const maxDepth = 32

// Underlying is the type behind typedefs, const, volatile, restrict and type
// tags; void if there are too many of them.
func (t Type) Underlying() Type {
	for range maxDepth {
		switch t.Kind() {
		case Typedef, Volatile, Const, Restrict, TypeTag:
			t = t.target()
		default:
			return t
		}
	}
	return Type{}
}

// target is the type that a record's third word refers to.
func (t Type) target() Type { return t.t.at(t.word(2)) }

// Elem is what a pointer points to, what an array consists of, what a typedef or qualifier
// names, the prototype of a function, the result of a prototype, the type of a
// variable. Void for others.
func (t Type) Elem() Type {
	switch t.Kind() {
	case Array:
		return t.t.at(le.Uint32(t.rec()[recSize:]))
	case Pointer, Typedef, Volatile, Const, Restrict, TypeTag, DeclTag, Func, FuncProto, Var:
		return t.target()
	}
	return Type{}
}

// Len is the number of elements of an array, members of a struct or union,
// enumerators of an enum, parameters of a prototype; else 0.
func (t Type) Len() int {
	switch t.Kind() {
	case Array:
		return int(le.Uint32(t.rec()[recSize+8:]))
	case Struct, Union, Enum, Enum64, FuncProto:
		return int(t.word(1) & 0xffffff)
	}
	return 0
}

// Size is the size in bytes; 0 where a type has none: void, functions, types
// that are only declared, and arrays whose size does not fit 63 bits.
func (t Type) Size() uint64 {
	n := uint64(1)
	for range maxDepth {
		t = t.Underlying()
		size := uint64(0)
		switch t.Kind() {
		case Array:
			size = uint64(t.Len())
		case Int, Struct, Union, Enum, Enum64, Float, DataSec:
			size = uint64(t.word(2))
		case Pointer:
			size = uint64(t.t.ptrSize)
		case Var:
			t = t.target()
			continue
		}
		hi, lo := bits.Mul64(n, size)
		if n = lo; hi != 0 || n > 1<<63-1 {
			return 0
		}
		if t.Kind() != Array {
			return n
		}
		t = t.Elem()
	}
	return 0
}

// The encodings of an Int: bits of the byte that follows its size.
const (
	intSigned = 1 << iota
	intChar
	intBool
)

// encoding gives how an Int is encoded, and where its bits lie.
func (t Type) encoding() (enc uint8, bitOff, bitSize uint8) {
	if t.Kind() != Int {
		return 0, 0, 0
	}
	v := le.Uint32(t.rec()[recSize:])
	return uint8(v >> 24 & 0xf), uint8(v >> 16), uint8(v)
}

// Signed reports whether a value of this type, an integer or enum, may be
// negative.
func (t Type) Signed() bool {
	t = t.Underlying()
	switch t.Kind() {
	case Int:
		enc, _, _ := t.encoding()
		return enc&intSigned != 0
	case Enum:
		return t.flag() || !t.t.signed
	case Enum64:
		return t.flag()
	}
	return false
}

// IsBool reports whether the type is a _Bool.
func (t Type) IsBool() bool {
	enc, _, _ := t.Underlying().encoding()
	return enc&intBool != 0
}

// IsChar reports whether the type is one byte of text: char, signed or not.
// (u8 is another typedef of the same type, so it counts.)
func (t Type) IsChar() bool {
	t = t.Underlying()
	enc, _, _ := t.encoding()
	return t.Kind() == Int && t.Size() == 1 && enc&intBool == 0
}

// Enumerators gives the names and values of an enum.
func (t Type) Enumerators() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		u := t.Underlying()
		size := enumSize(u.Kind())
		if size == 0 {
			return
		}
		for e := u.elems(size); len(e) >= size; e = e[size:] {
			if !yield(u.t.str(le.Uint32(e)), u.enumValue(e)) {
				return
			}
		}
	}
}

func enumSize(k Kind) int {
	switch k {
	case Enum:
		return 8
	case Enum64:
		return 12
	}
	return 0
}

func (t Type) enumValue(e []byte) int64 {
	switch {
	case t.Kind() == Enum64:
		return int64(uint64(le.Uint32(e[8:]))<<32 | uint64(le.Uint32(e[4:])))
	case t.Signed():
		return int64(int32(le.Uint32(e[4:])))
	}
	return int64(le.Uint32(e[4:]))
}

// EnumName is the name of a value of an enum, the first if it has several.
func (t Type) EnumName(v int64) (string, bool) {
	u := t.Underlying()
	size := enumSize(u.Kind())
	if size == 0 {
		return "", false
	}
	for e := u.elems(size); len(e) >= size; e = e[size:] {
		if u.enumValue(e) == v {
			return u.t.str(le.Uint32(e)), true
		}
	}
	return "", false
}

// Vars gives the variables of a DataSec, each a Var, with their offsets in the
// section, bytes.
func (t Type) Vars() iter.Seq2[Type, uint64] {
	return func(yield func(Type, uint64) bool) {
		if t.Kind() != DataSec {
			return
		}
		for e := t.elems(12); len(e) >= 12; e = e[12:] {
			if !yield(t.t.at(le.Uint32(e)), uint64(le.Uint32(e[4:]))) {
				return
			}
		}
	}
}

// Param is a parameter of a function.
type Param struct {
	Name string
	Type Type
}

// Params gives the parameters of a prototype, or of a function's prototype. One of type void at the
// end means that more may follow ("...").
func (t Type) Params() iter.Seq[Param] {
	return func(yield func(Param) bool) {
		u := t.Underlying()
		if u.Kind() == Func {
			u = u.target()
		}
		if u.Kind() != FuncProto {
			return
		}
		for e := u.elems(8); len(e) >= 8; e = e[8:] {
			if !yield(Param{u.t.str(le.Uint32(e)), u.t.at(le.Uint32(e[4:]))}) {
				return
			}
		}
	}
}

// String is the type as C writes it, e.g. "struct list_head *".
func (t Type) String() string { return declare(t, "") }

// GoString is for debugging.
func (t Type) GoString() string { return fmt.Sprintf("ctype.Type{%d %v}", t.id, t) }
