package ksym

import (
	"hash/maphash"
	"math/bits"
)

// hashIndex finds symbols by name in tables that the kernel did not sort. It
// holds 4 to 8 bytes a symbol and no names. Chains make its building linear
// whatever the guest's names are; the seed keeps them short for all but names
// that really are the same.
type hashIndex struct {
	seed maphash.Seed
	head []uint32 // by hash; symbol + 1
	next []uint32 // by symbol; symbol + 1
}

func newHashIndex(x *names) *hashIndex {
	h := &hashIndex{
		seed: maphash.MakeSeed(),
		head: make([]uint32, 1<<bits.Len(uint(x.n))),
		next: make([]uint32, x.n),
	}
	var buf nameBuf
	// Backwards, so that chains run in the order of the table.
	for g := len(x.fine) - 1; g >= 0; g-- {
		var start [fineEvery][]byte
		first := g * fineEvery
		m := min(fineEvery, x.n-first)
		off := int(x.fine[g])
		for k := range m {
			start[k], off = record(x.recs, off)
		}
		for k := m - 1; k >= 0; k-- {
			s := x.tok.expand(&buf, start[k])
			if len(s) < 1 {
				continue
			}
			p := &h.head[maphash.Bytes(h.seed, s[1:])&uint64(len(h.head)-1)]
			h.next[first+k] = *p
			*p = uint32(first + k + 1)
		}
	}
	return h
}

func (h *hashIndex) each(x *names, buf *nameBuf, name string, f func(i int) bool) {
	p := h.head[maphash.String(h.seed, name)&uint64(len(h.head)-1)]
	for p != 0 {
		i := int(p - 1)
		if _, s := x.text(buf, i); string(s) == name && !f(i) {
			return
		}
		p = h.next[i]
	}
}
