// Package isf writes symbol tables of Volatility 3 (schema 6.2.0) for tests, as
// dwarf2json makes them of a vmlinux: typedefs and qualifiers are left out, and
// what has no name gets one. It takes the types from BTF by a reader other than
// vmscope's.
package isf

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// Symbol is a symbol of the kernel.
type Symbol struct {
	Name string
	Addr uint64
}

type object = map[string]any

// Write makes the table of a kernel with the given BTF and symbols, whose banner
// is as linux_banner reads.
func Write(blob []byte, symbols []Symbol, banner string) ([]byte, error) {
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	w := writer{spec: spec, base: object{
		"void": object{"size": 0, "signed": false, "kind": "void", "endian": "little"},
	}, user: object{}, enums: object{}}
	for t, err := range spec.All() {
		if err != nil {
			return nil, err
		}
		if err := w.define(t); err != nil {
			return nil, err
		}
	}
	w.base["pointer"] = object{"size": 8, "signed": false, "kind": "int", "endian": "little"}
	syms := object{}
	for _, s := range symbols {
		if _, ok := syms[s.Name]; ok {
			continue
		}
		o := object{"address": s.Addr, "type": object{"kind": "base", "name": "void"}}
		if s.Name == "linux_banner" {
			o["constant_data"] = []byte(banner + "\n\x00")
		}
		syms[s.Name] = o
	}
	return json.Marshal(object{
		"metadata":   object{"producer": object{"name": "vmscope's tests", "version": "1"}, "format": "6.2.0"},
		"base_types": w.base, "user_types": w.user, "enums": w.enums, "symbols": syms,
	})
}

type writer struct {
	spec              *btf.Spec
	base, user, enums object
}

// name is that of a type, by its number if it has none.
func (w *writer) name(t btf.Type) (string, error) {
	if n := t.TypeName(); n != "" {
		return n, nil
	}
	id, err := w.spec.TypeID(t)
	return fmt.Sprintf("unnamed_%016x", id), err
}

func (w *writer) define(t btf.Type) error {
	name, err := w.name(t)
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case *btf.Int:
		kind := "int"
		switch {
		case t.Encoding == btf.Bool:
			kind = "bool"
		case t.Size == 1:
			kind = "char"
		}
		w.base[name] = object{"size": t.Size, "signed": t.Encoding == btf.Signed, "kind": kind, "endian": "little"}
	case *btf.Float:
		w.base[name] = object{"size": t.Size, "signed": true, "kind": "float", "endian": "little"}
	case *btf.Struct:
		return w.compound(name, "struct", t.Size, t.Members)
	case *btf.Union:
		return w.compound(name, "union", t.Size, t.Members)
	case *btf.Enum:
		constants := object{}
		for _, v := range t.Values {
			constants[v.Name] = int64(v.Value)
			if t.Size == 4 {
				constants[v.Name] = int32(v.Value)
			}
		}
		if _, ok := w.enums[name]; !ok {
			w.enums[name] = object{"size": t.Size, "base": "unsigned int", "constants": constants}
		}
	}
	return nil
}

func (w *writer) compound(name, kind string, size uint32, members []btf.Member) error {
	if _, ok := w.user[name]; ok {
		return nil // the first of a name, as vmscope has it
	}
	fields := object{}
	for _, m := range members {
		t, err := w.ref(m.Type)
		if err != nil {
			return err
		}
		f := object{"type": t, "offset": m.Offset.Bytes()}
		if m.BitfieldSize != 0 {
			f["type"] = object{"kind": "bitfield", "bit_position": 0, "bit_length": m.BitfieldSize, "type": t}
		}
		field := m.Name
		if field == "" {
			field = fmt.Sprintf("unnamed_field_%x", m.Offset.Bytes())
			f["anonymous"] = true
		}
		fields[field] = f
	}
	w.user[name] = object{"size": size, "fields": fields, "kind": kind}
	return nil
}

func (w *writer) ref(t btf.Type) (object, error) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Void:
		return object{"kind": "base", "name": "void"}, nil
	case *btf.Pointer:
		to, err := w.ref(t.Target)
		return object{"kind": "pointer", "subtype": to}, err
	case *btf.Array:
		of, err := w.ref(t.Type)
		return object{"kind": "array", "count": t.Nelems, "subtype": of}, err
	case *btf.FuncProto:
		return object{"kind": "function"}, nil
	case *btf.Int, *btf.Float:
		return object{"kind": "base", "name": t.TypeName()}, nil
	default:
		name, err := w.name(t)
		kind := "struct"
		switch t := t.(type) {
		case *btf.Union:
			kind = "union"
		case *btf.Enum:
			kind = "enum"
		case *btf.Fwd:
			kind = t.Kind.String()
		}
		return object{"kind": kind, "name": name}, err
	}
}
