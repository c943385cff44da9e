package ctype

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// Builder makes Types out of what another encoding says of a kernel's types, as
// BTF, which Blob gives. Types are named by the ids that its methods return; 0
// is void. Types that are equal by what they refer to become one, so that the
// many compile units of a DWARF, each of which repeats most types, cost little.
//
// A Builder is for one goroutine.
type Builder struct {
	recs []record // of the ids from 1 on
	same map[plainKey]uint32
	text map[string]uint32
}

// record is one type.
type record struct {
	kind  Kind
	flag  bool
	name  string
	third uint32 // size, or the type referred to
	more  []uint32
	elems []elem
}

// elem is a member, an enumerator or a parameter: its third word, and the high
// half of an enumerator's value.
type elem struct {
	name string
	typ  uint32
	val  uint64
}

// plainKey tells types apart that are told by two numbers and a name.
type plainKey struct {
	kind Kind
	name string
	a, b uint32
}

// NewBuilder begins with no type but void.
func NewBuilder() *Builder {
	return &Builder{same: make(map[plainKey]uint32), text: make(map[string]uint32)}
}

// Len is the number of types so far, void included.
func (b *Builder) Len() int { return len(b.recs) + 1 }

func (b *Builder) add(r record) uint32 {
	b.recs = append(b.recs, r)
	return uint32(len(b.recs))
}

// once adds a type if there is none of that key.
func (b *Builder) once(k plainKey, r record) uint32 {
	id, ok := b.same[k]
	if !ok {
		id = b.add(r)
		b.same[k] = id
	}
	return id
}

// Encoding says how an integer is to be read.
type Encoding uint8

// The encodings of BTF, to be joined.
const (
	Signed = Encoding(intSigned)
	Char   = Encoding(intChar)
	Bool   = Encoding(intBool)
)

// Int is an integer of size bytes, at most 16.
func (b *Builder) Int(name string, size uint32, enc Encoding) uint32 {
	size = min(size, 16)
	more := uint32(enc)<<24 | 8*size
	return b.once(plainKey{Int, name, size, more}, record{kind: Int, name: name, third: size, more: []uint32{more}})
}

// Float is a floating-point number of size bytes.
func (b *Builder) Float(name string, size uint32) uint32 {
	return b.once(plainKey{Float, name, size, 0}, record{kind: Float, name: name, third: size})
}

// To is a type that refers to another: a Pointer, Const, Volatile or Restrict.
func (b *Builder) To(kind Kind, target uint32) uint32 {
	return b.once(plainKey{kind, "", target, 0}, record{kind: kind, third: target})
}

// Typedef is a name for a type.
func (b *Builder) Typedef(name string, target uint32) uint32 {
	return b.once(plainKey{Typedef, name, target, 0}, record{kind: Typedef, name: name, third: target})
}

// Array is n elements; the kernel's unsigned int counts them.
func (b *Builder) Array(elem, n uint32) uint32 {
	index := b.Int("unsigned int", 4, 0)
	return b.once(plainKey{Array, "", elem, n}, record{kind: Array, more: []uint32{elem, index, n}})
}

// Declared is a struct or union that is named and not defined. Where one of
// that kind and name is defined after all, Blob puts it in its place.
func (b *Builder) Declared(kind Kind, name string) uint32 {
	return b.once(plainKey{Fwd, name, uint32(kind), 0}, record{kind: Fwd, name: name, flag: kind == Union})
}

// What types are built of.
type (
	// NewMember is a member of a struct or union that is built: Offset is in bits;
	// BitSize is that of a bit-field, else 0.
	NewMember struct {
		Name    string
		Type    uint32
		Offset  uint64
		BitSize uint8
	}
	// NewParam is a parameter of a prototype; Type 0 at the end stands for "...".
	NewParam struct {
		Name string
		Type uint32
	}
	// NewValue is a constant of an enumeration.
	NewValue struct {
		Name  string
		Value int64
	}
)

// Proto is the type of functions.
func (b *Builder) Proto(result uint32, params []NewParam) uint32 {
	r := record{kind: FuncProto, third: result}
	var key strings.Builder
	fmt.Fprintf(&key, "proto %d", result)
	for _, p := range params {
		fmt.Fprintf(&key, " %d %s", p.Type, p.Name)
		r.elems = append(r.elems, elem{name: p.Name, typ: p.Type})
	}
	return b.onceText(key.String(), r)
}

func (b *Builder) onceText(key string, r record) uint32 {
	id, ok := b.text[key]
	if !ok {
		id = b.add(r)
		b.text[key] = id
	}
	return id
}

// Enum is an enumeration of size bytes. signed says how its values are to be
// read.
func (b *Builder) Enum(name string, size uint32, signed bool, values []NewValue) uint32 {
	r := record{kind: Enum, name: name, flag: signed, third: size}
	var key strings.Builder
	fmt.Fprintf(&key, "enum %s %d %v", name, size, signed)
	for _, v := range values {
		fmt.Fprintf(&key, " %s %d", v.Name, v.Value)
		if v.Value < math.MinInt32 || v.Value > math.MaxUint32 || signed && v.Value > math.MaxInt32 || !signed && v.Value < 0 {
			r.kind = Enum64
		}
		r.elems = append(r.elems, elem{name: v.Name, val: uint64(v.Value)})
	}
	return b.onceText(key.String(), r)
}

// Reserve gives the id of a struct or union whose members are not known yet:
// they may refer to it. Define follows.
func (b *Builder) Reserve(kind Kind, name string, size uint32) uint32 {
	return b.add(record{kind: kind, name: name, third: size})
}

// Define gives a reserved struct or union its members.
func (b *Builder) Define(id uint32, members []NewMember) { b.members(&b.recs[id-1], members) }

// Anonymous is a struct or union without a name: equal ones become one.
func (b *Builder) Anonymous(kind Kind, size uint32, members []NewMember) uint32 {
	r := record{kind: kind, third: size}
	b.members(&r, members)
	var key strings.Builder
	fmt.Fprintf(&key, "%v %d", kind, size)
	for _, m := range members {
		fmt.Fprintf(&key, " %s %d %d %d", m.Name, m.Type, m.Offset, m.BitSize)
	}
	return b.onceText(key.String(), r)
}

// members writes members down. A struct with bit-fields has 24 bits for the
// offset of each, in bits, and 8 for its width.
func (b *Builder) members(r *record, members []NewMember) {
	r.elems = nil
	r.flag = false
	for _, m := range members {
		r.flag = r.flag || m.BitSize != 0
	}
	for _, m := range members {
		if m.Offset > math.MaxUint32 || r.flag && m.Offset >= 1<<24 {
			continue // BTF cannot tell of a member that far in
		}
		val := m.Offset
		if r.flag {
			val |= uint64(m.BitSize) << 24
		}
		r.elems = append(r.elems, elem{m.Name, m.Type, val})
	}
}

// Size is the size in bytes of a type that was built, as Type.Size.
func (b *Builder) Size(id uint32, pointer int) uint64 {
	n := uint64(1)
	for range maxDepth {
		if id == 0 || int(id) > len(b.recs) {
			return 0
		}
		r := &b.recs[id-1]
		switch r.kind {
		case Int, Float, Struct, Union, Enum, Enum64:
			return n * uint64(r.third)
		case Pointer:
			return n * uint64(pointer)
		case Array:
			n *= uint64(r.more[2])
			id = r.more[0]
		case Typedef, Const, Volatile, Restrict:
			id = r.third
		default:
			return 0
		}
	}
	return 0
}

// maxBlob bounds the parts of a BTF: those of kernels have some MiB.
const maxBlob = 256 << 20

// Blob is all types as BTF, which Parse reads.
func (b *Builder) Blob() ([]byte, error) {
	defined := make(map[plainKey]uint32)
	for i := range b.recs {
		r := &b.recs[i]
		if k := (plainKey{Fwd, r.name, uint32(r.kind), 0}); (r.kind == Struct || r.kind == Union) && r.name != "" && defined[k] == 0 {
			defined[k] = uint32(i + 1)
		}
	}
	instead := make(map[uint32]uint32)
	for k, id := range b.same {
		if def := defined[k]; k.kind == Fwd && def != 0 {
			instead[id] = def
		}
	}
	w := blobWriter{strs: []byte{0}, offs: map[string]uint32{"": 0}, instead: instead}
	for i := range b.recs {
		w.record(&b.recs[i])
		if len(w.types) > maxBlob || len(w.strs) > maxBlob {
			return nil, fmt.Errorf("BTF: %d types take more than %d MiB: %w", len(b.recs), maxBlob>>20, errors.ErrUnsupported)
		}
	}
	h := []byte{magic & 0xff, magic >> 8, 1, 0}
	for _, v := range []int{minHeader, 0, len(w.types), len(w.types), len(w.strs)} {
		h = le.AppendUint32(h, uint32(v))
	}
	return append(append(h, w.types...), w.strs...), nil
}

// Types parses what Blob gives.
func (b *Builder) Types() (*Types, error) {
	blob, err := b.Blob()
	if err != nil {
		return nil, err
	}
	return Parse(blob)
}

type blobWriter struct {
	types, strs []byte
	offs        map[string]uint32
	instead     map[uint32]uint32 // of a declared type, that which defines it
}

func (w *blobWriter) str(s string) uint32 {
	s, _, _ = strings.Cut(s, "\x00")
	off, ok := w.offs[s]
	if !ok {
		off = uint32(len(w.strs))
		w.offs[s] = off
		w.strs = append(append(w.strs, s...), 0)
	}
	return off
}

func (w *blobWriter) ref(id uint32) uint32 {
	if def, ok := w.instead[id]; ok {
		return def
	}
	return id
}

func (w *blobWriter) put(vs ...uint32) {
	for _, v := range vs {
		w.types = le.AppendUint32(w.types, v)
	}
}

func (w *blobWriter) record(r *record) {
	n := min(len(r.elems), 0xffffff)
	info := uint32(r.kind)<<24 | uint32(n)
	if r.flag {
		info |= 1 << 31
	}
	third := r.third
	switch r.kind {
	case Pointer, Typedef, Const, Volatile, Restrict, FuncProto:
		third = w.ref(third)
	}
	w.put(w.str(r.name), info, third)
	for i, v := range r.more {
		if r.kind == Array && i < 2 {
			v = w.ref(v)
		}
		w.put(v)
	}
	for _, e := range r.elems[:n] {
		switch r.kind {
		case Struct, Union:
			w.put(w.str(e.name), w.ref(e.typ), uint32(e.val))
		case FuncProto:
			w.put(w.str(e.name), w.ref(e.typ))
		case Enum:
			w.put(w.str(e.name), uint32(e.val))
		case Enum64:
			w.put(w.str(e.name), uint32(e.val), uint32(e.val>>32))
		}
	}
}
