package detect

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// pointer is a place in the guest that holds the address of code that the
// kernel will call.
type pointer struct {
	check string
	about []string // names it for good: what its ID is made of
	what  string   // for people
	at    mem.VA   // where it stands
}

// handler is a member that holds such a pointer, by its name.
type handler struct {
	name string
	ctype.Field
}

// inspect reads the pointer and reports it unless it is null or leads to code
// that the kernel accounts for.
func (p pointer) inspect(l *Look, report func(Finding)) error {
	to, err := l.Mem.Pointer(p.at)
	if err != nil || to == 0 {
		return err
	}
	return p.leads(l, to, report)
}

// leads is inspect for a pointer that was read already.
func (p pointer) leads(l *Look, to mem.VA, report func(Finding)) error {
	code, err := l.Code()
	if len(code) == 0 {
		return err
	}
	if o, ok := code.Owner(to); ok && callable(o) {
		return nil
	}
	name := l.Name(to)
	f := Finding{Check: p.check, Severity: High, Confidence: Proved,
		Summary: fmt.Sprintf("%s leads to %#x, code of %s", p.what, uint64(to), code.OwnerName(to)),
		Evidence: []Evidence{
			{What: p.what, Addr: p.at, Symbol: l.Name(p.at), Expected: "code of the kernel or of a module", Found: fmt.Sprintf("%#x", uint64(to))},
			{What: leadsThere, Addr: to, Symbol: name, Owner: code.OwnerName(to), Found: peek(l, to, 32)},
		}}
	if err != nil {
		f.Confidence = Possible // it may be code of what could not be listed
	}
	f.identify(p.about...)
	report(f)
	return err
}

// begin finds where a walk begins: variables of the kernel by their names, and
// the layout of what they lead to. A kernel that lacks the first of them has
// nothing to walk, and gives none.
func begin[T any](l *Look, names ...string) (at []mem.VA, f *T, err error) {
	for i, name := range names {
		a, err := l.Symbol(name)
		if i == 0 && errors.Is(err, ksym.ErrNoSymbol) {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		at = append(at, a)
	}
	f, err = bind[T](l)
	return at, f, err
}

// bind fills a struct of ctype.Field with the places of the members it asks for.
func bind[T any](l *Look) (*T, error) {
	types, err := l.NeedTypes()
	if err != nil {
		return nil, err
	}
	t := new(T)
	return t, ctype.Bind(types, t)
}
