package detect

import (
	"bytes"
	"encoding/binary"
	"testing"

	"vmscope/arch/x86"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// TestSplit changes a page of code in the ways that probes do, and in others.
func TestSplit(t *testing.T) {
	trampoline := linux.CodeArea{Special: true}
	trampoline.Area = kernel.Area{Start: 0x7000_0000, End: 0x7000_1000}
	code := linux.CodeArea{}
	code.Area = kernel.Area{Start: 0x4000_0000, End: 0x4000_2000, Offset: 0x3000}
	const page = 1 // of the area: in the file at 0x4000
	call := func(at, to mem.VA) []byte {
		return binary.LittleEndian.AppendUint32([]byte{0xe8}, uint32(to-(at+5)))
	}
	site := mem.VA(0x4000_1000 + 0x100)
	for _, c := range []struct {
		name   string
		file   []byte // at offset 0x100 of the page
		found  []byte
		probes []uint64
		edits  int
	}{
		{"breakpoint of a probe", []byte{0x55, 1, 2, 3}, []byte{0xcc, 1, 2, 3}, []uint64{0x4100}, 0},
		{"breakpoint of nobody", []byte{0x55, 1, 2, 3}, []byte{0xcc, 1, 2, 3}, []uint64{0x4200, 0x3100, 0x5100}, 1},
		{"breakpoint and more", []byte{0x55, 1, 2, 3}, []byte{0xcc, 1, 9, 3}, []uint64{0x4100}, 1},
		{"no breakpoint at a probe", []byte{0x55, 1, 2, 3}, []byte{0x90, 1, 2, 3}, []uint64{0x4100}, 1},
		{"call to the trampoline", []byte{0x0f, 0x1f, 0x44, 0, 0}, call(site, 0x7000_0010), []uint64{0x4100}, 0},
		{"on the way to it", []byte{0x0f, 0x1f, 0x44, 0, 0}, append([]byte{0xcc}, call(site, 0x7000_0010)[1:]...), []uint64{0x4100}, 0},
		{"call to elsewhere", []byte{0x0f, 0x1f, 0x44, 0, 0}, call(site, 0x7000_1000), []uint64{0x4100}, 1},
		{"call of nobody", []byte{0x0f, 0x1f, 0x44, 0, 0}, call(site, 0x7000_0010), nil, 1},
		{"long nop", nop10, append([]byte{0x48, 0x8d, 0x64, 0x24, 0x80}, call(site+5, 0x7000_0010)...), []uint64{0x4100}, 0},
		{"long nop that is jumped over", nop10, append([]byte{0xeb, 8, 0x64, 0x24, 0x80}, call(site+5, 0x7000_0010)...), nil, 0},
		{"two places", []byte("abcdefghijklmnop"), []byte("Abcdefghijklmnop"[:15] + "P"), nil, 2},
		{"one place", []byte("abcdefghijklmnop"), []byte("AbcdEfgHijklmnop"), nil, 1},
	} {
		expected := bytes.Repeat([]byte{0x77}, mem.PageSize)
		copy(expected[0x100:], c.file)
		found := bytes.Clone(expected)
		copy(found[0x100:], c.found)
		cmp := comparison{probes: c.probes, areas: []linux.CodeArea{code, trampoline}}
		cmp.split(code, page, expected, found)
		if len(cmp.edits)+cmp.more != c.edits {
			t.Errorf("%s: %d edits, want %d: %+v", c.name, len(cmp.edits)+cmp.more, c.edits, cmp.edits)
		}
		if len(cmp.edits) > 0 && (cmp.edits[0].at < site || cmp.edits[0].offset-0x4000 != uint64(cmp.edits[0].at-0x4000_1000)) {
			t.Errorf("%s: %+v", c.name, cmp.edits)
		}
		if (cmp.probed > 0) != (c.edits == 0 || c.name == "breakpoint and more") {
			t.Errorf("%s: %d bytes by probes", c.name, cmp.probed)
		}
	}
}

// TestSplitBounds changes all there is.
func TestSplitBounds(t *testing.T) {
	cmp := comparison{}
	expected, found := make([]byte, mem.PageSize), make([]byte, mem.PageSize)
	for i := 0; i < len(found); i += 8 {
		found[i] = 1
	}
	cmp.split(linux.CodeArea{}, 0, expected, found)
	if len(cmp.edits) != maxEdits || cmp.more != mem.PageSize/8-maxEdits {
		t.Errorf("%d edits and %d more", len(cmp.edits), cmp.more)
	}
}

// elfFile is a file of program headers, and of a dynamic section at 0x2000.
func elfFile(wide bool, segments []elfSegment, dynamic ...uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x3000)
	copy(b, "\x7fELF\x01\x01")
	word := 4
	put := func(at int, v uint64) { le.PutUint32(b[at:], uint32(v)) }
	if wide {
		b[4], word = 2, 8
		le.PutUint64(b[32:], 64)
		le.PutUint16(b[54:], 56)
		le.PutUint16(b[56:], uint16(len(segments)))
	} else {
		put(28, 64)
		le.PutUint16(b[42:], 32)
		le.PutUint16(b[44:], uint16(len(segments)))
	}
	for i, s := range segments {
		if wide {
			at := 64 + 56*i
			put(at, uint64(s.kind))
			put(at+4, uint64(s.flags))
			le.PutUint64(b[at+8:], s.offset)
			le.PutUint64(b[at+16:], s.addr)
			le.PutUint64(b[at+32:], s.size)
		} else {
			at := 64 + 32*i
			for k, v := range []uint64{uint64(s.kind), s.offset, s.addr, 0, s.size, s.size, uint64(s.flags)} {
				put(at+4*k, v)
			}
		}
	}
	for i, v := range dynamic {
		put(0x2000+word*i, v)
	}
	return b
}

func TestImage(t *testing.T) {
	const bias = 0x5000_0000
	text := elfSegment{elfLoad, 5, 0x1000, 0x11000, 0x800}
	data := elfSegment{elfLoad, 6, 0x2000, 0x22000, 0x200}
	dynamic := elfSegment{elfDynamic, 6, 0x2000, 0x22000, 0x100}
	for _, wide := range []bool{false, true} {
		for _, c := range []struct {
			name     string
			segments []elfSegment
			dynamic  []uint64
			offset   uint64
			harmless bool
		}{
			{"code", []elfSegment{text, data, dynamic}, []uint64{5, 1, 0, 0}, 0x1100, false},
			{"static", []elfSegment{text, data}, nil, 0x1100, false},
			{"text relocations", []elfSegment{text, data, dynamic}, []uint64{5, 1, dynTextRel, 0, 0, 0}, 0x1100, true},
			{"text relocations by a flag", []elfSegment{text, data, dynamic}, []uint64{dynFlags, 12, 0, 0}, 0x1100, true},
			{"other flags", []elfSegment{text, data, dynamic}, []uint64{dynFlags, 8, 0, 0, dynTextRel, 0}, 0x1100, false},
			{"data", []elfSegment{text, data, dynamic}, []uint64{0, 0}, 0x2100, true},
			{"writable code", []elfSegment{{elfLoad, 7, 0x1000, 0x11000, 0x800}}, nil, 0x1100, true},
			{"behind code", []elfSegment{text, data, dynamic}, []uint64{0, 0}, 0x1900, false},
			{"no segment", []elfSegment{text, data}, nil, 0x5900, true},
		} {
			file := elfFile(wide, c.segments, c.dynamic...)
			i, ok := parseImage(file[:mem.PageSize])
			if !ok || len(i.segments) != len(c.segments) {
				t.Fatalf("%s: %+v", c.name, i)
			}
			why := i.harmless(bias+0x10000+mem.VA(c.offset), c.offset, func(p []byte, offset uint64, at mem.VA) bool {
				if at != bias+0x22000 {
					t.Errorf("%s: read at %#x", c.name, uint64(at))
				}
				copy(p, file[offset:])
				return true
			})
			if (why != "") != c.harmless {
				t.Errorf("%s, wide %v: %q", c.name, wide, why)
			}
		}
	}
	for _, b := range [][]byte{nil, []byte("#!/bin/sh"), make([]byte, mem.PageSize), elfFile(true, nil)[:63]} {
		if _, ok := parseImage(b); ok {
			t.Errorf("%.8q is an ELF file", b)
		}
	}
}

// FuzzImage parses heads of files that a guest made up.
func FuzzImage(f *testing.F) {
	text := elfSegment{elfLoad, 5, 0x1000, 0x11000, 0x800}
	f.Add(elfFile(true, []elfSegment{text})[:512], uint64(0x1100))
	f.Add(elfFile(false, []elfSegment{text})[:512], uint64(0x1100))
	f.Fuzz(func(t *testing.T, b []byte, offset uint64) {
		i, ok := parseImage(b)
		if !ok {
			return
		}
		if len(i.segments) > maxSegments {
			t.Fatalf("%d segments", len(i.segments))
		}
		i.harmless(0, offset, func(p []byte, _ uint64, _ mem.VA) bool {
			if len(p) > maxDynamic {
				t.Fatalf("%d bytes", len(p))
			}
			copy(p, b)
			return true
		})
	})
}

// TestVDSOEnd has a guest map its vdso up to amid a page.
func TestVDSOEnd(t *testing.T) {
	l := lookAt(0, make([]byte, mem.PageSize))
	w := textWalk{vdso: [][]mem.PA{{0x1000, 0x2000}}}
	a := linux.CodeArea{Special: true}
	a.Area = kernel.Area{Start: 0x7000_0000, End: 0x7000_2064}
	c := w.vdsoOf(x86.NewPaging(l.Phys, 0, x86.Level4), a)
	if c == nil {
		t.Fatal("no image")
	}
	for i, want := range []mem.PA{0x1000, 0x2000, 0} {
		if pa, ok, err := c.want(uint64(i)); pa != want || ok != (want != 0) || err != nil {
			t.Errorf("page %d: %#x, %v, %v", i, uint64(pa), ok, err)
		}
	}
}
