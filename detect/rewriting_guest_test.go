package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"vmscope"
	"vmscope/ksym"
	"vmscope/mem"
)

// rewrites stops a guest in the moment in which its kernel rewrites a place, as
// it seems, and demands that this is no finding, unless what happens there
// meanwhile leads astray.
func rewrites(t *testing.T, v *victim, look func(*vmscope.View) Result) {
	type record struct {
		name   string
		to     func(v *victim) mem.VA // where what is done meanwhile leads
		astray bool
	}
	for _, c := range []record{
		{"leads where it should", func(v *victim) mem.VA { return v.symbol("ftrace_caller") }, false},
		{"leads elsewhere", func(v *victim) mem.VA { return v.symbol("commit_creds") }, true},
		{"not listed", nil, true},
	} {
		t.Run("rewritten, "+c.name, func(t *testing.T) {
			v := &victim{T: t, g: v.g, lab: v.lab}
			v.tampered(func() {
				at := v.ftraceSite("vfs_write")
				v.write(at, []byte{opInt3})
				if c.to != nil {
					v.rewrite(at, v.symbol("ftrace_caller"), c.to(v))
				}
				r := look(v.tx.View)
				if !c.astray {
					for _, f := range r.Findings {
						t.Errorf("%s %+v", f.Summary, f.Evidence)
					}
					return
				}
				demand(t, r, "text", []string{fmt.Sprintf("%#x", uint64(at)), "vfs_write"})
			})
		})
	}
}

// rewrite has the kernel say that it puts a call at a place that does nothing,
// while whoever comes there goes somewhere.
func (v *victim) rewrite(at, call, to mem.VA) {
	v.Helper()
	typ, list := "text_poke_loc", mem.VA(0)
	array, err := v.tx.LookupSymbol("text_poke_array")
	if errors.Is(err, ksym.ErrNoSymbol) {
		list = v.spare(64)
		desc := v.symbol("bp_desc")
		v.put(v.member(desc, "bp_patching_desc", "vec"), uint64(list))
		v.write(v.member(desc, "bp_patching_desc", "nr_entries"), []byte{1, 0, 0, 0})
	} else if err != nil {
		v.Fatal(err)
	} else {
		typ, list = "smp_text_poke_loc", v.member(array.Addr, "smp_text_poke_array", "vec")
		v.write(v.member(array.Addr, "smp_text_poke_array", "nr_entries"), []byte{1, 0, 0, 0})
	}
	word := func(from, to mem.VA) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(to-from)) }
	v.write(v.member(list, typ, "rel_addr"), word(v.symbol("_stext"), at))
	v.write(v.member(list, typ, "disp"), word(at+5, to))
	v.write(v.member(list, typ, "len"), []byte{5})
	v.write(v.member(list, typ, "opcode"), []byte{opCall})
	v.write(v.member(list, typ, "text"), append([]byte{opCall}, word(at+5, call)...))
	v.write(v.member(list, typ, "old"), []byte{v.undo[0].old[0]})
}
