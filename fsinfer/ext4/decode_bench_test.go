package ext4

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkParseInode(b *testing.B) {
	for _, c := range []struct {
		name string
		ro   uint32
	}{{"plain", 0}, {"checksum", ROCompatMetadataCsum}} {
		b.Run(c.name, func(b *testing.B) {
			s := mustSuper(b, plainSuper(0, everything, c.ro))
			raw := append(extentInode(4, Extent{0, 500, 5, false}), make([]byte, 96)...)
			b.ReportAllocs()
			for b.Loop() {
				in, err := s.ParseInode(12, raw)
				if err != nil || in.Size == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDirents(b *testing.B) {
	s := mustSuper(b, plainSuper(0, everything, ROCompatMetadataCsum))
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("entry-with-a-name-%04d", i))
	}
	block := dirBlock(4096, names...)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Dirents(block, func(Dirent) bool { n++; return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/entry")
}

func BenchmarkExtents(b *testing.B) {
	s := mustSuper(b, plainSuper(0, everything, 0))
	var leaf []Extent
	for i := range uint64(300) {
		leaf = append(leaf, Extent{i * 2, 1000 + i*3, 1, false})
	}
	blocks := blocksOf{500: extentNode(s, 0, leaf...)}
	for _, c := range []struct {
		name string
		raw  []byte
	}{{"inode", extentInode(4, leaf[:4]...)}, {"tree", indexInode(1, 500)}} {
		b.Run(c.name, func(b *testing.B) {
			in, err := s.ParseInode(12, append(c.raw, make([]byte, 256)...))
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Extents(blocks, &in, func(Extent) bool { n++; return true }, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/extent")
		})
	}
}

// The hot paths of inference allocate nothing.
func TestNoAllocations(t *testing.T) {
	s := mustSuper(t, plainSuper(0, everything, ROCompatMetadataCsum))
	raw := append(extentInode(4, Extent{0, 500, 5, false}), make([]byte, 96)...)
	block := dirBlock(4096, "a", "b", "c")
	desc := make([]byte, 64)
	n := 0
	visit := func(Dirent) bool { n++; return true }
	data := func(Extent) bool { n++; return true }
	for name, f := range map[string]func(){
		"ParseInode": func() { _, _ = s.ParseInode(12, raw) },
		"ParseGroup": func() { s.ParseGroup(desc) },
		"Dirents":    func() { _ = s.Dirents(block, visit) },
		"DirBlockOK": func() { s.DirBlockOK(&Inode{}, block) },
		"Extents": func() {
			in, _ := s.ParseInode(12, raw)
			_ = s.Extents(nil, &in, data, nil)
		},
	} {
		if got := testing.AllocsPerRun(100, f); got != 0 {
			t.Errorf("%s allocates %v times", name, got)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	image := mkfs(b, hostTree(b), "128M", "-t", "ext4")
	v := look(b, image)
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			w, err := Open(v.base)
			if err != nil {
				b.Fatal(err)
			}
			w.Close()
		}
	})
	b.Run("Walk", func(b *testing.B) {
		n := 0
		for b.Loop() {
			if err := v.Walk("/", func(string, *Inode, error) error { n++; return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/name")
	})
	b.Run("Stat", func(b *testing.B) {
		path := "/deep" + strings.Repeat("/d", 20) + "/bottom"
		for b.Loop() {
			if _, err := v.Stat(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ReadAt", func(b *testing.B) {
		f, err := v.OpenFile("/file300000")
		if err != nil {
			b.Fatal(err)
		}
		p := make([]byte, f.Size())
		b.SetBytes(f.Size())
		for b.Loop() {
			if _, err := f.ReadAt(p, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}
