package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

const streamRAM = 4 << 20

// makeStream writes a migration stream of a guest with 4 MiB of RAM as QEMU's
// source describes it: data lies at 1 MiB, its first page is sent three times,
// its second was something before it was zeros. A ROM is there too.
func makeStream(data []byte) []byte {
	be := binary.BigEndian
	var b []byte
	name := func(s string) { b = append(append(b, byte(len(s))), s...) }
	b = be.AppendUint32([]byte(streamMagic), 3)
	b = append(b, secConfig)
	b = be.AppendUint32(b, 10)
	b = append(append(b, "pc-q35-7.2"...), secSub)
	name("configuration/uuid")
	b = append(be.AppendUint32(b, 1), make([]byte, 16)...)
	section := func(typ byte, body func()) {
		b = be.AppendUint32(append(b, typ), 2)
		if typ == secStart {
			name("ram")
			b = be.AppendUint32(be.AppendUint32(b, 0), 4)
		}
		body()
		b = be.AppendUint64(b, ramEnd)
		b = be.AppendUint32(append(b, secFooter), 2)
	}
	page := func(block string, n int, p []byte) {
		flags := uint64(ramPage)
		if isZero(p) {
			flags = ramZero
		}
		if block == "" {
			flags |= ramContinue
		}
		b = be.AppendUint64(b, uint64(n)*4096|flags)
		if block != "" {
			name(block)
		}
		if isZero(p) {
			p = p[:1]
		}
		b = append(b, p...)
	}
	zero := make([]byte, 4096)
	section(secStart, func() {
		b = be.AppendUint64(b, streamRAM+8192|ramSizes)
		name("pc.rom")
		b = be.AppendUint64(b, 8192)
		name("pc.ram")
		b = be.AppendUint64(b, streamRAM)
	})
	section(secPart, func() {
		page("pc.ram", 256, pattern(9, 4096))
		page("", 257, pattern(8, 4096))
		page("pc.rom", 0, pattern(7, 4096))
		for n := range streamRAM / 4096 {
			block := ""
			if n == 0 {
				block = "pc.ram"
			}
			p := zero
			if at := (n - 256) * 4096; at >= 0 && at < len(data) {
				p = data[at : at+4096]
			}
			if n == 256 {
				p = pattern(6, 4096)
			}
			page(block, n, p)
		}
	})
	b = append(b, secCommand, 0, 1, 0, 3, 1, 2, 3)
	section(secEnd, func() { page("", 256, data[:4096]) }) // of the block of the section before
	return append(b, makeStates()...)
}

// saved puts libvirt's header before a stream, byte by byte as its source
// describes it.
func saved(t testing.TB, b []byte, packing uint32) []byte {
	t.Helper()
	var out bytes.Buffer
	switch packing {
	case 1:
		z := gzip.NewWriter(&out)
		if _, err := z.Write(b); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		b = out.Bytes()
	case 5:
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		b = z.EncodeAll(b, nil)
	}
	xml := "<domain type='kvm'><name>web1</name></domain>\x00"
	h := make([]byte, libvirtHeader)
	copy(h, libvirtMagic)
	for i, v := range []uint32{2, uint32(len(xml)), 1, packing} {
		binary.LittleEndian.PutUint32(h[16+4*i:], v)
	}
	return append(append(h, xml...), b...)
}

func streamData() []byte {
	data := pattern(1, 100<<12)
	clear(data[4096:8192])
	return data
}

func TestStreamContract(t *testing.T) {
	data := streamData()
	b := makeStream(data)
	for name, b := range map[string][]byte{"stream": b, "libvirt": saved(t, b, 0), "libvirt gzip": saved(t, b, 1), "libvirt zstd": saved(t, b, 5)} {
		t.Run(name, func(t *testing.T) {
			path := file(t, b)
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: streamRAM}},
				Bytes:  map[mem.PA][]byte{0: make([]byte, 1<<20), 1 << 20: data},
				CPUs:   2,
			})
			m := open(t, path)
			defer m.Close()
			if l := m.(vm.Describer).Info().Layout; !strings.HasPrefix(l, "q35 (of pc-q35-7.2") || strings.Contains(l, "end was not found") {
				t.Errorf("layout %q", l)
			}
			// Two pages of data and zeros between: only those are extents.
			x, err := mem.Extents(m)
			if err != nil || len(x) != 2 || x[0] != (mem.Range{Start: 1 << 20, Size: 4096}) {
				t.Errorf("extents %#x, %v", x, err)
			}
		})
	}
}

func TestStreamRefuses(t *testing.T) {
	data := streamData()
	b := makeStream(data)
	with := func(b []byte, off int, p ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], p)
		return b
	}
	first := bytes.Index(b, []byte("pc.ram")) + 6 + 8 + 8 + 5 // a section's head behind the list of blocks
	page := first + 5
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"version":         {with(b, 7, 2), ErrFormat, "version 2"},
		"cut":             {b[:len(b)/2], ErrTruncated, "before the RAM was complete"},
		"other section":   {with(b, first+4, 9), ErrFormat, "section 9"},
		"another kind":    {with(b, page+6, 0x04), ErrFormat, "kind 0x408"},
		"packed":          {with(b, page+6, 0x01, 0), ErrFormat, "packed to"},
		"a difference":    {with(b, page+7, 0x40), ErrFormat, "difference of kind"},
		"outside":         {with(b, page, 1), ErrFormat, "in no block"},
		"unknown block":   {with(b, page+9, 'x'), ErrFormat, "in no block"},
		"no section":      {with(b, first, 0x33), ErrFormat, "0x33 where a section should begin"},
		"libvirt version": {with(saved(t, b, 0), 16, 7), ErrFormat, "version 7"},
		"libvirt xml":     {with(saved(t, b, 0), 20, 0xff, 0xff, 0xff, 0xff), ErrTruncated, "XML"},
		"libvirt no xz":   {saved(t, b, 3), ErrFormat, "xz"},
		"libvirt no lzop": {saved(t, b, 4), ErrFormat, "lzop"},
		"libvirt no dump": {saved(t, data, 1), ErrFormat, "gzip"},
		"libvirt an ELF":  {saved(t, makeELF(nil, nil, false), 1), ErrFormat, "no stream"},
		"libvirt method":  {saved(t, b, 77), ErrFormat, "method 77"},
		"libvirt cut":     {saved(t, b, 1)[:20000], ErrTruncated, "end is missing"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	m := open(t, file(t, b[:len(b)/2]), AllowTruncated())
	defer m.Close()
	same(t, m, 1<<20+8192, data[8192:16384])
	m = open(t, file(t, b[:len(b)-1]))
	defer m.Close()
	if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, "end was not found") {
		t.Errorf("layout %q", l)
	}
}

// TestStreamMemory tells the guest's RAM from other blocks.
func TestStreamMemory(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		blocks []*ramBlock
		want   string // "": refused
	}{
		{[]*ramBlock{{name: "vga.vram", size: 16 * mib}, {name: "pc.ram", size: 8 * mib}}, "pc.ram"},
		{[]*ramBlock{{name: "pc.bios", size: mib}, {name: "/objects/m", size: 512 * mib}}, "/objects/m"},
		{[]*ramBlock{{name: "a", size: 512 * mib}, {name: "b", size: 512 * mib}}, ""},
		{[]*ramBlock{{name: "pc.bios", size: mib}, {name: "/objects/ram-node1", size: 64 * mib}, {name: "/objects/ram-node0", size: 64 * mib}}, "NUMA nodes"},
		{[]*ramBlock{{name: "ram-node0", size: 64 * mib}, {name: "ram-node2", size: 64 * mib}}, ""},
		{[]*ramBlock{{name: "ram-node0", size: mib}, {name: "ram-node1", size: 64 * mib}}, ""},
		{nil, ""},
	} {
		b, err := (&stream{blocks: c.blocks}).memory()
		if (err == nil) != (c.want != "") || err == nil && b.name != c.want || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%+v: %+v, %v", c.blocks, b, err)
		}
	}
}

func FuzzStream(f *testing.F) {
	data := make([]byte, 8192)
	copy(data, "abc")
	b := makeStream(data)
	f.Add(b)
	f.Add(saved(f, b, 0))
	f.Add(saved(f, b, 1))
	f.Fuzz(fuzzOpen)
}
