package qemu

import (
	"math/rand/v2"
	"testing"

	"vmscope/mem"
)

// BenchmarkRoutes measures reads of a standing guest's 64 MiB of RAM, all of it
// in use: in bulk, 8 bytes at random, and 64 times 8 bytes at random by one
// vectored read.
func BenchmarkRoutes(b *testing.B) {
	const size = 64 << 20
	page := make([]byte, mem.PageSize)
	for i := range page {
		page[i] = byte(i) | 1
	}
	for _, r := range []Route{Mmap, VMRead, QMP} {
		args := []string{"-S", "-M", "q35", "-m", "64M"} // private to QEMU
		if r == Mmap {
			args = []string{"-S", "-M", "q35,memory-backend=m", "-m", "64M", "-object", "memory-backend-memfd,id=m,size=64M"}
		}
		v := start(b, args...)
		w := openVM(b, v.name, Writable())
		for pa := mem.PA(0); pa < size; pa += mem.PageSize {
			if _, err := w.(mem.PhysWriter).WritePhys(page, pa); err != nil {
				b.Fatal(err)
			}
		}
		w.Close()
		m := openVM(b, v.name, Force(r))
		b.Cleanup(func() { m.Close() })
		b.Run(string(r)+"/bulk-1M", func(b *testing.B) {
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			pa := mem.PA(1 << 20)
			for b.Loop() {
				if _, err := m.ReadPhys(buf, pa); err != nil {
					b.Fatal(err)
				}
				if pa += mem.PA(len(buf)); pa >= size {
					pa = 1 << 20
				}
			}
		})
		rnd := rand.New(rand.NewPCG(1, 2))
		at := func() mem.PA { return mem.PA(1<<20 + rnd.Uint64N(size-1<<20)&^7) }
		b.Run(string(r)+"/random-8", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := mem.Load64(m, at()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(r)+"/vector-64x8", func(b *testing.B) {
			b.ReportAllocs()
			vec := make([]mem.Vec, 64)
			buf := make([]byte, 8*len(vec))
			for b.Loop() {
				for i := range vec {
					vec[i] = mem.Vec{P: buf[8*i : 8*i+8], PA: at()}
				}
				if _, err := mem.ReadVec(m, vec); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(vec)), "ns/piece")
		})
	}
}

// BenchmarkOpen measures the whole attach, and the search for data in 5 GiB of
// which little is used.
func BenchmarkOpen(b *testing.B) {
	v := start(b, "-S", "-M", "pc", "-m", "5G")
	for _, c := range []struct {
		name string
		opts []Option
	}{{"with monitor", nil}, {"without", []Option{NoMonitor()}}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				openVM(b, v.name, c.opts...).Close()
			}
		})
	}
	m := openVM(b, v.name)
	defer m.Close()
	b.Run("extents", func(b *testing.B) {
		for b.Loop() {
			if _, err := mem.Extents(m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
