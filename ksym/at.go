package ksym

import (
	"fmt"

	"vmscope/mem"
)

// At builds the table whose blocks are at known virtual addresses, such as
// VMCOREINFO claims them from Linux 6.1 on (CoreInfo.Kallsyms). read fills p
// from the bytes at va: a mem.Space's Read, or a reader of the kernel image
// once its physical address is known.
//
// The claim is checked: where it is wrong, the error wraps mem.ErrInconsistent.
func At(read func(p []byte, va mem.VA) (int, error), p Places) (*Table, error) {
	l, err := p.layout()
	if err != nil {
		return nil, err
	}
	b, err := newBuilder(func(q []byte, a uint64) error {
		_, err := read(q, mem.VA(a))
		return err
	}, p)
	if err != nil {
		return nil, err
	}
	w := wordSizes[0]
	if uint64(p.TokenTable) <= wordSizes[1].mask {
		w = wordSizes[1]
	}
	t, err := b.table(p, w, false)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", l, err)
	}
	return t, nil
}
