package vendorfile

import (
	"bytes"
	"encoding/binary"
	"testing"

	"vmscope/internal/lzop"
	"vmscope/ksym"
	"vmscope/mem"
)

// FuzzPayload gives files that are none: what is unpacked stays within bounds.
func FuzzPayload(f *testing.F) {
	head := make([]byte, 1024)
	head[0x1f1] = 1
	binary.LittleEndian.PutUint16(head[0x1fe:], 0xaa55)
	copy(head[0x202:], "HdrS\x0f\x02")
	for _, p := range []string{"\x1f\x8b\x08\x00", "\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x1a", "\x28\xb5\x2f\xfd", "\x02\x21\x4c\x18", "BZh91AY", "\x5d\x00\x00\x80\x00", lzop.Magic + "\x10\x40\x20\xa0\x09\x40\x03\x09\x03\x00\x00\x0d" + "\x00\x00\x81\xa4" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x01x" + "\x00\x00\x00\x00" + "\x00\x00\x00\x08\x00\x00\x00\x08"} {
		b := append(bytes.Clone(head), p...)
		b = append(b, make([]byte, 32)...)
		binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(p)+32))
		f.Add(b)
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := payload(b)
		if len(b) == 0 && err == nil {
			t.Error("nothing is a kernel")
		}
		_, _ = unpack(b, 1<<20)
	})
}

// FuzzFiles gives ELF files that are none.
func FuzzFiles(f *testing.F) {
	f.Add(elfOf(etExecutable, false))
	f.Add(elfOf(etRelocatable, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParseKernel(t.Context(), bytes.Clone(b)); err == nil {
			_ = k.Relocate(0x200000)
			_, _ = k.Sites()
		}
		k := &Kernel{symbols: ksym.NewList(nil)}
		k.tables = new(tables)
		m, err := ParseModule(k, bytes.Clone(b))
		if (m == nil) != (err != nil) {
			t.Fatalf("%v and %v", m, err)
		}
		if err != nil {
			return
		}
		m.Place(func(name string) (mem.VA, bool) { return 0xffffffffc0000000, name != ".bss" }, 0x1000)
		_ = m.Relocate(func(name string) (uint64, bool) { return 1, len(name)%2 == 0 })
		if s, err := m.Sites(); err == nil && s.Len() > len(b) {
			t.Errorf("%d places in %d bytes", s.Len(), len(b))
		}
		for _, s := range m.SortedTables() {
			at, each, _ := m.Foreign(s, func(va mem.VA, n uint64) []byte { b := m.At(va); return b[:min(n, uint64(len(b)))] })
			if len(at) > 0 {
				t.Errorf("%s: the file's own entries at %#x, of %d bytes each, are foreign", s.Name, at, each)
			}
		}
	})
}

// elfOf is an ELF file with some sections, of which one is relocated.
func elfOf(kind uint16, module bool) []byte {
	le := binary.LittleEndian
	names := "\x00.text\x00.rela.text\x00.symtab\x00.strtab\x00.note.gnu.build-id\x00.modinfo\x00__mcount_loc\x00"
	b := make([]byte, headerSize)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], kind)
	le.PutUint16(b[18:], emX8664)
	type section struct {
		name        string
		kind, flags uint64
		link, info  uint32
		data        []byte
	}
	sym := make([]byte, 2*symbolSize)
	le.PutUint32(sym[symbolSize:], 1)
	rela := make([]byte, relaSize)
	le.PutUint32(rela[8:], relPC32)
	le.PutUint32(rela[12:], 1)
	note := append([]byte{4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0}, "GNU\x00\xde\xad\xbe\xef"...)
	list := []section{{}, {".text", 1, shfAlloc | shfExec, 0, 0, bytes.Repeat([]byte{0x90}, 64)}, {".rela.text", shtRela, 0, 3, 1, rela},
		{".symtab", shtSymtab, 0, 4, 0, sym}, {".strtab", shtStrtab, 0, 0, 0, []byte("\x00printk\x00")},
		{".note.gnu.build-id", shtNote, shfAlloc, 0, 0, note}, {".modinfo", 1, 0, 0, 0, []byte("name=one\x00")},
		{"__mcount_loc", 1, shfAlloc, 0, 0, make([]byte, 16)}, {"", shtStrtab, 0, 0, 0, []byte(names)}}
	if !module {
		list = list[:2]
		list = append(list, section{"", shtStrtab, 0, 0, 0, []byte(names)})
	}
	heads := make([]byte, sectionSize*len(list))
	for i, s := range list {
		h := heads[i*sectionSize:]
		le.PutUint32(h, uint32(max(0, bytes.Index([]byte(names), []byte(s.name+"\x00")))))
		le.PutUint32(h[4:], uint32(s.kind))
		le.PutUint64(h[8:], s.flags)
		le.PutUint64(h[24:], uint64(len(b)))
		le.PutUint64(h[32:], uint64(len(s.data)))
		le.PutUint32(h[40:], s.link)
		le.PutUint32(h[44:], s.info)
		b = append(b, s.data...)
	}
	le.PutUint64(b[40:], uint64(len(b)))
	le.PutUint16(b[60:], uint16(len(list)))
	le.PutUint16(b[62:], uint16(len(list)-1))
	return append(append(b, heads...), 0, 0, 0, 0, 0, 0, 0, 0)
}

// FuzzMatch gives memory of a guest that is nothing like the file.
func FuzzMatch(f *testing.F) {
	for _, code := range []string{"\xe9\x10\x00\x00\x00", "\xff\x14\x25\x00\x00\x00\x81", "\xf0\x90\x90\x90\x90\x90\x90", "\x0f\x84\x00\x00\x00\x00", "\xeb\x03\xcc\xcc\xcc"} {
		f.Add([]byte(code+"\x90\x90\x90\x90\x90\x90\x90\x90"), []byte(code), uint8(len(code)), uint8(3))
	}
	f.Fuzz(func(t *testing.T, file, got []byte, n, kind uint8) {
		k := &Kernel{branches: map[mem.VA]uint8{0x1000: 9}, returns: map[mem.VA]bool{}}
		k.symbols = ksym.NewList([]ksym.Symbol{{Name: "pv_ops", Addr: 0x1000, Size: 64}, {Name: "nop_func", Addr: 0x909090909090}})
		k.tables = new(tables)
		k.counterAt, k.counter = 0x1000, file[:len(file)/2]
		k.lookup = func(string) (mem.VA, bool) { return 0x1000, true }
		k.Sections = []*Section{{Name: ".text", Addr: 0x1000, Size: uint64(len(file)), Data: file, Exec: true}}
		k.settle()
		sites := &Sites{list: []Site{{At: 0x1000, Kind: Alternative, Len: n, n: 1}, {At: 0x1001, Kind: Kind(kind % 12), Len: 5}}, replacements: []replacement{{0x1002, n / 2}}}
		m := Matcher{Kernel: k, Read: func(b []byte, _ mem.VA) bool { return copy(b, file) == len(b) }, Leads: func(Site, mem.VA) bool { return n%2 == 0 }}
		for _, s := range sites.list {
			k := m.Match(&k.Image, sites, s, got)
			if k > len(got) || k < 0 {
				t.Errorf("%v of %d bytes: %d match", s, len(got), k)
			}
		}
		own := bytes.Clone(file)
		if s := sites.list[0]; int(n) <= len(file) && n > 0 && m.Match(&k.Image, sites, s, own) == 0 {
			t.Error("what the file has is not valid")
		}
		_ = m.Padding(&k.Image, 0x1000)
	})
}
