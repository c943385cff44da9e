package ctype

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Bind fills the struct that dst points to with what its tags ask of t, so that
// code that knows a kernel can say once, as data, which members it uses:
//
//	type taskLayout struct {
//		PID   ctype.Field `c:"task_struct.pid"`
//		State ctype.Field `c:"task_struct.__state|task_struct.state"`
//		MT    ctype.Field `c:"mm_struct.mm_mt,optional"`
//		Task  ctype.Type  `c:"task_struct"`
//		Size  uint64      `c:"sizeof(task_struct)"`
//		Live  int64       `c:"enum(MODULE_STATE_LIVE)"`
//		Comm  uint64      `c:"task_struct.comm"`
//	}
//
// A Field takes a member, a Type takes a type or the type of a member, a number takes sizeof, an
// enumerator's value, or a member's offset in bytes. "|" parts alternatives, of
// which the first that the kernel has is taken. What is optional and not there
// leaves its field as it is. Structs without a tag are filled as well.
//
// All that is missing is told in one *BindError. A tag that cannot be
// understood is an error of another kind: of the program, not the kernel.
func Bind(t *Types, dst any) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("ctype.Bind: %T is no pointer to a struct", dst)
	}
	var missing []error
	if err := bind(t, v.Elem(), &missing); err != nil {
		return err
	}
	if missing != nil {
		return &BindError{Missing: missing}
	}
	return nil
}

// BindError says what a kernel's types lack. It is an ErrNoType if a type is
// missing, an ErrNoMember if a member is, and so on.
type BindError struct {
	Missing []error // *LookupError, one for each field; of alternatives, the first
}

func (e *BindError) Error() string {
	s := make([]string, len(e.Missing))
	for i, err := range e.Missing {
		s[i] = err.Error()
	}
	return "the kernel's types lack " + strings.Join(s, ", ")
}

// Unwrap gives the failures one by one.
func (e *BindError) Unwrap() []error { return e.Missing }

var (
	fieldType = reflect.TypeFor[Field]()
	typeType  = reflect.TypeFor[Type]()
)

func bind(t *Types, v reflect.Value, missing *[]error) error {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		tag, ok := sf.Tag.Lookup("c")
		if !ok {
			if sf.IsExported() && sf.Type.Kind() == reflect.Struct && sf.Type != fieldType && sf.Type != typeType {
				if err := bind(t, v.Field(i), missing); err != nil {
					return err
				}
			}
			continue
		}
		spec, option, _ := strings.Cut(tag, ",")
		var err error
		switch {
		case !sf.IsExported():
			err = errors.New("the field must be exported")
		case option != "" && option != "optional":
			err = fmt.Errorf("unknown option %q", option)
		default:
			err = bindField(t, v.Field(i), spec)
		}
		var le *LookupError
		switch {
		case err == nil:
		case !errors.As(err, &le):
			return fmt.Errorf("ctype.Bind: %v.%s, tag %q: %w", v.Type(), sf.Name, tag, err)
		case option != "optional":
			*missing = append(*missing, err)
		}
	}
	return nil
}

// bindField takes the first alternative that is there, else the error of the
// first.
func bindField(t *Types, v reflect.Value, spec string) error {
	var first error
	for alt := range strings.SplitSeq(spec, "|") {
		err := bindOne(t, v, strings.TrimSpace(alt))
		var le *LookupError
		if err == nil || !errors.As(err, &le) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func bindOne(t *Types, v reflect.Value, alt string) error {
	if name, ok := call(alt, "enum"); ok {
		n, err := t.Enum(name)
		if err != nil {
			return err
		}
		return setInt(v, n)
	}
	name, sizeof := call(alt, "sizeof")
	if !sizeof {
		name = alt
	}
	name, path, deep := strings.Cut(name, ".")
	typ, err := t.Lookup(name)
	if err != nil {
		return err
	}
	f := Field{Type: typ}
	if deep {
		if f, err = typ.Member(path); err != nil {
			return err
		}
	}
	switch {
	case sizeof:
		n := f.Type.Size()
		if n == 0 && f.Type.Underlying().Kind() == Fwd {
			return &LookupError{Type: name, Member: path, Reason: "declared but not defined", Err: ErrNoType}
		}
		return setInt(v, int64(n))
	case v.Type() == fieldType && deep:
		v.Set(reflect.ValueOf(f))
	case v.Type() == typeType:
		v.Set(reflect.ValueOf(f.Type))
	case !deep:
		return errors.New("names no member")
	case f.BitSize != 0:
		return &LookupError{Type: name, Member: path, Reason: "a bit-field has no offset in bytes", Err: ErrNoMember}
	default:
		return setInt(v, int64(f.Offset))
	}
	return nil
}

// call reads "f(arg)".
func call(s, f string) (arg string, ok bool) {
	s, ok = strings.CutPrefix(s, f+"(")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(s, ")")
}

// setInt stores n in an integer of any kind. A number that does not fit is an
// answer of the kernel, not a fault of the program.
func setInt(v reflect.Value, n int64) error {
	overflow := &LookupError{Member: fmt.Sprint(n), Reason: "does not fit " + v.Type().String(), Err: ErrNoMember}
	switch {
	case v.CanInt():
		if v.OverflowInt(n) {
			return overflow
		}
		v.SetInt(n)
	case v.CanUint():
		// An enumerator may be an unsigned 64-bit number.
		if v.Type().Size() < 8 && (n < 0 || v.OverflowUint(uint64(n))) {
			return overflow
		}
		v.SetUint(uint64(n))
	default:
		return fmt.Errorf("a %v cannot hold it", v.Type())
	}
	return nil
}
