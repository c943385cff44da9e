package vendorfile

import (
	"vmscope/ctype"
	"vmscope/mem"
)

// natives are what kernels before v5.13 put in the place of a call by way of the
// slot of pv_ops at an offset, where no hypervisor asks for more: their
// patch_data_xxl and patch_data_lock hold it, in members named after the slots
// (arch/x86/kernel/paravirt_patch.c).
func (k *Kernel) natives(off uint64) [][]byte {
	if k.tables.PV.Types() == nil {
		return nil
	}
	group, slot := slotName(k.tables.PV, off)
	var out [][]byte
	for _, t := range []struct {
		symbol string
		typ    ctype.Type
		name   string
	}{
		{"patch_data_xxl", k.tables.PVData, group + "_" + slot},
		{"patch_data_lock", k.tables.PVLocks, slot},
	} {
		at, ok := k.Symbol(t.symbol)
		if !ok || t.typ.Types() == nil {
			continue
		}
		f, err := t.typ.Member(t.name)
		if err != nil {
			continue
		}
		if b := k.At(at + mem.VA(f.Offset)); uint64(len(b)) >= f.Size() {
			out = append(out, b[:f.Size()])
		}
	}
	return out
}

// slotName is the name of the slot of pv_ops at an offset: the group that it is
// in and its own, "irq", "irq_enable"; "" if there is none.
func slotName(ops ctype.Type, off uint64) (group, name string) {
	in := func(t ctype.Type, off uint64) (ctype.Member, bool) {
		for m := range t.Members() {
			if off >= m.Offset && off-m.Offset < m.Type.Size() {
				return m, true
			}
		}
		return ctype.Member{}, false
	}
	g, ok := in(ops, off)
	if !ok {
		return "", ""
	}
	m, ok := in(g.Type.Underlying(), off-g.Offset)
	if !ok {
		return "", ""
	}
	return g.Name, m.Name
}
