package linux

import (
	"errors"
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// Rewrite is a place of text that the kernel is just rewriting: a breakpoint
// stands there until all CPUs have seen it, and what runs into it does what Op
// and To say.
type Rewrite struct {
	At  mem.VA
	Old byte   // what stood in the place of the breakpoint
	New []byte // what will stand there
	Op  byte   // of the instruction that is done meanwhile
	To  mem.VA // where it leads, if it leads anywhere
}

// rewriteLayout is what is read of the places that are just being rewritten
// (arch/x86/kernel/alternative.c).
type rewriteLayout struct {
	Each uint64      `c:"sizeof(text_poke_loc)|sizeof(smp_text_poke_loc),optional"`
	At   ctype.Field `c:"text_poke_loc.rel_addr|smp_text_poke_loc.rel_addr,optional"`
	To   ctype.Field `c:"text_poke_loc.disp|smp_text_poke_loc.disp,optional"`
	Len  ctype.Field `c:"text_poke_loc.len|smp_text_poke_loc.len,optional"`
	Op   ctype.Field `c:"text_poke_loc.opcode|smp_text_poke_loc.opcode,optional"`
	New  ctype.Field `c:"text_poke_loc.text|smp_text_poke_loc.text,optional"`
	Old  ctype.Field `c:"text_poke_loc.old|smp_text_poke_loc.old,optional"`

	List ctype.Field `c:"bp_patching_desc.vec,optional"`
	N    ctype.Field `c:"bp_patching_desc.nr_entries,optional"`

	// Since v6.16.
	Array  ctype.Field `c:"smp_text_poke_array.vec,optional"`
	ArrayN ctype.Field `c:"smp_text_poke_array.nr_entries,optional"`
}

// maxRewrites bounds the places that are rewritten at once, of which there are a
// page full at most.
const maxRewrites = mem.PageSize

// Rewrites lists the places that the kernel is just rewriting, as far as it says
// so; a kernel of another make says nothing.
func (v *View) Rewrites() ([]Rewrite, error) {
	l, err := layout64[rewriteLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	var list mem.VA
	var n uint64
	if at, serr := v.Symbol("text_poke_array"); serr == nil && l.Array.Valid() && l.ArrayN.Valid() {
		list = l.Array.At(at)
		n, err = v.Mem.Uint(l.ArrayN.At(at), int(l.ArrayN.Size()))
	} else if at, serr := v.Symbol("bp_desc"); serr == nil && l.List.Valid() && l.N.Valid() {
		if list, err = v.Mem.Pointer(l.List.At(at)); err == nil {
			n, err = v.Mem.Uint(l.N.At(at), int(l.N.Size()))
		}
	} else if serr != nil && !errors.Is(serr, ksym.ErrNoSymbol) {
		err = serr
	}
	need, serr := span(l.At, l.To, l.Len, l.Op, l.New, l.Old)
	if err != nil || serr != nil || list == 0 || n == 0 || !l.Old.Valid() || uint64(need) > l.Each || l.Each > maxObject {
		return nil, errors.Join(err, serr)
	}
	if n > maxRewrites {
		return nil, errBroken("places that are rewritten", list, fmt.Sprintf("%d of them", n))
	}
	b, err := v.readBlock(list, n*l.Each)
	if err != nil {
		return nil, err
	}
	out := make([]Rewrite, 0, n)
	for i := range n {
		o := object{b: b[i*l.Each : (i+1)*l.Each]}
		r := Rewrite{At: v.Text + mem.VA(int64(int32(o.uint(l.At)))), Old: byte(o.uint(l.Old)), Op: byte(o.uint(l.Op))}
		r.New = o.bytes(l.New)
		size := o.uint(l.Len)
		if size == 0 || size > uint64(len(r.New)) {
			continue
		}
		r.New = r.New[:size]
		r.To = r.At + mem.VA(size) + mem.VA(int64(int32(o.uint(l.To))))
		out = append(out, r)
	}
	return out, nil
}
