package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// streamMaker writes a stream's words as QEMU does.
type streamMaker struct{ b []byte }

func (w *streamMaker) u32(v uint32)  { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *streamMaker) u64(v uint64)  { w.b = binary.BigEndian.AppendUint64(w.b, v) }
func (w *streamMaker) name(s string) { w.b = append(append(w.b, byte(len(s))), s...) }

// makeStreamOf writes a stream that is made with capabilities; body writes what its
// sections of RAM have.
func makeStreamOf(capabilities []string, body ...func(w *streamMaker)) []byte {
	w := &streamMaker{[]byte(streamMagic)}
	w.u32(3)
	w.b = append(w.b, secConfig)
	w.u32(11)
	w.b = append(w.b, "pc-q35-10.0"...)
	if len(capabilities) > 0 {
		w.b = append(w.b, secSub)
		w.name("configuration/capabilities")
		w.u32(1)
		w.u32(uint32(len(capabilities)))
		for _, name := range capabilities {
			w.name(name)
		}
	}
	for i, f := range body {
		typ := byte(secPart)
		switch i {
		case 0:
			typ = secStart
		case len(body) - 1:
			typ = secEnd
		}
		w.b = append(w.b, typ)
		w.u32(2)
		if typ == secStart {
			w.name("ram")
			w.u32(0)
			w.u32(4)
		}
		f(w)
		w.u64(ramEnd)
		w.b = append(w.b, secFooter)
		w.u32(2)
	}
	return append(w.b, makeStates()...)
}

// sizes writes the list of blocks: RAM and a ROM.
func (w *streamMaker) sizes(ram uint64, behind func(name string, size uint64)) {
	w.u64(ram + 8192 | ramSizes)
	for _, b := range []ramBlock{{name: "pc.ram", size: ram}, {name: "pc.rom", size: 8192}} {
		w.name(b.name)
		w.u64(b.size)
		behind(b.name, b.size)
	}
}

// page writes a page of RAM, in the form of the flags.
func (w *streamMaker) page(n int, flags uint64, p []byte) {
	w.u64(uint64(n)*4096 | flags)
	w.name("pc.ram")
	switch flags {
	case ramPacked:
		w.u32(uint32(len(p)))
	case ramDelta:
		w.b = binary.BigEndian.AppendUint16(append(w.b, 1), uint16(len(p)))
	}
	w.b = append(w.b, p...)
}

// encodeDelta is what xbzrle writes of a page that became another: runs of bytes that
// stay and that change, with their lengths, up to the last that changes.
func encodeDelta(old, page []byte) []byte {
	var out []byte
	for at := 0; ; {
		run := func(same bool) int {
			start := at
			for at < len(page) && (page[at] == old[at]) == same {
				at++
			}
			return at - start
		}
		n := run(true)
		if at == len(page) {
			return out
		}
		out = binary.AppendUvarint(out, uint64(n))
		n = run(false)
		out = append(binary.AppendUvarint(out, uint64(n)), page[at-n:at]...)
	}
}

// changedStream is one whose pages were sent in each way, some again and again.
func changedStream(t testing.TB) (b []byte, want []byte) {
	const pages = 12
	first, second, third := pattern(1, pages<<12), pattern(1, pages<<12), pattern(1, pages<<12)
	for n := range pages {
		if n%4 == 2 { // was nothing but zeros
			for _, b := range [][]byte{first, second, third} {
				clear(b[n<<12 : (n+1)<<12])
				copy(b[n<<12+2000:], "first")
			}
		}
		copy(second[n<<12+100:], bytes.Repeat([]byte("second"), 10+200*(n%3)))
		copy(third[n<<12:], "third")
		copy(third[n<<12+100:], second[n<<12+100:n<<12+1500])
		third[n<<12+4095] ^= 0xff
	}
	of := func(b []byte, n int) []byte { return b[n<<12 : (n+1)<<12] }
	want = bytes.Clone(third)
	b = makeStreamOf(nil,
		func(w *streamMaker) { w.sizes(streamRAM, func(string, uint64) {}) },
		func(w *streamMaker) {
			for n := range pages {
				switch n % 4 {
				case 0:
					w.page(256+n, ramPage, of(first, n))
				case 1:
					w.page(256+n, ramPacked, pack(t, of(first, n), byZlib))
				case 2:
					w.page(256+n, ramDelta, encodeDelta(make([]byte, 4096), of(first, n)))
				case 3: // something else, then zeros
					w.page(256+n, ramPacked, pack(t, pattern(7, 4096), byZlib))
					w.page(256+n, ramZero, []byte{0})
					w.page(256+n, ramPage, of(first, n))
				}
			}
			w.u64(ramFlush)
		},
		func(w *streamMaker) {
			for n := range pages {
				w.page(256+n, ramDelta, encodeDelta(of(first, n), of(second, n)))
			}
			w.page(256+4, ramPage, pattern(9, 4096)) // whole again
			copy(of(want, 4), pattern(9, 4096))
			w.page(256+5, ramZero, []byte{0})
			clear(of(want, 5))
		},
		func(w *streamMaker) {
			for n := range pages {
				if n != 4 && n != 5 {
					w.page(256+n, ramDelta, encodeDelta(of(second, n), of(third, n)))
				}
			}
		})
	return b, want
}

// TestStreamChanged: pages that are packed by themselves, and those of which a stream
// has what changed.
func TestStreamChanged(t *testing.T) {
	b, want := changedStream(t)
	path := file(t, b)
	vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
		Ranges: []mem.Range{{Start: 0, Size: streamRAM}}, CPUs: 2,
		Bytes: map[mem.PA][]byte{0: make([]byte, 1<<20), 1 << 20: want},
	})
	broken := bytes.Clone(b)
	at := bytes.LastIndex(broken, []byte("third"))
	broken[at-1] = 0xff // its length
	m := open(t, file(t, broken))
	defer m.Close()
	var p [8]byte
	if n, err := m.ReadPhys(p[:], 1<<20+11<<12); n != 0 || !errors.Is(err, mem.ErrUnreachable) || !strings.Contains(err.Error(), "what changed, at offset") {
		t.Errorf("%d, %v", n, err)
	}
	same(t, m, 1<<20, want[:11<<12])
}

// mappedStream is one with the capability mapped-ram, in a file from an offset on. Its
// memory has want at a page; pages begin at a multiple of align.
func mappedStream(start, page int, ram uint64, align int) (b []byte, want []byte) {
	want = pattern(1, 12<<12)
	clear(want[3<<12 : 5<<12])
	b = makeStreamOf([]string{"mapped-ram"},
		func(w *streamMaker) {
			w.sizes(ram, func(name string, size uint64) {
				frames := size / 4096
				bitmap := make([]byte, (frames+63)/64*8)
				at := start + len(w.b) + 28
				pages := (at + len(bitmap) + align - 1) &^ (align - 1)
				w.u32(1)
				w.u64(4096)
				w.u64(uint64(at))
				w.u64(uint64(pages))
				body := make([]byte, size)
				for n := range frames {
					i := int(n) - page
					switch {
					case name == "pc.rom" || i >= 0 && i < len(want)>>12 && !isZero(want[i<<12:(i+1)<<12]):
						bitmap[n/8] |= 1 << (n % 8)
						if name == "pc.ram" {
							copy(body[n<<12:], want[i<<12:(i+1)<<12])
						}
					case i == 3: // what it was before it was zeros
						copy(body[n<<12:], "before")
					}
				}
				w.b = append(w.b, bitmap...)
				w.b = append(w.b, make([]byte, pages-start-len(w.b))...)
				w.b = append(w.b, body...)
			})
		},
		func(*streamMaker) {}, func(*streamMaker) {})
	return b, want
}

func TestStreamMapped(t *testing.T) {
	head := saved(t, nil, libvirtSparse)
	plain, want := mappedStream(0, 256, streamRAM, mappedAlign)
	behind, _ := mappedStream(len(head), 256, streamRAM, mappedAlign)
	for name, b := range map[string][]byte{"stream": plain, "libvirt's sparse": slices.Concat(head, behind)} {
		t.Run(name, func(t *testing.T) {
			path := file(t, b)
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: streamRAM}}, CPUs: 2,
				Bytes: map[mem.PA][]byte{0: make([]byte, 1<<20), 1 << 20: want},
			})
			m := open(t, path)
			defer m.Close()
			if x, err := mem.Extents(m); err != nil || len(x) != 2 || x[0] != (mem.Range{Start: 1 << 20, Size: 3 << 12}) {
				t.Errorf("extents %#x, %v", x, err)
			}
		})
	}
	at := bytes.Index(plain, []byte("pc.ram")) + 6 + 8
	for name, c := range map[string]struct {
		off  int
		with []byte
		is   error
		word string
	}{
		"version":       {at + 3, []byte{2}, ErrFormat, "version 2"},
		"page size":     {at + 4, []byte{0, 0, 0, 0, 0, 1, 0, 0}, ErrFormat, "pages of 65536"},
		"bitmap behind": {at + 12, []byte{0, 1}, ErrFormat, "mapped-ram"},
		"pages far":     {at + 20, []byte{0, 1}, ErrFormat, "mapped-ram"},
	} {
		b := bytes.Clone(plain)
		copy(b[c.off:], c.with)
		if m, err := Open(file(t, b)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	cut := file(t, plain[:bytes.Index(plain, want[8<<12:9<<12])])
	if m, err := Open(cut); m != nil || !errors.Is(err, ErrTruncated) {
		t.Errorf("cut: %v, %v", m, err)
	}
	m := open(t, cut, AllowTruncated())
	defer m.Close()
	same(t, m, 1<<20, want[:8<<12])
	var p [8]byte
	if n, err := m.ReadPhys(p[:], 1<<20+9<<12); n != 0 || !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("a page behind the end: %d, %v", n, err)
	}
}

// TestStreamScattered: pages that take nothing in the file, each far from the others, are not noted without end.
func TestStreamScattered(t *testing.T) {
	const pages = 40000
	path := file(t, makeStreamOf(nil,
		func(w *streamMaker) { w.sizes(pages*pageGroup*streamPage, func(string, uint64) {}) },
		func(w *streamMaker) {
			for n := range pages {
				w.page(n*pageGroup, ramDelta, nil)
			}
		}))
	if m, err := Open(path); m != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "farther apart") {
		t.Errorf("%v, %v", m, err)
	}
}

func FuzzStreamKinds(f *testing.F) {
	b, _ := changedStream(f)
	f.Add(b)
	b, _ = mappedStream(0, 0, 64<<10, 4096)
	f.Add(b)
	f.Fuzz(fuzzOpen)
}

// FuzzDelta applies what xbzrle never wrote; what it wrote makes the one page of the
// other.
func FuzzDelta(f *testing.F) {
	old, page := pattern(1, 4096), pattern(1, 4096)
	copy(page[10:], "changed")
	page[4095]++
	f.Add(old, page)
	f.Add([]byte{0, 4, 'a', 'b', 'c', 'd', 0x80, 0x01, 1, 'x'}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		was := make([]byte, 4096)
		_ = applyDelta(was, a)
		was, is := make([]byte, 4096), make([]byte, 4096)
		copy(was, a)
		copy(is, b)
		if err := applyDelta(was, encodeDelta(was, is)); err != nil || !bytes.Equal(was, is) {
			t.Fatalf("%v", err)
		}
	})
}

// TestRecordedMapped opens what QEMU 10.0.13 (Debian 13) wrote to file:PATH of a machine
// that never ran: by itself, and by several threads (multifd). It was started with -M q35
// -m 4 -smp 2 -nodefaults -vga none -S, a BIOS of 64 KiB and known bytes at 1 MiB
// (-device loader).
func TestRecordedMapped(t *testing.T) {
	for _, name := range []string{"mapped", "threads"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "qemu10-"+name+".xz")
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: 4 << 20}}, CPUs: 2,
				Bytes: map[mem.PA][]byte{1 << 20: pattern(3, 40<<12), 2 << 20: make([]byte, 1<<20)},
			})
			m := open(t, path)
			defer m.Close()
			if l := m.(vm.Describer).Info().Layout; !strings.HasPrefix(l, "q35 (of pc-q35-10.0") || strings.Contains(l, "end was not found") || strings.Contains(l, "cannot be read") {
				t.Errorf("layout %q", l)
			}
		})
	}
}
