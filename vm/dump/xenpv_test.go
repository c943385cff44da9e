package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"vmscope/arch/x86"
	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// The pages of the domain of pvCore that are, or were, top tables. A vCPU runs on
// the first and the second.
const (
	pvKernelTop = 1
	pvUserTop   = 2
	pvOtherTop  = 30 // of a process that does not run; its lower tables are before it
	pvWasTop    = 10 // before it was used for data
	pvLikeTop   = 14 // of another domain's Xen, says what is in it
	pvPages     = 40

	pvText = mem.VA(0xffffffff81000000)
	pvUser = mem.VA(0x8000000000)
	// pvForeign is a frame of the machine that is not the domain's.
	pvForeign = 0x900000
)

// pvCore is the core of a PV domain with page tables as Xen has them.
func pvCore() (core []byte, pages []byte) {
	pages = pattern(1, pvPages<<12)
	le := binary.LittleEndian
	entry := func(page, flags uint64) uint64 { return machineFrame(page)<<12 | flags | xenguest.Present }
	table := func(page uint64, entries map[int]uint64) {
		b := pages[page<<12 : (page+1)<<12]
		clear(b)
		for i, e := range entries {
			le.PutUint64(b[8*i:], e)
		}
	}
	const upper = xenguest.Writable | xenguest.User
	top := func(page, accessed uint64, entries map[int]uint64) {
		all := map[int]uint64{
			256: pvForeign<<12 | 1<<63 | 5, 258: entry(page, 1<<63|accessed|2),
			260: (pvForeign+1)<<12 | 0x43 | accessed, 261: (pvForeign+2)<<12 | 0x43 | accessed, 262: (pvForeign+3)<<12 | 0x43,
		}
		for i, e := range entries {
			all[i] = e
		}
		table(page, all)
	}
	top(pvKernelTop, 0x20, map[int]uint64{511: entry(3, upper)})
	table(3, map[int]uint64{510: entry(4, upper)})
	table(4, map[int]uint64{8: entry(5, upper)})
	table(5, map[int]uint64{
		0: entry(20, xenguest.User|xenguest.GuestKernel), 1: entry(21, upper), 2: pvForeign<<12 | upper | 1, 3: entry(pvWasTop, upper),
		4: machineFrame(22) << 12, // absent
	})
	top(pvUserTop, 0, map[int]uint64{1: entry(6, upper)})
	table(6, map[int]uint64{0: entry(7, upper)})
	table(7, map[int]uint64{0: entry(8, upper)})
	table(8, map[int]uint64{0: entry(22, upper)})
	top(pvOtherTop, 0, map[int]uint64{1: entry(11, upper), 511: entry(3, upper)})
	table(11, map[int]uint64{0: entry(12, upper)})
	table(12, map[int]uint64{0: entry(13, upper)})
	table(13, map[int]uint64{0: entry(23, upper)})
	top(pvWasTop, 0, map[int]uint64{1: entry(11, upper)})
	top(pvLikeTop, 0, map[int]uint64{260: (pvForeign+9)<<12 | 0x43, 1: entry(11, upper)})
	// In no order, and one page that was given back.
	var frames []uint64
	var body []byte
	for i := range uint64(pvPages + 1) {
		n := i + 20
		switch {
		case n == pvPages:
			frames, body = append(frames, xenNoFrame), append(body, make([]byte, 4096)...)
			continue
		case n > pvPages:
			n -= pvPages + 1
		}
		frames, body = append(frames, n), append(body, pages[n<<12:(n+1)<<12]...)
	}
	return makeXenCore(xenMagicPV, frames, body), pages
}

func TestXenPVContract(t *testing.T) {
	core, pages := pvCore()
	path := file(t, core)
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: pvPages << 12}}, CPUs: 2,
		Bytes: map[mem.PA][]byte{0: pages[:4096], 20 << 12: pages[20<<12 : 30<<12], pvWasTop << 12: pages[pvWasTop<<12 : 11<<12], pvLikeTop << 12: pages[pvLikeTop<<12 : 20<<12]},
	})
	m := open(t, path)
	defer m.Close()
	if r, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || !slices.Equal(r, xenCPUs(false)) {
		t.Errorf("%v\n got %+v\nwant %+v", err, r, xenCPUs(false))
	}
	if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, "(PV)") || strings.Contains(l, ";") {
		t.Errorf("layout %q", l)
	}
}

// Walks of the domain's tables, as a processor of its own would have them, end in its
// own numbers.
func TestXenPVTables(t *testing.T) {
	core, pages := pvCore()
	m := open(t, file(t, core))
	defer m.Close()
	cpus, err := m.(vm.CPUs).CPUs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := func(root mem.PA) *x86.Paging {
		return x86.NewPaging(m, root, x86.ModeOf(cpus[0].CR0, cpus[0].CR4|1<<5, cpus[0].EFER))
	}
	for _, c := range []struct {
		root mem.PA
		va   mem.VA
		page mem.PA // 0: not mapped
		perm mem.Perm
	}{
		{pvKernelTop, pvText, 20, mem.Exec},
		{pvKernelTop, pvText + 0x1000, 21, mem.Exec | mem.Write | mem.User},
		{pvKernelTop, pvText + 0x4000, 0, 0},
		{pvKernelTop, pvUser, 0, 0},
		{pvKernelTop, 0xffff800000000000, 0, 0}, // Xen's
		{pvUserTop, pvUser, 22, mem.Exec | mem.Write | mem.User},
		{pvOtherTop, pvUser, 23, mem.Exec | mem.Write | mem.User},
		{pvOtherTop, pvText, 20, mem.Exec},
	} {
		at, err := in(c.root << 12).Translate(c.va + 8)
		if c.page == 0 && !errors.Is(err, mem.ErrNotMapped) || c.page != 0 && (err != nil || at.PA != c.page<<12+8 || at.Perm != c.perm) {
			t.Errorf("%#x by the table in page %d: %+v, %v", uint64(c.va), c.root, at, err)
		}
	}
	s := mem.NewSpace("kernel", m, in(pvKernelTop<<12))
	if v, err := s.Uint64(pvText + 0x18); err != nil || v != binary.LittleEndian.Uint64(pages[20<<12+0x18:]) {
		t.Errorf("%#x, %v", v, err)
	}
	if _, err := s.Uint64(pvText + 0x2000); !errors.Is(err, xenguest.ErrForeign) || !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("a frame that is not the domain's: %v", err)
	}
	// Any part of an entry is of the turned one.
	whole, part := make([]byte, 24), make([]byte, 3)
	_, err1 := m.ReadPhys(whole, 5<<12)
	if _, err := m.ReadPhys(part, 5<<12+9); err != nil || err1 != nil || !bytes.Equal(part, whole[9:12]) {
		t.Errorf("part of an entry: %x, %v; whole %x", part, err, whole)
	}
}

// What is read in bulk, before any table was met, is what is read page by page.
func TestXenPVBulk(t *testing.T) {
	core, pages := pvCore()
	path := file(t, core)
	m, walked := open(t, path), open(t, path)
	defer m.Close()
	defer walked.Close()
	all, page := make([]byte, pvPages<<12), make([]byte, 4096)
	if n, err := m.ReadPhys(all, 0); n != len(all) || err != nil {
		t.Fatal(n, err)
	}
	turned := 0
	for n := mem.PA(pvPages); n > 0; n-- { // the top table of a process comes before its others
		if _, err := walked.ReadPhys(page, (n-1)<<12); err != nil {
			t.Fatal(err)
		}
		at := all[(n-1)<<12 : n<<12]
		if !bytes.Equal(at, page) {
			t.Errorf("page %d is another", n-1)
		}
		if !bytes.Equal(at, pages[(n-1)<<12:n<<12]) {
			turned++
		}
	}
	if turned != 12 {
		t.Errorf("%d tables, not 12", turned)
	}
}

// A frame that two pages claim stays the first's; a dump without registers has its
// tables, too.
func TestXenPVDoubtful(t *testing.T) {
	core, _ := pvCore()
	le := binary.LittleEndian
	pair := func(page uint64) []byte { return le.AppendUint64(le.AppendUint64(nil, page), machineFrame(page)) }
	twice := bytes.Clone(core)
	at := bytes.LastIndex(twice, pair(36))
	copy(twice[at+8:], pair(35)[8:])
	m := open(t, file(t, twice))
	defer m.Close()
	if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, "1 pages have a frame that another has") {
		t.Errorf("layout %q", l)
	}
	same(t, m, 36<<12+8, core[bytes.Index(core, pattern(1, pvPages<<12)[36<<12:36<<12+64])+8:][:16])

	mute := bytes.ReplaceAll(core, []byte(".xen_prstatus"), []byte(".xen_xrstatus"))
	m = open(t, file(t, mute))
	defer m.Close()
	if _, err := m.(vm.CPUs).CPUs(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("registers: %v", err)
	}
	if at, err := x86.NewPaging(m, pvUserTop<<12, x86.Level4).Translate(pvUser); err != nil || at.PA != 22<<12 {
		t.Errorf("%+v, %v", at, err)
	}
}

func FuzzXenCore(f *testing.F) {
	frames, pages, _ := xenDomain()
	f.Add(makeXenCore(xenMagicHVM, frames[:2], pages[:2<<12]))
	core, _ := pvCore()
	f.Add(core)
	f.Fuzz(fuzzOpen)
}
