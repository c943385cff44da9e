package x86_test

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"vmscope/arch/x86"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

const directMap = 0xffff888000000000

// guest is size bytes of untouched RAM with a direct map at the far end, as
// Linux has it: pages of the given level, tables in the first 16 MiB.
func guest(b *testing.B, size uint64, level int) (*mem.Space, *x86.Paging) {
	b.Helper()
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(data) })
	for i := 0; i < len(data); i += mem.PageSize {
		data[i] = 1
	}
	t := memtest.NewTables(data, 0, 1<<20, 4)
	t.Map(directMap, 0, size, level, memtest.W|memtest.NX)
	ram, err := mem.NewRAM(mem.Segment{Data: data})
	if err != nil {
		b.Fatal(err)
	}
	p := x86.NewPaging(ram, t.Root, x86.Level4)
	return mem.NewSpace("kernel", ram, p), p
}

// addresses are random offsets in the guest's RAM, aligned.
func addresses(size, align uint64) []mem.VA {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]mem.VA, 1<<16)
	for i := range out {
		out[i] = directMap + mem.VA(r.Uint64N(size/align)*align)
	}
	return out
}

func BenchmarkWalk(b *testing.B) {
	_, p := guest(b, 64<<20, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		if _, err := p.Translate(directMap + 0x123456); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUint64Hot(b *testing.B) {
	s, _ := guest(b, 64<<20, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		if _, err := s.Uint64(directMap + 0x123450); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUint64Random(b *testing.B) {
	for _, c := range []struct {
		name  string
		level int
	}{{"4K", 1}, {"2M", 2}} {
		b.Run(c.name, func(b *testing.B) {
			s, _ := guest(b, 512<<20, c.level)
			vas := addresses(512<<20, 8)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				if _, err := s.Uint64(vas[i&(len(vas)-1)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead4KHot(b *testing.B) {
	s, _ := guest(b, 64<<20, 1)
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		if _, err := s.Read(p, directMap+0x123000); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4KRandom(b *testing.B) {
	s, _ := guest(b, 512<<20, 2)
	vas := addresses(512<<20, 4096)
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if _, err := s.Read(p, vas[i&(len(vas)-1)]); err != nil {
			b.Fatal(err)
		}
	}
}
