package ctype

import (
	"strconv"
	"strings"
)

// maxDeclNodes bounds one declaration: prototypes nested in prototypes could
// grow without end.
const maxDeclNodes = 256

// declare writes the declaration of name with type t in C. Types are written by
// their names; an anonymous struct is "struct {...}".
func declare(t Type, name string) string {
	base, decl := declarator(t, clean(name))
	if decl == "" {
		return base
	}
	return base + " " + decl
}

// declarator parts a declaration where pahole does: "struct list_head *" and
// "next", "int" and "(*f)(void *)". The name is written as it is.
func declarator(t Type, name string) (base, decl string) {
	budget := maxDeclNodes
	base, decl = writeDecl(t, name, &budget)
	// Stars that nothing follows but the name belong to the type's column.
	n := 0
	for n < len(decl) && decl[n] == '*' {
		n++
	}
	if n > 0 {
		base, decl = base+" "+decl[:n], decl[n:]
	}
	return base, decl
}

func writeDecl(t Type, decl string, budget *int) (string, string) {
	quals := ""
	for range maxDepth {
		if *budget--; *budget < 0 {
			break
		}
		switch k := t.Kind(); k {
		case Pointer:
			t = t.target()
			switch behindQualifiers(t).Kind() {
			case Array, FuncProto:
				decl = "(*" + decl + ")"
			default:
				decl = "*" + decl
			}
		case Const, Volatile, Restrict:
			word := k.String()
			t = t.target()
			if behindQualifiers(t).Kind() == Pointer {
				decl = strings.TrimSuffix(word+" "+decl, " ")
			} else {
				quals += word + " "
			}
		case TypeTag:
			t = t.target()
		case Array:
			decl += "[" + strconv.Itoa(t.Len()) + "]"
			t = t.Elem()
		case FuncProto:
			decl += "(" + params(t, budget) + ")"
			t = t.target()
		case Func:
			decl = clean(t.Name()) + decl
			t = t.target()
		case Var:
			decl = clean(t.Name()) + decl
			t = t.target()
		default:
			return quals + typeName(t), decl
		}
	}
	return quals + "...", decl
}

func params(proto Type, budget *int) string {
	var s []string
	for p := range proto.Params() {
		if *budget <= 0 {
			s = append(s, "...")
			break
		}
		if p.Type.IsVoid() {
			s = append(s, "...")
			continue
		}
		base, decl := writeDecl(p.Type, clean(p.Name), budget)
		if decl != "" {
			base += " " + decl
		}
		s = append(s, base)
	}
	if s == nil {
		return "void"
	}
	return strings.Join(s, ", ")
}

// behindQualifiers passes over const and the like, but not over typedefs.
func behindQualifiers(t Type) Type {
	for range maxDepth {
		switch t.Kind() {
		case Volatile, Const, Restrict, TypeTag:
			t = t.target()
		default:
			return t
		}
	}
	return Type{}
}

// typeName is the name of a type that no declarator is part of.
func typeName(t Type) string {
	name := clean(t.Name())
	tag := ""
	switch t.Kind() {
	case Struct:
		tag = "struct"
	case Union:
		tag = "union"
	case Enum, Enum64:
		tag = "enum"
	case Fwd:
		tag = "struct"
		if t.flag() {
			tag = "union"
		}
	default:
		if name == "" {
			return "(" + t.Kind().String() + ")"
		}
		return name
	}
	if name == "" {
		name = "{...}"
	}
	return tag + " " + name
}

// clean makes a name fit for a terminal: the guest may have put anything in it.
func clean(s string) string {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			q := strconv.Quote(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}
