// Package vmtest is the contract that every vm.Machine fulfils, as a test. A
// new source passes it in a few lines:
//
//	func TestContract(t *testing.T) {
//		vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t) }, vmtest.Want{
//			Bytes: map[mem.PA][]byte{0x1000: []byte("known")},
//		})
//	}
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
)

// Want is what the test knows of the machine that open gives.
type Want struct {
	// Ranges are the RAM; nil: not known.
	Ranges []mem.Range
	// Bytes are what lies at some addresses and does not change.
	Bytes map[mem.PA][]byte
	// CPUs is the number of register sets; 0: the machine has none to give.
	CPUs int
	// Remote says that it may run on another host, where it is not known by a PID.
	Remote bool
}

// Run checks the machine that open gives against the contract of vm.Machine and
// of the capabilities that it has. The parts of RAM in Want.Bytes must not
// change meanwhile; the rest may.
func Run(t *testing.T, open func(t *testing.T) vm.Machine, want Want) {
	m := open(t)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	ranges := ranges(t, m, want)
	t.Run("bytes", func(t *testing.T) { testBytes(t, m, want) })
	t.Run("short reads", func(t *testing.T) { testShort(t, m, ranges) })
	t.Run("vectors", func(t *testing.T) { testVec(t, m, ranges, want) })
	t.Run("across ranges", func(t *testing.T) { testAcross(t, m, ranges) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, m, want) })
	t.Run("extents", func(t *testing.T) { testExtents(t, m, ranges) })
	t.Run("loader", func(t *testing.T) { testLoader(t, m, want) })
	t.Run("info", func(t *testing.T) { testInfo(t, m, want) })
	t.Run("layouts", func(t *testing.T) { testLayouts(t, m) })
	t.Run("cpus", func(t *testing.T) { testCPUs(t, m, want) })
	t.Run("writes", func(t *testing.T) { testWrites(t, m, ranges, want) })
	t.Run("ended", func(t *testing.T) { testEnded(t, m) })
}

// ranges checks that the ranges are sorted and apart.
func ranges(t *testing.T, m vm.Machine, want Want) []mem.Range {
	g, ok := m.(mem.Ranger)
	if !ok {
		t.Fatal("the machine does not know its RAM (no mem.Ranger)")
	}
	r := g.Ranges()
	if len(r) == 0 {
		t.Fatal("the machine has no RAM")
	}
	for i := range r {
		if r[i].Size == 0 || r[i].End() < r[i].Start || i > 0 && r[i].Start < r[i-1].End() {
			t.Fatalf("ranges not sorted, or overlap: %#x", r)
		}
	}
	if want.Ranges != nil && !slices.Equal(Join(r), Join(want.Ranges)) {
		t.Fatalf("ranges %#x, want %#x", r, want.Ranges)
	}
	return Join(r)
}

// Join joins ranges that touch.
func Join(in []mem.Range) []mem.Range {
	var out []mem.Range
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].End() == r.Start {
			out[n-1].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}

func testBytes(t *testing.T, m vm.Machine, want Want) {
	for pa, b := range want.Bytes {
		got := make([]byte, len(b))
		if n, err := m.ReadPhys(got, pa); n != len(b) || err != nil || !bytes.Equal(got, b) {
			t.Errorf("ReadPhys(%d bytes at %#x) = %d, %v; bytes equal: %t", len(b), uint64(pa), n, err, bytes.Equal(got, b))
		}
		// Any part of it too.
		for i := range min(len(b), 64) {
			part := make([]byte, len(b)-i)
			if n, err := m.ReadPhys(part, pa+mem.PA(i)); n != len(part) || err != nil || !bytes.Equal(part, b[i:]) {
				t.Fatalf("ReadPhys(%d bytes at %#x) = %d, %v", len(part), uint64(pa)+uint64(i), n, err)
			}
		}
	}
}

// fault checks an error against the contract: n bytes of a read at pa were
// given, the first address behind them is named, and the class is the one
// wanted.
func fault(n int, err error, pa mem.PA, class error) error { return faultOf("read", n, err, pa, class) }

// faultOf is fault of another operation.
func faultOf(op string, n int, err error, pa mem.PA, class error) error {
	var f *mem.FaultError
	if !errors.As(err, &f) {
		return fmt.Errorf("error %v is no *mem.FaultError", err)
	}
	if f.Op != op || f.Addr != uint64(pa)+uint64(n) || !errors.Is(err, class) {
		return fmt.Errorf("%s of %d bytes at %#x, then %q: want a %[1]s fault at %#[5]x of class %[6]q", op, n, uint64(pa), err, uint64(pa)+uint64(n), class)
	}
	return nil
}

// testShort reads nothing, over the end, and where there is no RAM.
func testShort(t *testing.T, m vm.Machine, ranges []mem.Range) {
	last := ranges[len(ranges)-1]
	for _, pa := range []mem.PA{ranges[0].Start, last.End(), 1 << 60} {
		if n, err := m.ReadPhys(nil, pa); n != 0 || err != nil {
			t.Errorf("ReadPhys(nothing at %#x) = %d, %v", uint64(pa), n, err)
		}
	}
	for _, k := range []int{0, 1, 7, 8, 4096, 5000} {
		k = int(min(uint64(k), last.Size))
		pa := last.End() - mem.PA(k)
		n, err := m.ReadPhys(make([]byte, k+100), pa)
		if n != k {
			t.Errorf("ReadPhys of %d bytes at %d before the end gave %d", k+100, k, n)
		}
		if e := fault(n, err, pa, mem.ErrNoRAM); e != nil {
			t.Error(e)
		}
	}
	for _, pa := range []mem.PA{last.End() + 12345, 1 << 59, ^mem.PA(0) - 7, ^mem.PA(0)} {
		n, err := m.ReadPhys(make([]byte, 16), pa)
		if n != 0 {
			t.Errorf("ReadPhys at %#x, where no RAM is, gave %d bytes", uint64(pa), n)
		}
		if e := fault(0, err, pa, mem.ErrNoRAM); e != nil {
			t.Error(e)
		}
	}
}

// testAcross reads up to the end of every range and over it.
func testAcross(t *testing.T, m vm.Machine, ranges []mem.Range) {
	for _, r := range ranges {
		k := int(min(r.Size, 100))
		pa := r.End() - mem.PA(k)
		if n, err := m.ReadPhys(make([]byte, k), pa); n != k || err != nil {
			t.Errorf("ReadPhys(last %d bytes of the range at %#x) = %d, %v", k, uint64(r.Start), n, err)
		}
		n, err := m.ReadPhys(make([]byte, k+1), pa)
		if e := fault(k, err, pa, mem.ErrNoRAM); n != k || e != nil {
			t.Errorf("over the end of the range at %#x: %d bytes, want %d; %v", uint64(r.Start), n, k, e)
		}
		if r.Start > 0 {
			n, err := m.ReadPhys(make([]byte, 8), r.Start-1)
			if e := fault(0, err, r.Start-1, mem.ErrNoRAM); n != 0 || e != nil {
				t.Errorf("before the range at %#x: %d bytes; %v", uint64(r.Start), n, e)
			}
		}
	}
}

// testVec compares vectored reads with single ones.
func testVec(t *testing.T, m vm.Machine, ranges []mem.Range, want Want) {
	last := ranges[len(ranges)-1]
	var v []mem.Vec
	var exp [][]byte
	most := 100
	if _, ok := m.(mem.VecReader); ok {
		most = 3000 // more than a system call takes
	}
	for pa, b := range want.Bytes {
		for i := 0; i < len(b) && len(v) < most; i += 13 {
			v = append(v, mem.Vec{P: make([]byte, min(i%40, len(b)-i)), PA: pa + mem.PA(i)})
			exp = append(exp, b[i:i+len(v[len(v)-1].P)])
		}
	}
	for i := 0; len(v) > 0 && len(v) < most; i++ {
		v, exp = append(v, mem.Vec{P: make([]byte, len(v[i].P)), PA: v[i].PA}), append(exp, exp[i])
	}
	n, err := mem.ReadVec(m, v)
	if n != len(v) || err != nil {
		t.Fatalf("ReadVec of %d pieces = %d, %v", len(v), n, err)
	}
	for i := range v {
		if !bytes.Equal(v[i].P, exp[i]) {
			t.Fatalf("piece %d of %d, %d bytes at %#x: wrong bytes", i, len(v), len(v[i].P), uint64(v[i].PA))
		}
	}
	// The second piece fails, in its middle.
	v = []mem.Vec{
		{P: make([]byte, 8), PA: ranges[0].Start}, {P: make([]byte, 8), PA: last.End() - 4},
		{P: make([]byte, 8), PA: ranges[0].Start},
	}
	n, err = mem.ReadVec(m, v)
	if e := fault(4, err, last.End()-4, mem.ErrNoRAM); n != 1 || e != nil {
		t.Errorf("ReadVec with a bad second piece = %d; %v", n, e)
	}
	if n, err := mem.ReadVec(m, nil); n != 0 || err != nil {
		t.Errorf("ReadVec of nothing = %d, %v", n, err)
	}
}

// testConcurrent reads from several goroutines at once.
func testConcurrent(t *testing.T, m vm.Machine, want Want) {
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for range 100 {
				for pa, b := range want.Bytes {
					i := rnd.IntN(len(b))
					got := make([]byte, rnd.IntN(len(b)-i)+1)
					if n, err := m.ReadPhys(got, pa+mem.PA(i)); n != len(got) || err != nil || !bytes.Equal(got, b[i:i+len(got)]) {
						t.Errorf("concurrent ReadPhys(%d bytes at %#x) = %d, %v", len(got), uint64(pa)+uint64(i), n, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// testExtents checks that extents lie within RAM, and that what lies outside of
// them is zeros.
func testExtents(t *testing.T, m vm.Machine, ranges []mem.Range) {
	x, err := mem.Extents(m)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for k, e := range x {
		if e.Size == 0 || k > 0 && e.Start < x[k-1].End() {
			t.Fatalf("extents not sorted, or overlap: %#x", e)
		}
		for i < len(ranges) && ranges[i].End() <= e.Start {
			i++
		}
		if i == len(ranges) || e.Start < ranges[i].Start || e.End() > ranges[i].End() {
			t.Fatalf("extent %#x is not within RAM %#x", e, ranges)
		}
	}
	// Samples from between hold zeros; a live guest may have come to use one.
	page, rnd := make([]byte, mem.PageSize), rand.New(rand.NewPCG(3, 4))
	for range 64 {
		r := ranges[rnd.IntN(len(ranges))]
		if r.Size < 2*mem.PageSize {
			continue
		}
		pa := r.Start + mem.PA(rnd.Uint64N(r.Size/mem.PageSize)*mem.PageSize)
		pa = min(pa, r.End()-mem.PageSize)
		if within(x, pa) {
			continue
		}
		if _, err := m.ReadPhys(page, pa); err != nil {
			t.Fatal(err)
		}
		if now, err := mem.Extents(m); bytes.Count(page, []byte{0}) != len(page) && (err != nil || !within(now, pa)) {
			t.Errorf("data at %#x, outside of the extents", uint64(pa))
		}
	}
}

// within tells whether some range holds the page at pa or a part of it.
func within(l []mem.Range, pa mem.PA) bool {
	return slices.ContainsFunc(l, func(r mem.Range) bool { return r.Start < pa+mem.PageSize && pa < r.End() })
}

func testLoader(t *testing.T, m vm.Machine, want Want) {
	for pa, b := range want.Bytes {
		for i := 0; i+8 <= len(b) && i < 64; i++ {
			var w uint64
			for k := 7; k >= 0; k-- {
				w = w<<8 | uint64(b[i+k])
			}
			if v, err := mem.Load64(m, pa+mem.PA(i)); v != w || err != nil {
				t.Fatalf("Load64(%#x) = %#x, %v; want %#x", uint64(pa)+uint64(i), v, err, w)
			}
		}
	}
	_, err := mem.Load64(m, 1<<58)
	if e := fault(0, err, 1<<58, mem.ErrNoRAM); e != nil {
		t.Error(e)
	}
}

func testInfo(t *testing.T, m vm.Machine, want Want) {
	d, ok := m.(vm.Describer)
	if !ok {
		t.Skip("the machine does not describe itself")
	}
	i := d.Info()
	if i.VMM == "" || i.RAM == 0 || i.Route == "" || i.Layout == "" || i.Live != (i.PID != 0 || i.Domain != 0 || want.Remote) {
		t.Errorf("Info leaves something out: %+v", i)
	}
}

// testLayouts looks at the machine in every layout that it may have.
func testLayouts(t *testing.T, m vm.Machine) {
	a, ok := m.(vm.Ambiguous)
	if !ok {
		t.Skip("the machine knows its layout")
	}
	l := a.Layouts()
	if len(l) == 0 {
		t.Fatal("no layouts")
	}
	for i, x := range l {
		v, err := a.In(x)
		if err != nil {
			t.Fatalf("In(%s): %v", x.Name, err)
		}
		var size, sum uint64
		for _, r := range x.Ranges {
			sum += r.Size
		}
		for _, r := range v.(mem.Ranger).Ranges() {
			size += r.Size
		}
		if size > sum || size+1<<20 < sum { // video memory may be left out
			t.Errorf("In(%s) has %d bytes of RAM, the layout %d", x.Name, size, sum)
		}
		var b [1]byte
		if _, err := v.ReadPhys(b[:], x.Ranges[0].Start); err != nil {
			t.Errorf("In(%s): %v", x.Name, err)
		}
		if i == 0 && !slices.Equal(Join(v.(mem.Ranger).Ranges()), Join(m.(mem.Ranger).Ranges())) {
			t.Errorf("the machine is not in its first layout")
		}
		// A view does not close the machine.
		if err := v.Close(); err != nil {
			t.Errorf("close the view %s: %v", x.Name, err)
		}
		if _, err := m.ReadPhys(b[:], m.(mem.Ranger).Ranges()[0].Start); err != nil {
			t.Errorf("after a view was closed: %v", err)
		}
	}
}

func testCPUs(t *testing.T, m vm.Machine, want Want) {
	c, ok := m.(vm.CPUs)
	if !ok {
		if want.CPUs != 0 {
			t.Error("the machine has no registers to give")
		}
		return
	}
	r, err := c.CPUs(context.Background())
	if want.CPUs == 0 {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CPUs = %d, %v; want ErrUnsupported", len(r), err)
		}
		return
	}
	if err != nil || len(r) != want.CPUs {
		t.Errorf("CPUs = %d, %v; want %d", len(r), err, want.CPUs)
	}
}

// testWrites writes what is there already, and where no RAM is.
func testWrites(t *testing.T, m vm.Machine, ranges []mem.Range, want Want) {
	w, ok := m.(mem.PhysWriter)
	if !ok {
		return // it is not to be written
	}
	for pa, b := range want.Bytes {
		if n, err := w.WritePhys(b, pa); n != len(b) || err != nil {
			t.Errorf("WritePhys(%d bytes at %#x) = %d, %v", len(b), uint64(pa), n, err)
		}
		got := make([]byte, len(b))
		if n, err := m.ReadPhys(got, pa); n != len(b) || err != nil || !bytes.Equal(got, b) {
			t.Errorf("ReadPhys of what was written at %#x = %d, %v", uint64(pa), n, err)
		}
	}
	end := ranges[len(ranges)-1].End()
	for _, pa := range []mem.PA{end, end + 12345, 1 << 59, ^mem.PA(0) - 7} {
		n, err := w.WritePhys(make([]byte, 16), pa)
		if e := faultOf("write", 0, err, pa, mem.ErrNoRAM); n != 0 || e != nil {
			t.Errorf("WritePhys where no RAM is: %d bytes, %v", n, e)
		}
	}
	if n, err := w.WritePhys(nil, end); n != 0 || err != nil {
		t.Errorf("WritePhys(nothing) = %d, %v", n, err)
	}
}

// testEnded asks a machine that lives whether it has ended.
func testEnded(t *testing.T, m vm.Machine) {
	e, ok := m.(vm.Ender)
	if !ok {
		return // it cannot tell
	}
	if err := e.Ended(); err != nil {
		t.Errorf("Ended: %v", err)
	}
}

// Same checks that two machines, which look at one guest by different routes,
// give the same bytes wherever both have RAM and the first has data. The guest
// must stand still, or the pages that change lie within except.
func Same(t *testing.T, a, b vm.Machine, except ...mem.Range) {
	t.Helper()
	x, err := mem.Extents(a)
	if err != nil {
		t.Fatal(err)
	}
	pa, pb := make([]byte, mem.PageSize), make([]byte, mem.PageSize)
	for _, r := range Common(a, b) {
		for _, e := range x {
			for at := max(e.Start, r.Start); at < min(e.End(), r.End()); {
				n := min(len(pa), int(min(e.End(), r.End())-at))
				if _, err := a.ReadPhys(pa[:n], at); err != nil {
					t.Fatal(err)
				}
				if _, err := b.ReadPhys(pb[:n], at); err != nil {
					t.Fatal(err)
				}
				skip := slices.ContainsFunc(except, func(r mem.Range) bool { return at < r.End() && at+mem.PA(n) > r.Start })
				if !skip && !bytes.Equal(pa[:n], pb[:n]) {
					t.Fatalf("page %#x differs:\n%x\n%x", uint64(at), pa[:n], pb[:n])
				}
				at += mem.PA(n)
			}
		}
	}
}

// Common lists where both machines have RAM.
func Common(a, b vm.Machine) []mem.Range {
	var out []mem.Range
	for _, x := range Join(a.(mem.Ranger).Ranges()) {
		for _, y := range Join(b.(mem.Ranger).Ranges()) {
			from, to := max(x.Start, y.Start), min(x.End(), y.End())
			if from < to {
				out = append(out, mem.Range{Start: from, Size: uint64(to - from)})
			}
		}
	}
	return out
}
