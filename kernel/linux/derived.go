package linux

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"vmscope/mem"
)

// bound is a result that is worked out once.
type bound struct {
	once sync.Once
	val  any
	err  error
}

// derived returns what work makes out of a kernel, worked out once: a layout
// together with the symbols that go with it.
func derived[T any](k *Kernel, work func(*Kernel) (*T, error)) (*T, error) {
	key := reflect.TypeFor[T]()
	e, ok := k.layouts.Load(key)
	if !ok {
		e, _ = k.layouts.LoadOrStore(key, new(bound))
	}
	b := e.(*bound)
	b.once.Do(func() { b.val, b.err = work(k) })
	if b.err != nil {
		return nil, b.err
	}
	return b.val.(*T), nil
}

// now is the kernel's memory past the View's cache: as it is, not as it was when
// its pages were first read. Page tables may be cached; the kernel's do not move.
func (v *View) now() *mem.Space {
	if c, ok := v.Phys.(*mem.Cache); ok {
		return mem.NewSpace(v.Mem.Name, c.Source(), v.Mem.Tr)
	}
	return v.Mem
}

// forget drops what is cached of the guest, so that a second look is one.
func (v *View) forget() {
	if c, ok := v.Phys.(*mem.Cache); ok {
		c.Forget()
	}
}

const (
	// maxMishaps bounds how many failures of one list are told one by one.
	maxMishaps = 8
	// tooManyMishaps is when a list is given up: a table full of lies must not
	// cost as much as one full of files.
	tooManyMishaps = 256
)

// mishaps gathers what went wrong with single entries of a list, so that the
// others are still given.
type mishaps struct {
	errs []error
	more int
}

func (m *mishaps) add(err error) {
	switch {
	case err == nil:
	case len(m.errs) < maxMishaps:
		m.errs = append(m.errs, err)
	default:
		m.more++
	}
}

// full reports that so much went wrong that the rest is not worth a look.
func (m *mishaps) full() bool { return len(m.errs)+m.more >= tooManyMishaps }

func (m *mishaps) err() error {
	if m.more > 0 {
		return errors.Join(append(m.errs, fmt.Errorf("and %d more", m.more))...)
	}
	return errors.Join(m.errs...)
}
