package profile

import (
	"context"
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"math"
	"strings"

	"vmscope/ctype"
)

// maxDebug bounds the debug information, unpacked; that of a distribution's
// kernel has some 300 MiB, of an allyesconfig kernel some GiB.
const maxDebug = 4 << 30

// dwarf makes BTF of the file's DWARF.
func (e *elfFile) dwarf(ctx context.Context) ([]byte, error) {
	var sum uint64
	for _, s := range e.Sections {
		if strings.HasPrefix(s.Name, ".debug_") || strings.HasPrefix(s.Name, ".zdebug_") {
			s.Open() // by which debug/elf knows the size of a .zdebug_ section when unpacked
			sum += min(s.Size, maxDebug)
		}
	}
	if sum >= maxDebug {
		return nil, errFormat("%d MiB of debug information", sum>>20)
	}
	d, err := e.DWARF()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	pointer := 8
	if e.Class == elf.ELFCLASS32 {
		pointer = 4
	}
	x := &debugInfo{
		data: d, at: d.Reader(), b: ctype.NewBuilder(), pointer: pointer,
		ids: make(map[dwarf.Offset]uint32), defined: make(map[definition]uint32),
	}
	if err := x.units(ctx); err != nil {
		return nil, err
	}
	return x.b.Blob()
}

// debugInfo makes types of the debug information of a kernel (DWARF 2 to 5), of
// which each compile unit repeats the types that it uses. A struct, union or
// enumeration is one by its name, its size and the line that defines it.
type debugInfo struct {
	data    *dwarf.Data
	at      *dwarf.Reader // reads what is referred to
	b       *ctype.Builder
	pointer int

	defined map[definition]uint32
	// Of the present unit:
	ids   map[dwarf.Offset]uint32
	files []*dwarf.LineFile
	todo  []members // structs whose members are not read yet
}

type definition struct {
	tag        dwarf.Tag
	name, file string
	line, size int64
}

type members struct {
	id  uint32
	off dwarf.Offset
}

// Languages of units that have no types of C (DWARF 5, 7.12).
const (
	langRust = 0x1c
	langAsm  = 0x8001
)

func (x *debugInfo) units(ctx context.Context) error {
	r := x.data.Reader()
	for {
		unit, err := r.Next()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if unit == nil {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		lang, _ := unit.Val(dwarf.AttrLanguage).(int64)
		if unit.Tag != dwarf.TagCompileUnit && unit.Tag != dwarf.TagPartialUnit || lang == langRust || lang == langAsm {
			r.SkipChildren()
			continue
		}
		clear(x.ids)
		x.files = nil
		if lines, err := x.data.LineReader(unit); err == nil && lines != nil {
			x.files = lines.Files()
		}
		if err := x.unit(r, unit); err != nil {
			return fmt.Errorf("%w: DWARF of unit %q: %w", ErrFormat, unit.Val(dwarf.AttrName), err)
		}
	}
}

// unit takes up the types that a unit names; others when these refer to them.
func (x *debugInfo) unit(r *dwarf.Reader, unit *dwarf.Entry) error {
	for unit.Children {
		e, err := r.Next()
		if err != nil {
			return err
		}
		if e == nil || e.Tag == 0 {
			return nil
		}
		switch e.Tag {
		case dwarf.TagBaseType, dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType, dwarf.TagTypedef:
			if _, err := x.id(e.Offset, 0); err != nil {
				return err
			}
			if err := x.finish(); err != nil {
				return err
			}
		}
		if e.Children {
			r.SkipChildren()
		}
	}
	return nil
}

// finish reads the members of structs that were met.
func (x *debugInfo) finish() error {
	for len(x.todo) > 0 {
		t := x.todo[len(x.todo)-1]
		x.todo = x.todo[:len(x.todo)-1]
		list, err := x.members(t.off, 0)
		if err != nil {
			return err
		}
		x.b.Define(t.id, list)
	}
	return nil
}

// maxDepth bounds chains of types that refer to each other without a name
// between them.
const maxDepth = 64

// id is the type at an offset.
func (x *debugInfo) id(off dwarf.Offset, depth int) (uint32, error) {
	if id, ok := x.ids[off]; ok {
		return id, nil
	}
	if depth > maxDepth {
		return 0, errFormat("types that refer to each other without end at %#x", off)
	}
	e, err := x.entry(off)
	if err != nil {
		return 0, err
	}
	id, err := x.make(e, depth)
	if err != nil {
		return 0, err
	}
	x.ids[off] = id
	return id, nil
}

func (x *debugInfo) entry(off dwarf.Offset) (*dwarf.Entry, error) {
	x.at.Seek(off)
	e, err := x.at.Next()
	if err == nil && e == nil {
		err = errFormat("no entry at %#x", off)
	}
	return e, err
}

// children are the entries right below one.
func (x *debugInfo) children(off dwarf.Offset) ([]*dwarf.Entry, error) {
	e, err := x.entry(off)
	if err != nil || !e.Children {
		return nil, err
	}
	var out []*dwarf.Entry
	for {
		c, err := x.at.Next()
		if err != nil || c == nil || c.Tag == 0 {
			return out, err
		}
		out = append(out, c)
		if c.Children {
			x.at.SkipChildren()
		}
	}
}

// target is the type that an entry refers to; void if to none.
func (x *debugInfo) target(e *dwarf.Entry, depth int) (uint32, error) {
	switch off := e.Val(dwarf.AttrType).(type) {
	case dwarf.Offset:
		return x.id(off, depth+1)
	case nil:
		return 0, nil
	default:
		return 0, errFormat("the type of entry %#x lies in another file", e.Offset)
	}
}

func text(e *dwarf.Entry, a dwarf.Attr) string { s, _ := e.Val(a).(string); return s }

func number(e *dwarf.Entry, a dwarf.Attr) (int64, bool) {
	switch v := e.Val(a).(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), true
	case []byte:
		// DW_OP_plus_uconst, of old compilers.
		if len(v) > 1 && v[0] == 0x23 {
			var n int64
			for i, c := range v[1:min(len(v), 10)] {
				n |= int64(c&0x7f) << (7 * i)
			}
			return n, true
		}
	}
	return 0, false
}

func (x *debugInfo) make(e *dwarf.Entry, depth int) (uint32, error) {
	name := text(e, dwarf.AttrName)
	n, _ := number(e, dwarf.AttrByteSize)
	size := uint32(min(max(n, 0), math.MaxUint32))
	switch e.Tag {
	case dwarf.TagBaseType:
		return x.base(e, name, size), nil
	case dwarf.TagArrayType:
		return x.array(e, depth)
	case dwarf.TagStructType, dwarf.TagClassType:
		return x.compound(e, ctype.Struct, name, size, depth)
	case dwarf.TagUnionType:
		return x.compound(e, ctype.Union, name, size, depth)
	case dwarf.TagEnumerationType:
		return x.enum(e, name, size)
	case dwarf.TagSubroutineType:
		return x.function(e, depth)
	}
	to, err := x.target(e, depth)
	if err != nil {
		return 0, err
	}
	switch e.Tag {
	case dwarf.TagPointerType, dwarf.TagReferenceType:
		return x.b.To(ctype.Pointer, to), nil
	case dwarf.TagConstType:
		return x.b.To(ctype.Const, to), nil
	case dwarf.TagVolatileType:
		return x.b.To(ctype.Volatile, to), nil
	case dwarf.TagRestrictType:
		return x.b.To(ctype.Restrict, to), nil
	case dwarf.TagTypedef:
		return x.b.Typedef(name, to), nil
	case dwarf.TagAtomicType:
		return to, nil
	}
	return 0, nil // DW_TAG_unspecified_type is void
}

// Encodings of base types (DWARF 5, 7.8).
const (
	ateComplex    = 3
	ateBoolean    = 2
	ateFloat      = 4
	ateSigned     = 5
	ateSignedChar = 6
)

func (x *debugInfo) base(e *dwarf.Entry, name string, size uint32) uint32 {
	enc, _ := number(e, dwarf.AttrEncoding)
	switch enc {
	case ateFloat, ateComplex:
		return x.b.Float(name, size)
	case ateBoolean:
		return x.b.Int(name, size, ctype.Bool)
	case ateSigned, ateSignedChar:
		return x.b.Int(name, size, ctype.Signed)
	}
	return x.b.Int(name, size, 0)
}

func (x *debugInfo) array(e *dwarf.Entry, depth int) (uint32, error) {
	to, err := x.target(e, depth)
	if err != nil {
		return 0, err
	}
	sub, err := x.children(e.Offset)
	if err != nil {
		return 0, err
	}
	for i := len(sub) - 1; i >= 0; i-- {
		if sub[i].Tag != dwarf.TagSubrangeType {
			continue
		}
		n, ok := number(sub[i], dwarf.AttrCount)
		if last, has := number(sub[i], dwarf.AttrUpperBound); !ok && has {
			n = last + 1 // that of x[0] is -1, or the greatest number
		}
		if n < 0 || n > math.MaxUint32 {
			n = 0
		}
		to = x.b.Array(to, uint32(n))
	}
	return to, nil
}

// definitionOf tells where a type is defined.
func (x *debugInfo) definitionOf(e *dwarf.Entry, name string, size uint32) definition {
	d := definition{tag: e.Tag, name: name, size: int64(size)}
	d.line, _ = number(e, dwarf.AttrDeclLine)
	if i, ok := number(e, dwarf.AttrDeclFile); ok && i >= 0 && i < int64(len(x.files)) && x.files[i] != nil {
		d.file = x.files[i].Name
	}
	return d
}

func (x *debugInfo) compound(e *dwarf.Entry, kind ctype.Kind, name string, size uint32, depth int) (uint32, error) {
	if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); declared {
		return x.b.Declared(kind, name), nil
	}
	if name == "" {
		list, err := x.members(e.Offset, depth)
		if err != nil {
			return 0, err
		}
		return x.b.Anonymous(kind, size, list), nil
	}
	def := x.definitionOf(e, name, size)
	id, ok := x.defined[def]
	if !ok {
		id = x.b.Reserve(kind, name, size)
		x.defined[def] = id
		x.todo = append(x.todo, members{id, e.Offset})
	}
	return id, nil
}

func (x *debugInfo) members(off dwarf.Offset, depth int) ([]ctype.NewMember, error) {
	sub, err := x.children(off)
	if err != nil {
		return nil, err
	}
	var out []ctype.NewMember
	for _, m := range sub {
		if m.Tag != dwarf.TagMember {
			continue
		}
		typ, err := x.target(m, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, x.place(m, typ))
	}
	return out, nil
}

// place tells where a member lies.
func (x *debugInfo) place(m *dwarf.Entry, typ uint32) ctype.NewMember {
	at, _ := number(m, dwarf.AttrDataMemberLoc)
	out := ctype.NewMember{Name: text(m, dwarf.AttrName), Type: typ, Offset: 8 * uint64(max(at, 0))}
	bits, ok := number(m, dwarf.AttrBitSize)
	if !ok || bits <= 0 || bits > 128 {
		return out
	}
	out.BitSize = uint8(bits)
	if n, ok := number(m, dwarf.AttrDataBitOffset); ok {
		out.Offset += uint64(max(n, 0))
	} else if n, ok := number(m, dwarf.AttrBitOffset); ok {
		// DWARF 2 and 3: from the highest bit of what stores it.
		size, ok := number(m, dwarf.AttrByteSize)
		if !ok {
			size = int64(x.b.Size(typ, x.pointer))
		}
		out.Offset += uint64(max(8*size-n-bits, 0))
	}
	return out
}

func (x *debugInfo) enum(e *dwarf.Entry, name string, size uint32) (uint32, error) {
	sub, err := x.children(e.Offset)
	if err != nil {
		return 0, err
	}
	var values []ctype.NewValue
	signed := false
	for _, v := range sub {
		if n, ok := number(v, dwarf.AttrConstValue); ok && v.Tag == dwarf.TagEnumerator {
			values = append(values, ctype.NewValue{Name: text(v, dwarf.AttrName), Value: n})
			signed = signed || n < 0
		}
	}
	return x.b.Enum(name, size, signed, values), nil
}

func (x *debugInfo) function(e *dwarf.Entry, depth int) (uint32, error) {
	result, err := x.target(e, depth)
	if err != nil {
		return 0, err
	}
	sub, err := x.children(e.Offset)
	if err != nil {
		return 0, err
	}
	var params []ctype.NewParam
	for _, p := range sub {
		switch p.Tag {
		case dwarf.TagFormalParameter:
			typ, err := x.target(p, depth)
			if err != nil {
				return 0, err
			}
			params = append(params, ctype.NewParam{Type: typ})
		case dwarf.TagUnspecifiedParameters:
			params = append(params, ctype.NewParam{})
		}
	}
	return x.b.Proto(result, params), nil
}
