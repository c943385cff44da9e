package ctype

import (
	"errors"
	"fmt"

	"vmscope/mem"
)

// Object is a typed object in a guest's memory. It is a place, not a value:
// each method reads the guest as it is then.
//
// Where its memory is mapped, reads must run inside mem.Guard, as those of its
// Space.
type Object struct {
	Space *mem.Space
	Addr  mem.VA
	Type  Type

	bitOff, bitSize uint8 // of a bit-field, else 0
}

// At is the object of type t at va.
func (t Type) At(s *mem.Space, va mem.VA) Object { return Object{Space: s, Addr: va, Type: t} }

// Field is the member at a path as Type.Member takes it, and more: where the
// path goes on behind a pointer, the pointer is followed, as C's "->" and "[i]"
// do. task.Field("mm.pgd") reads the pointer task.mm and gives the pgd in the
// mm_struct it points to; the pointer pgd itself is not followed. A null
// pointer on the way is a *mem.FaultError of the class mem.ErrNotMapped.
func (o Object) Field(path string) (Object, error) {
	for rest := path; rest != "" || path == ""; {
		s, left, ok := cut(rest, len(rest) == len(path))
		if !ok {
			return Object{}, o.Type.noMember(path, "not a member path")
		}
		var err error
		if s.name == "" {
			o, err = o.Index(s.index)
		} else {
			o, err = o.member(s.name)
		}
		if err != nil {
			return Object{}, fmt.Errorf("%s: %w", path, err)
		}
		rest = left
	}
	return o, nil
}

func (o Object) member(name string) (Object, error) {
	if o.Type.Underlying().Kind() == Pointer {
		var err error
		if o, err = o.Deref(); err != nil {
			return Object{}, err
		}
	}
	f, why := o.Type.step(step{name: name})
	if why != "" {
		return Object{}, o.Type.noMember(name, why)
	}
	return Object{o.Space, f.At(o.Addr), f.Type, f.BitOffset, f.BitSize}, nil
}

// Index is element i of an array, or of the array that a pointer points to.
func (o Object) Index(i uint64) (Object, error) {
	if o.Type.Underlying().Kind() == Pointer {
		p, err := o.Deref()
		if err != nil {
			return Object{}, err
		}
		size := p.Type.Size()
		if size == 0 {
			return Object{}, o.Type.noMember(fmt.Sprintf("[%d]", i), "elements of unknown size")
		}
		p.Addr += mem.VA(size * i)
		return p, nil
	}
	f, why := o.Type.step(step{index: i})
	if why != "" {
		return Object{}, o.Type.noMember(fmt.Sprintf("[%d]", i), why)
	}
	return f.Type.At(o.Space, f.At(o.Addr)), nil
}

// Pointer reads the address that a pointer, or an integer of its size, holds.
func (o Object) Pointer() (mem.VA, error) {
	t := o.Type.Underlying()
	if k := t.Kind(); k != Pointer && k != Int || o.bitSize != 0 || t.t == nil || t.Size() != uint64(t.t.ptrSize) {
		return 0, o.unfit("no pointer")
	}
	v, err := o.Space.Uint(o.Addr, int(t.t.ptrSize))
	return mem.VA(v), err
}

// Deref is the object that a pointer points to.
func (o Object) Deref() (Object, error) {
	t := o.Type.Underlying()
	if t.Kind() != Pointer {
		return Object{}, o.unfit("no pointer")
	}
	va, err := o.Pointer()
	if err != nil {
		return Object{}, err
	}
	if va == 0 {
		return Object{}, &mem.FaultError{
			Op: "read", Space: o.Space.Name,
			Err: fmt.Errorf("%w: null pointer at %#x", mem.ErrNotMapped, uint64(o.Addr)),
		}
	}
	return t.target().At(o.Space, va), nil
}

// ContainerOf is the object of type t whose member at the path o is, as the
// kernel's container_of.
func (o Object) ContainerOf(t Type, path string) (Object, error) {
	off, err := t.Offset(path)
	if err != nil {
		return Object{}, err
	}
	return t.At(o.Space, o.Addr-mem.VA(off)), nil
}

func (o Object) unfit(what string) error {
	return fmt.Errorf("%v at %#x: %s: %w", o.Type, uint64(o.Addr), what, errors.ErrUnsupported)
}

// scalar is the type whose value a type holds: itself, or the only member of a struct or union
// that is all of it, as in atomic_t, refcount_t, kuid_t. Void if there is none.
func (t Type) scalar() Type {
	for range maxDepth {
		t = t.Underlying()
		switch t.Kind() {
		case Int, Enum, Enum64, Pointer:
			return t
		case Struct, Union:
			e := t.elems(12)
			if len(e) < 12 || t.Kind() == Struct && len(e) > 12 {
				return Type{}
			}
			f := t.field(e)
			if f.Offset != 0 || f.BitSize != 0 || f.Type.Size() != t.Size() {
				return Type{}
			}
			t = f.Type
		default:
			return Type{}
		}
	}
	return Type{}
}

// Uint reads an integer, bit-field, bool, enum or pointer as it lies in memory,
// without regard to its sign. A struct that is nothing but a number, such as
// atomic_t or kuid_t, is read as that number.
func (o Object) Uint() (uint64, error) {
	t := o.Type.scalar()
	size := t.Size()
	switch {
	case o.bitSize != 0:
		return o.bits()
	case size == 1 || size == 2 || size == 4 || size == 8:
		return o.Space.Uint(o.Addr, int(size))
	}
	return 0, o.unfit("no number of at most 8 bytes")
}

// Int is Uint with the sign of the object's type. Unsigned numbers of 8 bytes
// keep their bits.
func (o Object) Int() (int64, error) {
	v, err := o.Uint()
	if err != nil {
		return 0, err
	}
	t := o.Type.scalar()
	width := uint(o.bitSize)
	if width == 0 {
		width = 8 * uint(t.Size())
	}
	return extend(v, width, t.Signed()), nil
}

// extend gives a number of width bits its sign.
func extend(v uint64, width uint, signed bool) int64 {
	if signed && width > 0 && width < 64 {
		return int64(v<<(64-width)) >> (64 - width)
	}
	return int64(v)
}

// bits reads a bit-field: by one load of the aligned word that holds it where
// there is one, so that a live guest cannot change it half-way.
func (o Object) bits() (uint64, error) {
	if o.bitSize > 64 || o.bitOff > 7 {
		return 0, fmt.Errorf("%v at %#x: bit-field of %d bits: %w", o.Type, uint64(o.Addr), o.bitSize, mem.ErrInconsistent)
	}
	shift := uint64(o.Addr&7)*8 + uint64(o.bitOff)
	lo, err := o.Space.Uint64(o.Addr &^ 7)
	if err != nil {
		return 0, err
	}
	v := lo >> shift
	if shift+uint64(o.bitSize) > 64 { // packed: it goes on in the next word
		hi, err := o.Space.Uint64(o.Addr&^7 + 8)
		if err != nil {
			return 0, err
		}
		v |= hi << (64 - shift)
	}
	return v & (1<<o.bitSize - 1), nil
}

// maxText bounds the strings that String reads.
const maxText = 4096

// String reads text: of a char array up to a NUL or its end, of a char pointer
// up to a NUL; at most 4096 bytes. The bytes are the guest's, not necessarily
// UTF-8: quote them before they reach a terminal.
func (o Object) String() (string, error) {
	t := o.Type.Underlying()
	limit := maxText
	switch {
	case !t.Elem().IsChar():
		return "", o.unfit("no text")
	case t.Kind() == Pointer:
		p, err := o.Deref()
		if err != nil {
			return "", err
		}
		o = p
	case t.Kind() == Array:
		if n := t.Len(); n > 0 {
			limit = min(limit, n)
		}
	default:
		return "", o.unfit("no text")
	}
	b, err := o.Space.CString(o.Addr, limit)
	return string(b), err
}

// maxBytes bounds what is read of one object: structs of the kernel are
// smaller.
const maxBytes = 1 << 20

// Bytes reads the whole object, at most 1 MiB. A short read returns the bytes
// before the fault beside the error.
func (o Object) Bytes() ([]byte, error) {
	size := o.Type.Size()
	if size == 0 || size > maxBytes {
		return nil, o.unfit(fmt.Sprintf("%d bytes", size))
	}
	p := make([]byte, size)
	n, err := o.Space.Read(p, o.Addr)
	return p[:n], err
}

// Text reads the text in a member: Field and String in one. The bytes are
// the guest's: print them by %q.
func (o Object) Text(path string) (string, error) {
	f, err := o.Field(path)
	if err != nil {
		return "", err
	}
	return f.String()
}

// Number reads the number in a member: Field and Int in one. For an address, as a
// pointer holds it, use Field and Pointer.
func (o Object) Number(path string) (int64, error) {
	f, err := o.Field(path)
	if err != nil {
		return 0, err
	}
	return f.Int()
}
