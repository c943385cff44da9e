package vendorfile

import (
	"encoding/binary"
	"strings"

	"vmscope/ctype"
	"vmscope/mem"
)

// returnsZero is what a static call leads to that has nothing to call, and wants
// a number (include/linux/static_call.h). Keys of any prototype may have it.
const returnsZero = "__static_call_return0"

// Callable reports whether the static call of a key may be led to an address
// within the kernel, as far as its file tells: to the beginning of a function
// that is declared as the one is with which the key begins (static_call_update
// has the compiler see to that), or as the hook of security modules that the key
// is for. The key is the kernel's, or that of a module's file, im. Other keys
// that begin with nothing, and functions whose declaration is not known, may be
// led to each function, or lead to each.
func (k *Kernel) Callable(im *Image, key, to mem.VA) bool {
	if !k.Entry(to) {
		return false
	}
	b := k.At(key)
	if len(b) == 0 {
		b = im.At(key)
	}
	if len(b) < 8 || k.Named(to, returnsZero) {
		return true
	}
	first := mem.VA(binary.LittleEndian.Uint64(b)) // static_call_key.func
	if first == to {
		return true
	}
	want, written := k.hooks(key), true
	if first != 0 && !k.Named(first, returnsZero) {
		want = k.prototypes(first)
		written = k.tracepoint(first)
	}
	got := k.prototypes(to)
	if len(want) == 0 || len(got) == 0 {
		return true
	}
	for _, w := range want {
		for _, g := range got {
			if !written && (untold(w) || untold(g)) || sameCall(w, g) {
				return true
			}
		}
	}
	return false
}

// untold reports whether a function may be one in assembly, which the types have
// without parameters and result. Hooks of security modules and probes of
// tracepoints are written in C.
func untold(p ctype.Type) bool { return len(parameters(p)) == 0 && p.Elem().IsVoid() }

// tracepoint reports whether at an address the function begins that calls all
// probes of a tracepoint.
func (k *Kernel) tracepoint(at mem.VA) bool {
	for name := range k.symbols.At(k.linked(at)) {
		if strings.HasPrefix(name, "__traceiter_") {
			return true
		}
	}
	return false
}

// hooks is how the functions for a hook of security modules are declared, if the
// key is of such a one: each hook has some, which begin with nothing
// (security/security.c, since v6.12).
func (k *Kernel) hooks(key mem.VA) []ctype.Type {
	for name := range k.symbols.At(k.linked(key)) {
		hook, ok := strings.CutPrefix(name, "__SCK__lsm_static_call_")
		if i := strings.LastIndexByte(hook, '_'); ok && i > 0 {
			all, err := k.types.Lookup("union security_list_options") // include/linux/lsm_hooks.h
			if err != nil {
				return nil
			}
			f, err := all.Member(hook[:i])
			if err != nil {
				return nil
			}
			if p := f.Type.Underlying().Elem(); p.Kind() == ctype.FuncProto {
				return []ctype.Type{p}
			}
		}
	}
	return nil
}

// prototypes are how the functions at an address are declared: one, most often.
// What several functions of one name are is not known.
func (k *Kernel) prototypes(at mem.VA) []ctype.Type {
	var out []ctype.Type
	for name := range k.symbols.At(k.linked(at)) {
		p, ok := k.declared[name]
		if !ok {
			if len(k.symbols.LookupAll(name)) == 1 {
				if f, err := k.types.Func(name); err == nil {
					p = f.Elem()
				}
			}
			k.declared[strings.Clone(name)] = p
		}
		if !p.IsVoid() {
			out = append(out, p)
		}
	}
	return out
}

// sameCall reports whether who calls a function of prototype p may as well call
// one of q: with the same parameters, and a result of the same type. One that
// has no result will do, too: what calls all probes of a tracepoint in turn
// returns a number, a probe nothing (include/linux/tracepoint.h).
func sameCall(p, q ctype.Type) bool {
	of, with := parameters(p), parameters(q)
	if len(of) != len(with) {
		return false
	}
	for i := range of {
		if !alike(of[i], with[i], maxPointers) {
			return false
		}
	}
	r := q.Elem().Underlying()
	return r.IsVoid() || alike(p.Elem(), r, maxPointers)
}

func parameters(prototype ctype.Type) []ctype.Type {
	var out []ctype.Type
	for p := range prototype.Params() {
		out = append(out, p.Type)
	}
	return out
}

// maxPointers bounds pointers to pointers; what is behind more is not looked at.
const maxPointers = 4

// alike reports whether C takes two types for compatible, names of types and
// qualifiers aside. Types that are but declared are those of their name. It is
// lax with numbers, of which it compares the size.
func alike(a, b ctype.Type, depth int) bool {
	a, b = a.Underlying(), b.Underlying()
	if a.IsVoid() || b.IsVoid() {
		return a.IsVoid() && b.IsVoid()
	}
	number := func(t ctype.Type) bool {
		switch t.Kind() {
		case ctype.Int, ctype.Enum, ctype.Enum64:
			return true
		}
		return false
	}
	compound := func(t ctype.Type) bool {
		switch t.Kind() {
		case ctype.Struct, ctype.Union, ctype.Fwd:
			return true
		}
		return false
	}
	switch {
	case number(a) && number(b):
		return a.Size() == b.Size()
	case compound(a) && compound(b):
		return a.Name() == b.Name()
	case a.Kind() != b.Kind():
		return false
	case a.Kind() == ctype.Pointer:
		return depth == 0 || alike(a.Elem(), b.Elem(), depth-1)
	}
	return true
}
