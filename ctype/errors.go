package ctype

import (
	"errors"
	"fmt"
)

// What a kernel may lack. Presence and absence of types and members is how
// kernels are told apart, so these are answers as much as failures.
var (
	// ErrNoType says that the kernel has no type of this name.
	ErrNoType = errors.New("no such type")
	// ErrNoMember says that the type has no member of this name, or that the
	// path does not fit it.
	ErrNoMember = errors.New("no such member")
	// ErrNoEnumerator says that no enum has a constant of this name.
	ErrNoEnumerator = errors.New("no such enumerator")
)

// LookupError is a name that was asked for and not found. Err is ErrNoType,
// ErrNoMember, ErrNoEnumerator, or mem.ErrInconsistent where the types
// contradict themselves.
type LookupError struct {
	Type   string // the type asked for or searched; "" for an enumerator
	Member string // the member path or enumerator asked for; "" if it was a type
	Reason string // more, where there is more to say
	Err    error
}

func (e *LookupError) Error() string {
	s := e.Type
	if e.Member != "" {
		if s != "" {
			s += "."
		}
		s += e.Member
	}
	s = fmt.Sprintf("%q: %v", s, e.Err)
	if e.Reason != "" {
		s += " (" + e.Reason + ")"
	}
	return s
}

// Unwrap gives the class of the failure.
func (e *LookupError) Unwrap() error { return e.Err }
