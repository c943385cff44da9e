package ctype

import (
	"hash/maphash"
	"strings"
)

// index finds named types: an open-addressing table of ids. The hash is seeded
// at random, so that a guest cannot choose names that collide.
type index struct {
	seed  maphash.Seed
	slots []uint32 // type ids; 0 is free
	enums []uint32 // ids of all enums that have a constant
}

// class keeps C's name spaces apart: a struct and a typedef may share a name.
type class uint8

const (
	noClass class = iota
	structs
	unions
	enums
	ordinary // typedefs and the types of the language
)

func (t Type) class() class {
	switch t.Kind() {
	case Struct:
		return structs
	case Union:
		return unions
	case Fwd:
		if t.flag() {
			return unions
		}
		return structs
	case Enum, Enum64:
		return enums
	case Typedef, Int, Float:
		return ordinary
	}
	return noClass
}

func lookedUp(k Kind) bool {
	switch k {
	case Struct, Union, Fwd, Enum, Enum64, Typedef, Int, Float:
		return true
	}
	return false
}

// build fills the table. A definition replaces a mere declaration; of several
// definitions of one name the first stays.
func (t *Types) build() {
	x := &t.index
	x.seed = maphash.MakeSeed()
	n := 8
	for n*2 < t.named*3 {
		n *= 2
	}
	x.slots = make([]uint32, n)
	for i := range t.offs {
		typ := Type{t, t.first + uint32(i)}
		kind := typ.Kind()
		if !lookedUp(kind) {
			continue
		}
		if enumSize(kind) != 0 && typ.Len() > 0 {
			x.enums = append(x.enums, typ.id)
		}
		off := typ.word(0)
		if off == 0 {
			continue
		}
		name := t.str(off)
		if len(name) == maxName {
			continue // cut: it is equal to no name, so equal ones would all take a slot
		}
		slot, old := t.probe(typ.class(), name)
		if old.IsVoid() || old.Kind() == Fwd && kind != Fwd {
			*slot = typ.id
		}
	}
}

// probe finds the slot of a name: its type's, or a free one. There are always
// free slots.
func (t *Types) probe(c class, name string) (*uint32, Type) {
	x := &t.index
	mask := uint64(len(x.slots) - 1)
	for i := maphash.String(x.seed, name); ; i++ {
		slot := &x.slots[i&mask]
		if *slot == 0 {
			return slot, Type{}
		}
		typ := Type{t, *slot}
		if t.nameIs(typ.word(0), name) && typ.class() == c {
			return slot, typ
		}
	}
}

// find looks a name up here and in the bases.
func (t *Types) find(c class, name string) Type {
	var declared Type
	for ; t != nil; t = t.base {
		t.once.Do(t.build)
		_, typ := t.probe(c, name)
		if !typ.IsVoid() && typ.Kind() != Fwd {
			return typ
		}
		if declared.IsVoid() {
			declared = typ
		}
	}
	return declared
}

// Lookup finds a type by its name as C writes it: "struct task_struct", "union
// x", "enum y", "unsigned int", a typedef's name; and "task_struct" for short. Where a
// bare name has several meanings, a struct comes before a union, an enum and a
// typedef. In the types of a module, the module's own come before the
// kernel's. A failure is an ErrNoType.
func (t *Types) Lookup(name string) (Type, error) {
	var typ Type
	if tag, rest, ok := strings.Cut(name, " "); ok {
		rest = strings.TrimLeft(rest, " ")
		switch tag {
		case "struct":
			typ = t.find(structs, rest)
		case "union":
			typ = t.find(unions, rest)
		case "enum":
			typ = t.find(enums, rest)
		default:
			typ = t.find(ordinary, name)
		}
	} else {
		var declared Type
		for _, c := range [...]class{structs, unions, enums, ordinary} {
			typ = t.find(c, name)
			if !typ.IsVoid() && typ.Kind() != Fwd {
				return typ, nil
			}
			if declared.IsVoid() {
				declared = typ
			}
		}
		typ = declared
	}
	if typ.IsVoid() {
		return Type{}, &LookupError{Type: name, Err: ErrNoType}
	}
	return typ, nil
}

// Enum finds an enumeration constant by its name among all enums, e.g.
// "MODULE_STATE_LIVE". A failure is an ErrNoEnumerator.
func (t *Types) Enum(name string) (int64, error) {
	for ; t != nil && name != ""; t = t.base {
		t.once.Do(t.build)
		for _, id := range t.index.enums {
			typ := Type{t, id}
			size := enumSize(typ.Kind())
			for e := typ.elems(size); len(e) >= size; e = e[size:] {
				if t.nameIs(le.Uint32(e), name) {
					return typ.enumValue(e), nil
				}
			}
		}
	}
	return 0, &LookupError{Member: name, Err: ErrNoEnumerator}
}

// Func finds a function by its name. It searches all types: about a
// millisecond. A failure is an ErrNoType.
func (t *Types) Func(name string) (Type, error) { return t.scan(Func, name) }

// Var finds a variable by its name; BTF of stock kernels has the per-CPU
// variables only. It searches all types: about a millisecond. A failure is an
// ErrNoType.
func (t *Types) Var(name string) (Type, error) { return t.scan(Var, name) }

func (t *Types) scan(k Kind, name string) (Type, error) {
	for ; t != nil && name != ""; t = t.base {
		for typ := range t.All() {
			if typ.Kind() == k && t.nameIs(typ.word(0), name) {
				return typ, nil
			}
		}
	}
	return Type{}, &LookupError{Type: k.String() + " " + name, Err: ErrNoType}
}
