package ctype

import "fmt"

// Kind is what sort of type a Type is. The numbers are those of BTF
// (include/uapi/linux/btf.h).
type Kind uint8

// The kinds of BTF as of Linux 7.2.
const (
	Void Kind = iota
	Int
	Pointer
	Array
	Struct
	Union
	Enum
	Fwd // a struct or union that is named but not defined
	Typedef
	Volatile
	Const
	Restrict
	Func
	FuncProto
	Var
	DataSec
	Float
	DeclTag
	TypeTag
	Enum64
	numKinds
)

var kindNames = [numKinds]string{"void", "int", "pointer", "array", "struct", "union", "enum", "fwd", "typedef",
	"volatile", "const", "restrict", "func", "func proto", "var", "datasec", "float", "decl tag", "type tag", "enum64"}

// String names the kind as C or BTF does.
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// shape is what follows the 12 bytes of a type record: info bytes once, elem
// bytes for each of its vlen elements.
type shape struct{ info, elem uint8 }

var shapes = [numKinds]shape{
	Int: {4, 0}, Array: {12, 0}, Struct: {0, 12}, Union: {0, 12}, Enum: {0, 8}, FuncProto: {0, 8},
	Var: {4, 0}, DataSec: {0, 12}, DeclTag: {4, 0}, Enum64: {0, 12},
}
