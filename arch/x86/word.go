package x86

import "vmscope/mem"

// Word loads the 8 aligned bytes at va: Translate and the load in one, for the
// loops that read guests word by word. It answers only what the fast path of
// Translate does; ok is false for all else, and for errors.
func (p *Paging) Word(va mem.VA) (v uint64, ok bool) {
	if int64(va)<<(p.unused&63)>>(p.unused&63) != int64(va) || va&7 != 0 {
		return 0, false
	}
	w, e := p.win, uint64(p.root)
	all := ^uint64(0)
	if p.top == 5 {
		i := w.Index(table(e) + index(va, 48))
		if !w.Has(i) {
			return 0, false
		}
		e = w.Load(i)
		all = e
	}
	i := w.Index(table(e) + index(va, 39))
	if !w.Has(i) {
		return 0, false
	}
	e = w.Load(i)
	if all &= e; e&large != 0 {
		return 0, false
	}
	i = w.Index(table(e) + index(va, 30))
	if !w.Has(i) {
		return 0, false
	}
	e = w.Load(i)
	all &= e
	in := mem.PA(1<<30 - 1)
	if e&large == 0 {
		i = w.Index(table(e) + index(va, 21))
		if !w.Has(i) {
			return 0, false
		}
		e = w.Load(i)
		all &= e
		in = 1<<21 - 1
		if e&large == 0 {
			i = w.Index(table(e) + index(va, 12))
			if !w.Has(i) {
				return 0, false
			}
			e = w.Load(i)
			all &= e
			in = 1<<12 - 1
		}
	}
	if all&present == 0 {
		return 0, false
	}
	i = w.Index(table(e)&^in | mem.PA(va)&in)
	if !w.Has(i) {
		return 0, false
	}
	return w.Load(i), true
}
