package ctype

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestAgainstCilium compares every type of real kernels and modules with what
// another reader makes of the same bytes.
func TestAgainstCilium(t *testing.T) {
	t.Run("fixture", func(t *testing.T) {
		compareBlobs(t, fixture(t, ""), map[string][]byte{fixtureModule: fixture(t, fixtureModule)})
	})
	if testing.Short() {
		t.Skip("unpacking the lab's kernels takes seconds each")
	}
	for _, kernel := range []string{"bullseye-cloud", "bookworm", "trixie-cloud", "sid-cloud"} {
		t.Run(kernel, func(t *testing.T) {
			blob, err := kernelBTF(kernel, "")
			if os.IsNotExist(err) {
				t.Skipf("the lab has not fetched this kernel: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			mods := make(map[string][]byte)
			for _, m := range []string{"ext4", "jbd2", "virtio_blk", "xfs", "nf_tables"} {
				if b, err := kernelBTF(kernel, m); err == nil {
					mods[m] = b
				}
			}
			compareBlobs(t, blob, mods)
		})
	}
}

func compareBlobs(t *testing.T, blob []byte, modules map[string][]byte) {
	t.Helper()
	ts, err := Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	compareSpecs(t, ts, spec)
	for name, b := range modules {
		t.Run(name, func(t *testing.T) {
			mod, err := ParseSplit(b, ts)
			if err != nil {
				t.Fatal(err)
			}
			s, err := btf.LoadSplitSpecFromReader(bytes.NewReader(b), spec)
			if err != nil {
				t.Fatal(err)
			}
			compareSpecs(t, mod, s)
		})
	}
}

func compareSpecs(t *testing.T, ts *Types, spec *btf.Spec) {
	t.Helper()
	n, bad := 0, 0
	for typ := range ts.All() {
		n++
		want, err := spec.TypeByID(btf.TypeID(typ.ID()))
		if err != nil {
			t.Fatal(err)
		}
		if diff := compareType(typ, want, spec); diff != "" {
			if bad++; bad < 10 {
				t.Errorf("type %d: %s", typ.ID(), diff)
			}
		}
	}
	if _, err := spec.TypeByID(btf.TypeID(ts.Len())); err == nil {
		t.Errorf("there are more types than %d", ts.Len())
	}
	t.Logf("%d types compared, %d differ", n, bad)
}

// compareType says how typ differs from want, "" if it does not.
func compareType(typ Type, want btf.Type, spec *btf.Spec) string {
	same := func(got Type, want btf.Type) bool {
		if _, ok := want.(*btf.Void); ok {
			return got.IsVoid()
		}
		id, err := spec.TypeID(want)
		return err == nil && uint32(id) == got.ID()
	}
	if typ.Kind() == DeclTag {
		return "" // cilium keeps them with what they tag
	}
	name := want.TypeName()
	if tag, ok := want.(*btf.TypeTag); ok {
		name = tag.Value
	}
	if typ.Name() != name {
		return fmt.Sprintf("name %q, want %q", typ.Name(), name)
	}
	size, serr := btf.Sizeof(want)
	if serr == nil && uint64(size) != typ.Size() {
		return fmt.Sprintf("%v: size %d, want %d", typ, typ.Size(), size)
	}
	kind, target := Void, btf.Type(nil)
	var members []btf.Member
	switch w := want.(type) {
	case *btf.Int:
		kind = Int
		if (w.Encoding == btf.Signed) != typ.Signed() || (w.Encoding == btf.Bool) != typ.IsBool() {
			return fmt.Sprintf("%v: signed %v, bool %v; want %v", typ, typ.Signed(), typ.IsBool(), w.Encoding)
		}
	case *btf.Pointer:
		kind, target = Pointer, w.Target
	case *btf.Array:
		kind, target = Array, w.Type
		if typ.Len() != int(w.Nelems) {
			return fmt.Sprintf("%d elements, want %d", typ.Len(), w.Nelems)
		}
	case *btf.Struct:
		kind, members = Struct, w.Members
	case *btf.Union:
		kind, members = Union, w.Members
	case *btf.Enum:
		kind = Enum
		if typ.Kind() == Enum64 {
			kind = Enum64
		}
		i := 0
		for name, v := range typ.Enumerators() {
			e := w.Values[i]
			// Old producers do not tell signs, and cilium takes all for unsigned.
			if name != e.Name || v != int64(e.Value) && (typ.Types().signed || uint32(v) != uint32(e.Value)) {
				return fmt.Sprintf("%v: enumerator %s = %d, want %v", typ, name, v, e)
			}
			i++
		}
		if i != len(w.Values) {
			return fmt.Sprintf("%v: %d enumerators, want %d", typ, i, len(w.Values))
		}
	case *btf.Fwd:
		kind = Fwd
	case *btf.Typedef:
		kind, target = Typedef, w.Type
	case *btf.Volatile:
		kind, target = Volatile, w.Type
	case *btf.Const:
		kind, target = Const, w.Type
	case *btf.Restrict:
		kind, target = Restrict, w.Type
	case *btf.Func:
		kind, target = Func, w.Type
	case *btf.FuncProto:
		kind, target = FuncProto, w.Return
		i := 0
		for p := range typ.Params() {
			if i >= len(w.Params) || p.Name != w.Params[i].Name || !same(p.Type, w.Params[i].Type) {
				return fmt.Sprintf("%v: parameter %d is %v %q", typ, i, p.Type, p.Name)
			}
			i++
		}
	case *btf.Var:
		kind, target = Var, w.Type
	case *btf.Datasec:
		kind = DataSec
	case *btf.Float:
		kind = Float
	case *btf.TypeTag:
		kind, target = TypeTag, w.Type
	default:
		return fmt.Sprintf("unexpected %T", want)
	}
	if typ.Kind() != kind {
		return fmt.Sprintf("%v, want %v", typ.Kind(), kind)
	}
	if target != nil && !same(typ.Elem(), target) {
		return fmt.Sprintf("%v: refers to %v, want %v", typ, typ.Elem(), target)
	}
	if kind != Struct && kind != Union {
		return "" // typ.Members looks through typedefs
	}
	i := 0
	for m := range typ.Members() {
		if i >= len(members) {
			return fmt.Sprintf("%v: too many members", typ)
		}
		w := members[i]
		off := btf.Bits(8*m.Offset) + btf.Bits(m.BitOffset)
		if m.Name != w.Name || off != w.Offset || btf.Bits(m.BitSize) != w.BitfieldSize || !same(m.Type, w.Type) {
			return fmt.Sprintf("%v: member %d is %v, want %v", typ, i, m, w)
		}
		i++
	}
	if i != len(members) {
		return fmt.Sprintf("%v: %d members, want %d", typ, i, len(members))
	}
	return ""
}

// TestMemberFindsAll asks for every member of every named struct by its name,
// anonymous structs included, and compares with a walk of its own.
func TestMemberFindsAll(t *testing.T) {
	ts := kernel(t)
	n := 0
	for typ := range ts.All() {
		if k := typ.Kind(); k != Struct && k != Union {
			continue
		}
		var walk func(Type, uint64)
		seen := make(map[string]bool)
		walk = func(u Type, base uint64) {
			for m := range u.Members() {
				if m.Name == "" {
					walk(m.Type.Underlying(), base+m.Offset)
					continue
				}
				if seen[m.Name] {
					continue // C forbids it, but bit-fields of width 0 have no name here
				}
				seen[m.Name] = true
				n++
				f, err := typ.Member(m.Name)
				if err != nil || f.Offset != base+m.Offset || f.BitSize != m.BitSize || f.Type != m.Type {
					t.Errorf("%v.%s: %v, %v; want %v at +%d", typ, m.Name, f, err, m, base)
				}
			}
		}
		walk(typ, 0)
	}
	if n < 50000 {
		t.Errorf("only %d members were found", n)
	}
}
