package linux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmscope/ctype"
	"vmscope/kernel/linux/profile"
	"vmscope/ksym"
	"vmscope/mem"
)

const (
	thisID  = "00112233445566778899aabbccddeeff00112233"
	otherID = "ffeeddccbbaa99887766554433221100ffeeddcc"
	banner  = "Linux version 6.1.0-1-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.1-1"
)

// coreInfo is a VMCOREINFO that states some layouts.
func coreInfo(t *testing.T, more ...string) *ksym.CoreInfo {
	t.Helper()
	text := "OSRELEASE=6.1.0-1-amd64\nBUILD-ID=" + thisID + "\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff81000000\n" + strings.Join(more, "\n") + "\n"
	c, err := ksym.ParseVMCoreInfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// suppliedWorld is a kernel without types whose symbols are known by a list
// alone.
func suppliedWorld(t *testing.T) (*world, *profile.Profile) {
	w := newWorld(t)
	types := w.v.Types
	task := lookupType(t, types, "task_struct")
	comm, err := task.Offset("comm")
	if err != nil {
		t.Fatal(err)
	}
	idle := w.alloc(task.Size())
	w.bytes(idle+mem.VA(comm), "swapper/0\x00")
	syms := []ksym.Symbol{{Name: "init_task", Addr: idle, Type: 'D'}, {Name: "__per_cpu_start", Addr: 0, Absolute: true, Type: 'A'}}
	for typ := range types.All() {
		if typ.Kind() != ctype.DataSec {
			continue
		}
		for v, off := range typ.Vars() {
			syms = append(syms, ksym.Symbol{Name: v.Name(), Addr: mem.VA(off), Absolute: true, Type: 'A'})
		}
	}
	k := w.v.Kernel
	k.more = &linked{list: ksym.NewList(syms)}
	k.Banner, k.Release, k.info = banner, "6.1.0-1-amd64", coreInfo(t, "SIZE(list_head)=16", "OFFSET(list_head.next)=0", "SIZE(nonsense)=3", "OFFSET(page.nonsense)=5")
	return w, &profile.Profile{Name: "file", Format: "BTF", Types: types}
}

func lookupType(t *testing.T, types *ctype.Types, name string) ctype.Type {
	t.Helper()
	typ, err := types.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func TestFits(t *testing.T) {
	w, p := suppliedWorld(t)
	why, sure, err := w.v.fits(p)
	if err != nil || sure != "proved" || !strings.Contains(why, "per-CPU variables") || !strings.Contains(why, "2 places as VMCOREINFO states") {
		t.Errorf("%q, %q, %v", why, sure, err)
	}
	p.BuildID, p.Banner = thisID, "another banner of the same build"
	if why, _, err := w.v.fits(p); err != nil || !strings.HasPrefix(why, "same build id") {
		t.Errorf("%q, %v", why, err)
	}
	p.BuildID, p.Banner = "", banner
	if why, _, err := w.v.fits(p); err != nil || !strings.HasPrefix(why, "same banner") {
		t.Errorf("%q, %v", why, err)
	}
	// Nothing but what VMCOREINFO states.
	p.Banner = ""
	w.v.more.list = ksym.NewList([]ksym.Symbol{{Name: "init_task", Addr: w.v.more.lookupAll("init_task")[0].Addr}})
	if why, sure, err := w.v.fits(p); err != nil || sure != "stated" {
		t.Errorf("%q, %q, %v", why, sure, err)
	}
}

// TestFitsNot changes one thing that both tell.
func TestFitsNot(t *testing.T) {
	for name, x := range map[string]struct {
		change func(w *world, p *profile.Profile)
		say    []string
	}{
		"build id": {func(w *world, p *profile.Profile) { p.BuildID = otherID }, []string{thisID, otherID, "6.1.0-1-amd64-dbg"}},
		"banner":   {func(w *world, p *profile.Profile) { p.Banner = "Linux version 6.1.0-2-amd64" }, []string{"6.1.0-2-amd64", banner}},
		"layout":   {func(w *world, p *profile.Profile) { w.v.info = coreInfo(t, "SIZE(list_head)=24") }, []string{"SIZE(list_head) is 16 in it, and 24"}},
		"member":   {func(w *world, p *profile.Profile) { w.v.info = coreInfo(t, "OFFSET(list_head.prev)=24") }, []string{"OFFSET(list_head.prev) is 8 in it, and 24"}},
		"per-CPU": {func(w *world, p *profile.Profile) {
			var syms []ksym.Symbol
			for s := range w.v.more.list.All() {
				if s.Name == "runqueues" {
					s.Addr += 64
				}
				syms = append(syms, s)
			}
			w.v.more.list = ksym.NewList(syms)
		}, []string{"per-CPU variable runqueues"}},
		"idle task": {func(w *world, p *profile.Profile) { clear(w.b) }, []string{"idle task's name"}},
		"symbols": {func(w *world, p *profile.Profile) {
			p.Symbols = ksym.NewList([]ksym.Symbol{{Name: "main", Addr: 0x400000}})
		}, []string{"_stext"}},
	} {
		w, p := suppliedWorld(t)
		x.change(w, p)
		_, _, err := w.v.fits(p)
		if !errors.Is(err, ErrOtherKernel) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range append(x.say, "exactly the guest's kernel 6.1.0-1-amd64") {
			if !strings.Contains(fmt.Sprint(err), s) {
				t.Errorf("%s: %q is not in %v", name, s, err)
			}
		}
	}
}
