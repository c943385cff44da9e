package detect

import (
	"encoding/binary"
	"fmt"
	"slices"

	"vmscope/arch/x86"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// entry is where in the kernel's map of RAM the page-table entry lies that maps
// an address of a process, with the entry itself.
func (v *victim) entry(t linux.Task, va mem.VA) (at mem.VA, e uint64) {
	v.Helper()
	space, err := v.tx.SpaceOf(t)
	if err != nil {
		v.Fatal(err)
	}
	direct := v.pointer(v.symbol("page_offset_base"))
	tables := space.Tr.(*x86.Paging)
	table := tables.Root()
	for level := tables.Mode().Levels(); ; level-- {
		at = direct + mem.VA(table) + va>>(3+9*level)&511*8
		if e = uint64(v.pointer(at)); e&1 == 0 || level > 1 && e&0x80 != 0 {
			v.Fatalf("process %d: entry %#x at level %d for %#x", t.PID, e, level, uint64(va))
		}
		if level == 1 {
			return at, e
		}
		table = mem.PA(e & 0x000ffffffffff000)
	}
}

// replace gives a process another page of code at an address: a copy of its own
// with a change, as whoever writes into its memory makes it.
func (v *victim) replace(t linux.Task, va mem.VA, change string) {
	v.Helper()
	at, e := v.entry(t, va)
	page := make([]byte, mem.PageSize)
	if _, err := v.tx.Phys.ReadPhys(page, mem.PA(e&0x000ffffffffff000)); err != nil {
		v.Fatal(err)
	}
	copy(page[va%mem.PageSize:], change)
	spare := v.spare(mem.PageSize)
	v.write(spare, page)
	m, err := v.tx.Mem.Translate(spare)
	if err != nil {
		v.Fatal(err)
	}
	v.write(at, binary.LittleEndian.AppendUint64(nil, e&^0x000ffffffffff000|uint64(m.PA)))
}

// code is an area of a process's code.
func (v *victim) code(t linux.Task, is func(linux.CodeArea) bool) linux.CodeArea {
	v.Helper()
	areas, err := v.tx.CodeAreas(t)
	if err != nil {
		v.Fatal(err)
	}
	i := slices.IndexFunc(areas, is)
	if i < 0 {
		v.Fatalf("process %d has no such area", t.PID)
	}
	return areas[i]
}

// injectionTamperings put code into processes that runs already.
var injectionTamperings = []tampering{
	{"code of a process", "injection", func(v *victim) []string {
		t := v.sleeper()
		a := v.code(t, func(a linux.CodeArea) bool { return a.Inode != 0 })
		v.replace(t, a.Start+0xb2, "\xcc\xcc\xcc") // see internal/guestlab/rat: its code begins at 0xb0
		return []string{"medium", "(sleeper) is not what the file has", fmt.Sprintf("%#x", uint64(a.Start+0xb2)), "/sleeper+0xb2", "cccccc"}
	}},
	{"vdso of a process", "injection", func(v *victim) []string {
		tasks, err := v.tx.Tasks()
		if err != nil {
			v.Fatal(err)
		}
		i := slices.IndexFunc(tasks, func(t linux.Task) bool { return t.Comm() == "holder" }) // uses it to tell the time
		if i < 0 {
			v.Fatal("no holder")
		}
		a := v.code(tasks[i], func(a linux.CodeArea) bool { return a.Path == "[vdso]" })
		v.replace(tasks[i], a.Start+0x10, "evil")
		return []string{"medium", "the vdso of process", "(holder) is not the kernel's", fmt.Sprintf("%x", "evil")}
	}},
}
