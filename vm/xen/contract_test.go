package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/arch/x86"
	"vmscope/internal/xenguest"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

const testDomain = 5

// nestedFake has an HVM domain: RAM from 0 with a hole, more of it behind 4 GiB, and in it a page of Xen's.
func nestedFake() *fake {
	f := newFake(0x15, 5000)
	d := &fakeDomain{flags: flagHVM, emulates: 0x1ff, vcpus: 2, frames: map[uint64]uint64{}, highest: 0x100000 + 699, paged: map[uint64]bool{}, contexts: map[uint32][]byte{}}
	next := uint64(1)
	add := func(from, to uint64) {
		for g := from; g < to; g++ {
			d.frames[g] = next
			next += 3
			next %= 4999
		}
	}
	add(0, 160)
	add(256, 1100)
	add(0x100000, 0x100000+700)
	f.own[d.frames[300]] = true
	d.pages = uint64(len(d.frames))
	d.max = d.pages
	for v := range d.vcpus {
		b := make([]byte, 1024)
		le.PutUint64(b[672:], 0x1000*uint64(v+1))
		d.contexts[v] = b
	}
	f.domains[testDomain] = d
	return f
}

func nestedRAM() []mem.Range {
	return []mem.Range{{Start: 0, Size: 160 << 12}, {Start: 256 << 12, Size: 844 << 12}, {Start: 4 << 30, Size: 700 << 12}}
}

// fill makes the bytes of a frame of a domain known.
func (f *fake) fill(domain uint16, frame uint64) []byte {
	mfn, _ := f.frame(domain, frame)
	b := f.machine[mfn*mem.PageSize : (mfn+1)*mem.PageSize]
	for i := range b {
		b[i] = byte(uint64(i)*7 + frame)
	}
	return bytes.Clone(b)
}

func TestNestedContract(t *testing.T) {
	f := nestedFake()
	want := vmtest.Want{Ranges: nestedRAM(), CPUs: 2, Bytes: map[mem.PA][]byte{}}
	for _, g := range []uint64{0, 255 + 1, 300, 0x100000 + 699} {
		want.Bytes[mem.PA(g<<12)] = f.fill(testDomain, g)
	}
	vmtest.Run(t, func(t *testing.T) vm.Machine {
		m, err := attachTo(t, f, testDomain, options{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}, want)
}

func TestNestedFrames(t *testing.T) {
	f := nestedFake()
	m, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d := f.domains[testDomain]
	d.paged[20], d.frames[700] = true, d.frames[21]
	delete(d.frames, 21)
	delete(d.frames, 23)
	d.grants = map[uint64]bool{23: true, 201: true}
	var b [4]byte
	for page, want := range map[uint64]error{
		20: ErrPagedOut, 21: ErrBallooned, 22: nil, 23: ErrGrant, 200: mem.ErrNoRAM, 201: ErrGrant, 0x100000 + 700: mem.ErrNoRAM,
	} {
		_, err := m.ReadPhys(b[:], mem.PA(page<<12))
		if !errors.Is(err, want) {
			t.Errorf("page %#x: %v, want %v", page, err, want)
		}
		for _, other := range []error{ErrPagedOut, ErrBallooned, ErrGrant} {
			if other != want && errors.Is(err, other) {
				t.Errorf("page %#x: %v, want %v", page, err, want)
			}
		}
	}
	// What is mapped is let go of, and mapped anew.
	if err := m.Release(); err != nil || f.maps != 0 {
		t.Errorf("%d mappings left, %v", f.maps, err)
	}
	batches := f.batches
	for page := range mem.PA(20) {
		if _, err := m.ReadPhys(b[:], page<<12); err != nil {
			t.Error(err)
		}
	}
	if f.batches != batches+1 {
		t.Errorf("%d mappings for neighbours", f.batches-batches)
	}
	d.paged, d.frames = nil, nil
	f.domains[testDomain] = nil
	delete(f.domains, testDomain)
	if err := m.Ended(); !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("a domain that is gone: %v", err)
	}
}

// Memory that was given back in small pieces is found by asking for each frame.
func TestNestedScattered(t *testing.T) {
	f := nestedFake()
	d := f.domains[testDomain]
	for g := range d.frames {
		if g >= 512 && (g%64 == 0 || g%2 == 0) {
			delete(d.frames, g)
		}
	}
	d.pages = uint64(len(d.frames))
	m, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if pages(m.Ranges()) != d.pages {
		t.Errorf("%d pages of %d found", pages(m.Ranges()), d.pages)
	}
	f.pod = 3
	if _, err := attachTo(t, f, testDomain, options{}); err == nil {
		t.Error("a guest with frames to be filled on first use was opened")
	}
}

// A guest may have a page of Xen's, or one of its own, put at any number. That is no reason to look for memory without end.
func TestNestedFar(t *testing.T) {
	f := nestedFake()
	d := f.domains[testDomain]
	d.highest = 1 << 40
	near, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	if !slices.Equal(near.Ranges(), nestedRAM()) || f.asked > 1<<16 {
		t.Errorf("RAM %#x, %d frames asked for", near.Ranges(), f.asked)
	}
	d.highest = 1<<23 + 100
	for g := range uint64(101) {
		d.frames[1<<23+g] = d.frames[512+g]
		delete(d.frames, 512+g)
	}
	far, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if list := far.Ranges(); pages(list) != d.pages || list[len(list)-1] != (mem.Range{Start: 1 << 35, Size: 101 << 12}) {
		t.Errorf("RAM %#x", list)
	}
}

// pages is how many there are in ranges.
func pages(l []mem.Range) (n uint64) {
	for _, r := range l {
		n += r.Size / mem.PageSize
	}
	return n
}

func TestNestedWrite(t *testing.T) {
	f := nestedFake()
	m, err := attachTo(t, f, testDomain, options{writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	w := &writableMachine{m}
	p := bytes.Repeat([]byte{0xab}, 5000)
	if n, err := w.WritePhys(p, 0x3ff8); n != len(p) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got := make([]byte, len(p))
	if _, err := m.ReadPhys(got, 0x3ff8); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read back: %v, equal %t", err, bytes.Equal(got, p))
	}
	n, err := w.WritePhys(make([]byte, 8), 160<<12-4)
	var fault *mem.FaultError
	if n != 4 || !errors.As(err, &fault) || fault.Op != "write" || fault.Addr != 160<<12 || !errors.Is(err, mem.ErrNoRAM) {
		t.Errorf("over the end: %d, %v", n, err)
	}
}

// The machine frames of the PV guest, and where its kernel maps what.
const (
	pvPages  = 600
	pvShared = 2500
	pvP2M    = mem.VA(0xffffc90000000000)
	pvText   = mem.VA(0xffffffff81000000)
)

func pvFrame(page uint64) uint64 { return 2000 - 3*page }

// pvFake has a PV domain with a p2m at an address, page tables that lead there, to a page, to a frame of another domain,
// and to one that the guest hides from its p2m.
func pvFake() *fake {
	f := newFake(0x15, 3000)
	for i := range f.m2p {
		f.m2p[i] = ^uint64(0)
	}
	d := &fakeDomain{vcpus: 1, pages: pvPages, max: pvPages, shared: pvShared, contexts: map[uint32][]byte{}}
	f.domains[testDomain] = d
	for page := range uint64(pvPages) {
		f.owner[pvFrame(page)], f.m2p[pvFrame(page)] = testDomain, page
	}
	f.own[pvShared] = true
	word := func(frame uint64, i int, v uint64) { le.PutUint64(f.machine[frame*mem.PageSize+uint64(i)*8:], v) }
	entry := func(frame uint64) uint64 { return frame<<12 | xenguest.Present | xenguest.User | 2 }
	for i, v := range map[int]uint64{sharedMaxPFN: pvPages, sharedP2MAddr: uint64(pvP2M), sharedP2MRoot: pvFrame(20) << 12} {
		word(pvShared, i/8, v)
	}
	for page := range uint64(pvPages) {
		word(pvFrame(10+page/512), int(page%512), pvFrame(page))
	}
	table := func(page uint64, kind uint32, entries map[int]uint64) {
		f.types[pvFrame(page)] = kind<<28 | 1<<31
		for i, e := range entries {
			word(pvFrame(page), i, e)
		}
	}
	slot := func(va mem.VA, level uint) int { return int(va >> (3 + 9*level) & 511) }
	table(20, 4, map[int]uint64{slot(pvP2M, 4): entry(pvFrame(21)), slot(pvText, 4): entry(pvFrame(24)), xenguest.FirstXenSlot: entry(2999)})
	table(21, 3, map[int]uint64{slot(pvP2M, 3): entry(pvFrame(22))})
	table(22, 2, map[int]uint64{slot(pvP2M, 2): entry(pvFrame(23))})
	table(23, 1, map[int]uint64{0: entry(pvFrame(10)), 1: entry(pvFrame(11))})
	table(24, 3, map[int]uint64{slot(pvText, 3): entry(pvFrame(25))})
	table(25, 2, map[int]uint64{slot(pvText, 2): entry(pvFrame(26))})
	table(26, 1, map[int]uint64{
		0: entry(pvFrame(100)) | xenguest.GuestKernel, 1: entry(2998), 2: entry(pvFrame(101)), 3: entry(pvShared), 4: pvFrame(102) << 12,
	})
	context := make([]byte, xenguest.ContextSize)
	le.PutUint64(context[4984+24:], pvFrame(20)<<12)
	d.contexts[0] = context
	return f
}

func (f *fake) setP2M(page, e uint64) {
	le.PutUint64(f.machine[pvFrame(10+page/512)*mem.PageSize+page%512*8:], e)
}

func TestPVContract(t *testing.T) {
	f := pvFake()
	want := vmtest.Want{Ranges: []mem.Range{{Start: 0, Size: pvPages << 12}}, CPUs: 1, Bytes: map[mem.PA][]byte{}}
	for _, page := range []uint64{0, 255, 256, pvPages - 1} {
		want.Bytes[mem.PA(page<<12)] = f.fill(testDomain, pvFrame(page))
	}
	vmtest.Run(t, func(t *testing.T) vm.Machine {
		m, err := attachTo(t, f, testDomain, options{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}, want)
}

// A walk of the guest's tables, as a processor of the guest would have it, ends in the guest's own numbers.
func TestPVTables(t *testing.T) {
	f := pvFake()
	f.fill(testDomain, pvFrame(100))
	f.setP2M(101, noFrame) // hidden
	m, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cpus, err := m.CPUs(context.Background())
	if err != nil || len(cpus) != 1 || cpus[0].CR3 != 20<<12 {
		t.Fatalf("%+v, %v", cpus, err)
	}
	p := x86.NewPaging(m, mem.PA(cpus[0].CR3), x86.ModeOf(cpus[0].CR0, cpus[0].CR4, cpus[0].EFER))
	at, err := p.Translate(pvText + 0x123)
	if err != nil || at.PA != 100<<12|0x123 || at.Perm&mem.User != 0 {
		t.Errorf("the kernel's page: %+v, %v", at, err)
	}
	s := mem.NewSpace("kernel", m, p)
	if v, err := s.Uint(pvText+8, 1); err != nil || v != uint64(byte(8*7+pvFrame(100)&0xff)) {
		t.Errorf("a byte of it: %#x, %v", v, err)
	}
	if _, err := s.Uint64(pvText + 0x1000); !errors.Is(err, ErrForeign) {
		t.Errorf("another's frame: %v", err)
	}
	if _, err := s.Uint64(pvText + 0x2000); err != nil {
		t.Errorf("a frame that the guest hides from its p2m: %v", err)
	}
	if v, err := s.Uint64(pvText + 0x3000 + sharedMaxPFN); err != nil || v != pvPages {
		t.Errorf("the shared page: %d, %v", v, err)
	}
	if _, err := s.Uint64(pvText + 0x4000); !errors.Is(err, mem.ErrNotMapped) {
		t.Errorf("an absent entry: %v", err)
	}
	if _, err := p.Translate(0xffff800000000000); !errors.Is(err, mem.ErrNotMapped) {
		t.Errorf("what is Xen's: %v", err)
	}
	// Any part of an entry is of the turned one.
	whole, part := make([]byte, 24), make([]byte, 3)
	m.ReadPhys(whole, 26<<12)
	if _, err := m.ReadPhys(part, 26<<12+9); err != nil || !bytes.Equal(part, whole[9:12]) {
		t.Errorf("part of an entry: %x, %v; whole %x", part, err, whole)
	}
}

func TestPVFrames(t *testing.T) {
	f := pvFake()
	m, err := attachTo(t, f, testDomain, options{writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f.setP2M(200, noFrame)
	f.setP2M(201, grantedFrame|77)
	f.setP2M(202, identityFrame|202)
	f.setP2M(203, pvFrame(204))
	f.setP2M(205, 1<<40)
	f.setP2M(206, 2997)
	f.owner[2997], f.m2p[2997] = testDomain+1, 206     // another domain's page of this number
	if err := m.Release(); err != nil || f.maps != 1 { // Xen's own table stays
		t.Errorf("%d mappings, %v", f.maps, err)
	}
	var b [8]byte
	for page, want := range map[uint64]error{200: ErrBallooned, 201: ErrGrant, 202: mem.ErrNoRAM, 203: ErrFrames, 204: nil, 205: ErrFrames, 206: ErrFrames, pvPages: mem.ErrNoRAM} {
		if _, err := m.ReadPhys(b[:], mem.PA(page<<12)); !errors.Is(err, want) {
			t.Errorf("page %d: %v, want %v", page, err, want)
		}
	}
	want := []vm.Disputed{
		{Page: 203 << 12, Frame: pvFrame(204), Is: 204 << 12, Owned: true}, {Page: 205 << 12, Frame: 1 << 40}, {Page: 206 << 12, Frame: 2997},
	}
	if list, all, err := m.Disputed(9); err != nil || all != 3 || !slices.Equal(list, want) {
		t.Errorf("disputed: %+v of %d, %v, want %+v", list, all, err, want)
	}
	if list, all, err := m.Disputed(1); err != nil || all != 3 || !slices.Equal(list, want[:1]) {
		t.Errorf("disputed: %+v of %d, %v, want one", list, all, err)
	}
	_, err = m.ReadPhys(b[:], 203<<12)
	var d *FrameError
	if !errors.As(err, &d) || vm.Disputed(*d) != want[0] || !strings.Contains(err.Error(), fmt.Sprintf("%#x", pvFrame(204))) || !strings.Contains(err.Error(), "0xcc000") {
		t.Errorf("page 203: %v", err)
	}
	w := &writableMachine{m}
	if _, err := w.WritePhys(b[:], 26<<12); !errors.Is(err, ErrPageTable) {
		t.Errorf("write of a page table: %v", err)
	}
	if n, err := w.WritePhys([]byte("written!"), 30<<12); n != 8 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	m.Release() // the windows of the fake do not change by themselves
	if _, err := m.ReadPhys(b[:], 30<<12); err != nil || string(b[:]) != "written!" {
		t.Errorf("read back %q, %v", b, err)
	}
}

// What a guest tells of its frames cannot make us take memory or time at its will.
func TestPVHostile(t *testing.T) {
	for name, bend := range map[string]func(f *fake){
		"no frames":     func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedMaxPFN:], 0) },
		"many frames":   func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedMaxPFN:], 1<<40) },
		"odd address":   func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MAddr:], uint64(pvP2M)+1) },
		"last address":  func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MAddr:], ^uint64(0xfff)) },
		"foreign table": func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MRoot:], 2998<<12) },
		"no table":      func(f *fake) { le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MRoot:], 1<<60) },
		"no page of its own": func(f *fake) {
			for page := range uint64(pvPages) {
				f.setP2M(page, 2998)
			}
		},
		"no tree": func(f *fake) {
			le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MAddr:], 0)
			le.PutUint64(f.machine[pvShared*mem.PageSize+sharedFrames:], ^uint64(0))
		},
	} {
		f := pvFake()
		bend(f)
		if _, err := attachTo(t, f, testDomain, options{}); err == nil {
			t.Errorf("%s: opened", name)
		} else if errors.Is(err, unix.EFAULT) {
			t.Errorf("%s: %v", name, err)
		}
		if f.maps != 0 {
			t.Errorf("%s: %d mappings are left", name, f.maps)
		}
	}
}

// Kernels before 3.19 have their p2m in a tree of frames.
func TestPVTree(t *testing.T) {
	f := pvFake()
	le.PutUint64(f.machine[pvShared*mem.PageSize+sharedP2MAddr:], 0)
	le.PutUint64(f.machine[pvShared*mem.PageSize+sharedFrames:], pvFrame(50))
	le.PutUint64(f.machine[pvFrame(50)*mem.PageSize:], pvFrame(51))
	le.PutUint64(f.machine[pvFrame(51)*mem.PageSize:], pvFrame(10))
	le.PutUint64(f.machine[pvFrame(51)*mem.PageSize+8:], pvFrame(11))
	m, err := attachTo(t, f, testDomain, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if pages(m.Ranges()) != pvPages {
		t.Errorf("%#x", m.Ranges())
	}
}
