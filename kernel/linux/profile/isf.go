package profile

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// A volatility is the symbol table of Volatility 3 ("Intermediate Symbol Format",
// volatility3/schemas/schema-6.2.0.json), as dwarf2json makes it of a vmlinux:
// an object of lists by name. Typedefs, const and volatile are not in it.
// Bit-fields are not taken from it: those of kernels with DWARF 5 are all at bit
// 0 there.
type volatility struct {
	base  map[string]isfBase
	enums map[string]isfEnum
	user  map[string]isfUser
	syms  []ksym.Symbol

	banner string
	b      *ctype.Builder
	ids    map[string]uint32 // of user types
}

type isfBase struct {
	Size   int64  `json:"size"`
	Signed bool   `json:"signed"`
	Kind   string `json:"kind"`
	Endian string `json:"endian"`
}

type isfEnum struct {
	Size      int64            `json:"size"`
	Base      string           `json:"base"`
	Constants map[string]int64 `json:"constants"`
}

type isfUser struct {
	Size   int64               `json:"size"`
	Kind   string              `json:"kind"`
	Fields map[string]isfField `json:"fields"`
}

type isfField struct {
	Type      isfType `json:"type"`
	Offset    int64   `json:"offset"`
	Anonymous bool    `json:"anonymous"`
}

type isfType struct {
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	Count   int64    `json:"count"`
	Subtype *isfType `json:"subtype"`
}

type isfSymbol struct {
	Address  uint64 `json:"address"`
	Constant []byte `json:"constant_data"`
}

// fromISF reads an ISF.
func fromISF(r io.Reader) (*Profile, error) {
	x := &volatility{
		base: make(map[string]isfBase), enums: make(map[string]isfEnum), user: make(map[string]isfUser),
		b: ctype.NewBuilder(), ids: make(map[string]uint32),
	}
	if err := x.read(json.NewDecoder(r)); err != nil {
		return nil, fmt.Errorf("%w: Volatility symbols: %w", ErrFormat, err)
	}
	p := &Profile{Format: "Volatility symbols", Banner: x.banner}
	if len(x.syms) > 0 {
		p.Symbols = ksym.NewList(x.syms)
	}
	if len(x.user) == 0 {
		if p.Symbols == nil {
			return nil, errFormat("JSON that is no table of Volatility 3: it has neither user_types nor symbols")
		}
		return p, nil
	}
	btf, err := x.blob()
	if err != nil {
		return nil, err
	}
	return p.withTypes(btf)
}

// read reads the lists one entry after the other: the whole file as one value
// would take many times its size.
func (x *volatility) read(d *json.Decoder) error {
	if _, err := d.Token(); err != nil { // the brace
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		switch key {
		case "base_types":
			err = entries(d, x.base)
		case "enums":
			err = entries(d, x.enums)
		case "user_types":
			err = entries(d, x.user)
		case "symbols":
			err = x.symbols(d)
		default:
			var skip json.RawMessage
			err = d.Decode(&skip)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", key, err)
		}
	}
	_, err := d.Token()
	return err
}

// each calls f before each value of an object, which f is to decode.
func each(d *json.Decoder, f func(name string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("no object, but %v: %w", t, err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		s, _ := name.(string)
		if err := f(s); err != nil {
			return fmt.Errorf("%q: %w", s, err)
		}
	}
	_, err := d.Token()
	return err
}

func entries[T any](d *json.Decoder, into map[string]T) error {
	return each(d, func(name string) error {
		var v T
		if err := d.Decode(&v); err != nil {
			return err
		}
		into[name] = v
		return nil
	})
}

func (x *volatility) symbols(d *json.Decoder) error {
	return each(d, func(name string) error {
		var s isfSymbol
		if err := d.Decode(&s); err != nil {
			return err
		}
		if name == "linux_banner" {
			x.banner = bannerOf(s.Constant)
		}
		if s.Address != 0 && len(x.syms) < maxSymbols { // 0 is not known
			x.syms = append(x.syms, ksym.Symbol{Name: name, Addr: mem.VA(s.Address), Type: '?', Absolute: s.Address < 1<<20})
		}
		return nil
	})
}

// blob makes BTF of the types.
func (x *volatility) blob() ([]byte, error) {
	names := make([]string, 0, len(x.user))
	for name := range x.user {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		u := x.user[name]
		kind := ctype.Struct
		if u.Kind == "union" {
			kind = ctype.Union
		}
		given := name
		if strings.HasPrefix(name, "unnamed_") {
			given = ""
		}
		x.ids[name] = x.b.Reserve(kind, given, uint32(min(max(u.Size, 0), math.MaxUint32)))
	}
	for _, name := range names {
		list, err := x.members(x.user[name])
		if err != nil {
			return nil, fmt.Errorf("%w: %q", err, name)
		}
		x.b.Define(x.ids[name], list)
	}
	enums := make([]string, 0, len(x.enums))
	for name := range x.enums {
		enums = append(enums, name)
	}
	slices.Sort(enums)
	for _, name := range enums { // those too that nothing refers to
		x.enum(name)
	}
	for _, name := range []string{"int", "long int", "long unsigned int"} { // the latter tell the size of pointers
		x.number(name)
	}
	return x.b.Blob()
}

func (x *volatility) members(u isfUser) ([]ctype.NewMember, error) {
	names := make([]string, 0, len(u.Fields))
	for name := range u.Fields {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := u.Fields[a].Offset - u.Fields[b].Offset; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return strings.Compare(a, b)
	})
	var out []ctype.NewMember
	for _, name := range names {
		f := u.Fields[name]
		if f.Type.Kind == "bitfield" || f.Offset < 0 || f.Offset > math.MaxUint32/8 {
			continue
		}
		typ, err := x.id(&f.Type, 0)
		if err != nil {
			return nil, err
		}
		if f.Anonymous || strings.HasPrefix(name, "unnamed_field_") {
			name = ""
		}
		out = append(out, ctype.NewMember{Name: name, Type: typ, Offset: 8 * uint64(f.Offset)})
	}
	return out, nil
}

func (x *volatility) id(t *isfType, depth int) (uint32, error) {
	if t == nil {
		return 0, nil
	}
	if depth > maxDepth {
		return 0, errFormat("a type nested more than %d times", maxDepth)
	}
	switch t.Kind {
	case "base":
		return x.number(t.Name), nil
	case "struct", "union", "class":
		if id, ok := x.ids[t.Name]; ok {
			return id, nil
		}
		if t.Kind == "union" {
			return x.b.Declared(ctype.Union, t.Name), nil
		}
		return x.b.Declared(ctype.Struct, t.Name), nil
	case "enum":
		return x.enum(t.Name), nil
	case "function":
		return x.b.Proto(0, nil), nil
	}
	to, err := x.id(t.Subtype, depth+1)
	if err != nil {
		return 0, err
	}
	switch t.Kind {
	case "pointer":
		return x.b.To(ctype.Pointer, to), nil
	case "array":
		return x.b.Array(to, uint32(min(max(t.Count, 0), math.MaxUint32))), nil
	}
	return 0, errFormat("a type of kind %q", t.Kind)
}

// number is a base type; void if there is none of that name.
func (x *volatility) number(name string) uint32 {
	t, ok := x.base[name]
	size := uint32(min(max(t.Size, 0), 16))
	switch {
	case !ok || t.Kind == "void" || size == 0:
		return 0
	case t.Kind == "float":
		return x.b.Float(name, size)
	case t.Kind == "bool":
		return x.b.Int(name, size, ctype.Bool)
	case t.Signed:
		return x.b.Int(name, size, ctype.Signed)
	}
	return x.b.Int(name, size, 0)
}

func (x *volatility) enum(name string) uint32 {
	e := x.enums[name]
	var values []ctype.NewValue
	signed := false
	for n, v := range e.Constants {
		values = append(values, ctype.NewValue{Name: n, Value: v})
		signed = signed || v < 0
	}
	slices.SortFunc(values, func(a, b ctype.NewValue) int { return strings.Compare(a.Name, b.Name) })
	if strings.HasPrefix(name, "unnamed_") {
		name = ""
	}
	return x.b.Enum(name, uint32(min(max(e.Size, 0), 8)), signed, values)
}
