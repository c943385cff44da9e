package ksym

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
)

// coreInfoText is a VMCOREINFO text as a kernel begins it.
func coreInfoText(release, more string) string {
	return "OSRELEASE=" + release + "\nBUILD-ID=0123456789abcdef\nPAGESIZE=4096\n" +
		"SYMBOL(init_uts_ns)=ffffffff9b0141c0\nOFFSET(uts_namespace.name)=0\n" + more
}

func TestParseVMCoreInfo(t *testing.T) {
	c, err := ParseVMCoreInfo([]byte(coreInfoText("6.1.0-50-cloud-amd64", "SYMBOL(_stext)=ffffffff9a000000\n"+
		"OFFSET(list_head.next)=8\nSIZE(page)=64\nLENGTH(zone.free_area)=11\nNUMBER(phys_base)=-1052770304\n"+
		"NUMBER(kimage_voffset)=0xffff800007e00000\nNUMBER(VA_BITS)=48\nKERNELOFFSET=19000000\nCONFIG_X86_PAE=y\n"+
		"garbage\n=\n=x\nSYMBOL(bad)=xyzzy\nNUMBER(bad)=1e3\nSIZE(page)=64\nSIZE(list_head)=16\nSIZE(list_head)=8\nlast=1") + "\x00SYMBOL(behind)=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.OSRelease() != "6.1.0-50-cloud-amd64" || c.BuildID() != "0123456789abcdef" {
		t.Errorf("release %q, build id %q", c.OSRelease(), c.BuildID())
	}
	if v, ok := c.Symbol("_stext"); v != 0xffffffff9a000000 || !ok {
		t.Errorf("_stext %#x %v", uint64(v), ok)
	}
	if v, ok := c.KernelOffset(); v != 0x19000000 || !ok {
		t.Errorf("KERNELOFFSET %#x %v", v, ok)
	}
	for _, bad := range []string{"bad", "behind", "none", ""} {
		if v, ok := c.Symbol(bad); ok {
			t.Errorf("symbol %q: %#x", bad, uint64(v))
		}
		if v, ok := c.Number(bad); ok {
			t.Errorf("number %q: %#x", bad, v)
		}
	}
	num := func(v int64, ok bool) any {
		if !ok {
			return "none"
		}
		return v
	}
	for _, tt := range []struct{ got, want any }{
		{num(c.Offset("list_head.next")), int64(8)},
		{num(c.Offset("list_head.prev")), "none"},
		{num(c.Size("page")), int64(64)},
		{num(c.Size("list_head")), int64(16)}, // the first of two
		{num(c.Length("zone.free_area")), int64(11)},
		{num(c.Number("phys_base")), int64(-1052770304)},
		{num(c.Number("kimage_voffset")), int64(-0x7ffff8200000)},
		{num(c.PageSize()), int64(4096)},
	} {
		if tt.got != tt.want {
			t.Errorf("got %v, want %v", tt.got, tt.want)
		}
	}
	if v, ok := c.Config("X86_PAE"); v != "y" || !ok {
		t.Errorf("CONFIG_X86_PAE %q %v", v, ok)
	}
	if v, ok := c.Value("last"); v != "1" || !ok {
		t.Errorf("last line %q %v", v, ok)
	}
	if !slices.Equal(c.Conflicts, []string{"SIZE(list_head)"}) {
		t.Errorf("conflicts %q", c.Conflicts)
	}
	if _, ok := c.Kallsyms(); ok {
		t.Error("kallsyms without its symbols")
	}
}

func TestKallsymsPlaces(t *testing.T) {
	e := layoutSpec(1, 2560, 0).encode()
	text := func(relative bool) string {
		s := fmt.Sprintf("SYMBOL(kallsyms_names)=%x\nSYMBOL(kallsyms_num_syms)=%x\nSYMBOL(kallsyms_token_table)=%x\n"+
			"SYMBOL(kallsyms_token_index)=%x\nSYMBOL(kallsyms_offsets)=%x\n",
			uint64(e.p.Names), uint64(e.p.NumSyms), uint64(e.p.TokenTable), uint64(e.p.TokenIndex), uint64(e.p.Offsets))
		if relative {
			s += fmt.Sprintf("SYMBOL(kallsyms_relative_base)=%x\n", uint64(e.p.RelativeBase))
		}
		return coreInfoText("6.1", s)
	}
	c, err := ParseVMCoreInfo([]byte(text(true)))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := c.Kallsyms()
	if !ok || p != e.p {
		t.Fatalf("%+v %v, want %+v", p, ok, e.p)
	}
	tab, err := At(e.read, p)
	if err != nil {
		t.Fatal(err)
	}
	check(t, tab, e.syms)

	c, err = ParseVMCoreInfo([]byte(text(false)))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := c.Kallsyms(); !ok || p.RelativeBase != 0 {
		t.Errorf("%+v %v", p, ok)
	}
}

func TestParseVMCoreInfoRejects(t *testing.T) {
	for _, s := range []string{"", "OSRELEASE", "OSRELEASE=", "OSRELEASE=6.1\n", "OSRELEASE=6.1\nSYMBOL(_stext)=1",
		" " + coreInfoText("6.1", ""), "OSRELEASE=6.1\na=1\nb=2\nc=3\n", "OSRELEASE=6.1\x01" + coreInfoText("6.1", "")} {
		if c, err := ParseVMCoreInfo([]byte(s)); !errors.Is(err, mem.ErrInconsistent) || c != nil {
			t.Errorf("%q: %v, %v", s, c, err)
		}
	}
	// One line of a page and more is cut, not refused.
	c, err := ParseVMCoreInfo([]byte(coreInfoText("6.1", strings.Repeat("x", 10000))))
	if err != nil || len(c.Text()) != coreInfoMax {
		t.Errorf("long: %v", err)
	}
}

func note(text string) string {
	return "\x0b\x00\x00\x00" + string([]byte{byte(len(text)), byte(len(text) >> 8), 0, 0}) + "\x00\x00\x00\x00VMCOREINFO\x00\x00" + text
}

func TestFindVMCoreInfo(t *testing.T) {
	a, b := coreInfoText("6.1.0-1", "SYMBOL(_stext)=1\n"), coreInfoText("6.1.0-2", strings.Repeat("NUMBER(x)=1\n", 330))
	data := make([]byte, 4<<20)
	put := func(at int, s string) { copy(data[at:], s) }
	put(0x1000, a)
	put(0x5000, note(b)) // crosses its page
	put(0x8000, note(a))
	put(0xa000, b)
	put(0xc000, "OSRELEASE=stray\n")
	put(0xd008, a) // not at the start of a page
	put(0xe000, note("x")+"OSRELEASE=")
	put(0xf000, "\x0b\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00VMCOREINFO\x00\x00"+a)
	put(4<<20-0x1000, a)
	ram, err := mem.NewRAM(mem.Segment{PA: 1 << 30, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []mem.PhysReader{ram, chunked{ram}} {
		found, err := FindVMCoreInfo(t.Context(), r, ram.Ranges())
		if err != nil || len(found) != 2 {
			t.Fatalf("%d found, %v, want 2", len(found), err)
		}
		want := [][]mem.PA{{0x40001000, 0x40008018, 0x403ff000}, {0x40005018, 0x4000a000}}
		for i, c := range found {
			if c.Text() != []string{a, b}[i] || !slices.Equal(c.Places, want[i]) {
				t.Errorf("%d: %s at %#x, want %#x", i, c.OSRelease(), c.Places, want[i])
			}
		}
	}
	// Extents that begin and end within pages.
	found, err := FindVMCoreInfo(t.Context(), ram, []mem.Range{{Start: 1<<30 + 0x1001, Size: 0x7000}, {Start: 1<<30 + 0x9fff, Size: 2}, {Start: ^mem.PA(0) - 4095, Size: 8192}})
	if err != nil || len(found) != 1 || found[0].OSRelease() != "6.1.0-2" || len(found[0].Places) != 1 {
		t.Errorf("extents: %v, %v", found, err)
	}
}

// A guest that fills its memory with texts gets a bounded search, which says so.
func TestFindVMCoreInfoHostile(t *testing.T) {
	for name, f := range map[string]func(i int) string{
		"texts":  func(i int) string { return coreInfoText(fmt.Sprint(i), "") },
		"starts": func(i int) string { return "OSRELEASE=\n" },
		"copies": func(i int) string { return coreInfoText("6.1", "") },
	} {
		data := make([]byte, 4<<20)
		for i := 0; i < len(data); i += mem.PageSize {
			copy(data[i:], f(i))
		}
		ram, err := mem.NewRAM(mem.Segment{PA: 0, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		found, err := FindVMCoreInfo(t.Context(), ram, ram.Ranges())
		if name == "texts" != errors.Is(err, mem.ErrInconsistent) || len(found) > maxCoreInfos {
			t.Errorf("%s: %d found, %v", name, len(found), err)
		}
		for _, c := range found {
			if len(c.Places) > maxCopies {
				t.Errorf("%s: %d places", name, len(c.Places))
			}
		}
	}
}
