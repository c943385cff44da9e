package ksym

import (
	"testing"

	"vmscope/mem"
)

// benchTable is the table of a real kernel, with the kernel's index by name or,
// on 5.10, without.
func benchTable(b *testing.B, kernel string) *Table {
	f := readFixture(b, fixturePath(kernel))
	t, err := At(f.read, f.places())
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func eachFixture(b *testing.B, run func(b *testing.B, t *Table)) {
	for _, kernel := range fixtures {
		b.Run(kernel, func(b *testing.B) {
			t := benchTable(b, kernel)
			b.ReportAllocs()
			run(b, t)
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	names := []string{"init_task", "_stext", "modules", "sys_call_table", "no_such_symbol"}
	eachFixture(b, func(b *testing.B, t *Table) {
		t.Lookup("_stext")
		i := 0
		for b.Loop() {
			t.Lookup(names[i%len(names)])
			i++
		}
	})
}

func BenchmarkNearest(b *testing.B) {
	eachFixture(b, func(b *testing.B, t *Table) {
		s, err := t.Lookup("_stext")
		if err != nil {
			b.Fatal(err)
		}
		i := mem.VA(0)
		for b.Loop() {
			t.Nearest(s.Addr + i*7919%(8<<20))
			i++
		}
	})
}

// BenchmarkAll decodes all names.
func BenchmarkAll(b *testing.B) {
	eachFixture(b, func(b *testing.B, t *Table) {
		n := 0
		for b.Loop() {
			for s := range t.All() {
				n += len(s.Name)
			}
		}
		b.ReportMetric(float64(t.Len()), "symbols/op")
	})
}

// BenchmarkAt builds a table whose place is known, with all its checks.
func BenchmarkAt(b *testing.B) {
	for _, kernel := range fixtures {
		b.Run(kernel, func(b *testing.B) {
			f := readFixture(b, fixturePath(kernel))
			p := f.places()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := At(f.read, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchRAM is 512 MiB of mapped memory, of which extents say what is not a
// hole: the fixture and 96 MiB of other data.
func benchRAM(b *testing.B) (*mem.RAM, []mem.Range) {
	f := readFixture(b, fixturePath("sid-cloud"))
	data := make([]byte, 512<<20)
	start := f.Start &^ (mem.PageSize - 1)
	copy(data[f.Start:], f.bytes)
	other := mem.Range{Start: 16 << 20, Size: 96 << 20}
	if f.Start < 256<<20 {
		other.Start = 384 << 20
	}
	x := uint64(1)
	for i := range data[other.Start:other.End()] {
		x = x*6364136223846793005 + 1442695040888963407
		data[int(other.Start)+i] = byte(x >> 56)
	}
	copy(data[other.End()-mem.PageSize:], f.CoreInfo)
	ram, err := mem.NewRAM(mem.Segment{PA: 0, Data: data})
	if err != nil {
		b.Fatal(err)
	}
	return ram, []mem.Range{{Start: mem.PA(start), Size: align(uint64(len(f.bytes)), mem.PageSize) + mem.PageSize}, other}
}

func BenchmarkFind(b *testing.B) {
	ram, extents := benchRAM(b)
	for b.Loop() {
		if f, err := Find(b.Context(), ram, extents); err != nil || len(f) != 1 {
			b.Fatal(f, err)
		}
	}
}

func BenchmarkFindVMCoreInfo(b *testing.B) {
	ram, extents := benchRAM(b)
	for name, x := range map[string][]mem.Range{"extents": extents, "all": ram.Ranges()} {
		b.Run(name, func(b *testing.B) {
			pages := uint64(0)
			for _, r := range x {
				pages += r.Size / mem.PageSize
			}
			for b.Loop() {
				if f, err := FindVMCoreInfo(b.Context(), ram, x); err != nil || len(f) != 1 {
					b.Fatal(f, err)
				}
			}
			b.ReportMetric(float64(pages), "pages/op")
		})
	}
}
