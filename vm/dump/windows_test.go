package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

func winRegs() vm.Registers {
	r := stateCPUs()[0]
	return vm.Registers{CR3: r.CR3, RIP: r.RIP, RSP: r.RSP, RFLAGS: r.RFLAGS, CS: r.CS, SS: r.SS, General: r.General}
}

// makeWindows writes a crash dump of 64-bit Windows byte by byte as QEMU's
// win_dump_defs.h and volatility3 describe it: of type 1 with runs of pages, else
// with a bitmap.
func makeWindows(typ uint32, memory map[mem.PA][]byte, order ...mem.PA) []byte {
	le := binary.LittleEndian
	h := make([]byte, winHeader)
	for i := 0; i < len(h); i += 4 {
		copy(h[i:], "PAGE") // as Windows fills it
	}
	copy(h, winMagic)
	le.PutUint32(h[8:], 15)
	le.PutUint32(h[12:], 19041)
	r := winRegs()
	le.PutUint64(h[16:], r.CR3)
	le.PutUint32(h[48:], 0x8664)
	le.PutUint32(h[52:], 2)
	c := h[840:]
	le.PutUint16(c[56:], r.CS)
	le.PutUint16(c[66:], r.SS)
	le.PutUint32(c[68:], uint32(r.RFLAGS))
	for i, v := range r.General {
		le.PutUint64(c[120+8*i:], v)
	}
	le.PutUint64(c[248:], r.RIP)
	le.PutUint32(h[3992:], typ)
	var body []byte
	if typ == 1 {
		le.PutUint32(h[136:], uint32(len(order)))
		for i, pa := range order {
			le.PutUint64(h[152+16*i:], uint64(pa)>>12)
			le.PutUint64(h[160+16*i:], uint64(len(memory[pa]))>>12)
			body = append(body, memory[pa]...)
		}
		return append(h, body...)
	}
	last := order[len(order)-1] + mem.PA(len(memory[order[len(order)-1]]))
	bits := make([]byte, (uint64(last)>>12+7)/8)
	present := uint64(0)
	for _, pa := range order {
		for n := uint64(pa) >> 12; n < (uint64(pa)+uint64(len(memory[pa])))>>12; n++ {
			bits[n/8] |= 1 << (n % 8)
			present++
		}
		body = append(body, memory[pa]...)
	}
	s := make([]byte, 0x38)
	copy(s, "FDMPDUMP")
	if typ != 5 {
		copy(s, "SDMPDUMP")
	}
	first := (winHeader + len(s) + len(bits) + 4095) &^ 4095
	le.PutUint64(s[0x20:], uint64(first))
	le.PutUint64(s[0x28:], present)
	le.PutUint64(s[0x30:], uint64(last)>>12)
	b := append(append(h, s...), bits...)
	return append(append(b, make([]byte, first-len(b))...), body...)
}

func TestWindowsContract(t *testing.T) {
	low, mid, high := pattern(1, 0x9e<<12), pattern(2, 30<<12), pattern(3, 5<<12)
	memory := map[mem.PA][]byte{0x1000: low, 1 << 20: mid, 4 << 30: high}
	order := []mem.PA{0x1000, 1 << 20, 4 << 30}
	var ranges []mem.Range
	for _, pa := range order {
		ranges = append(ranges, mem.Range{Start: pa, Size: uint64(len(memory[pa]))})
	}
	for name, typ := range map[string]uint32{"runs": 1, "kernel": 2, "bitmap": 5} {
		t.Run(name, func(t *testing.T) {
			path := file(t, makeWindows(typ, memory, order...))
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: ranges, Bytes: memory, CPUs: 1})
			m := open(t, path)
			defer m.Close()
			if s := m.(vm.Describer).Info().System; s != "Windows (kernel version 15, build 19041)" {
				t.Errorf("system %q", s)
			}
			if r, err := m.(vm.CPUs).CPUs(t.Context()); err != nil || r[0] != winRegs() {
				t.Errorf("registers %+v, %v", r, err)
			}
		})
	}
}

func TestWindowsRefuses(t *testing.T) {
	data := map[mem.PA][]byte{0x1000: pattern(1, 20<<12), 1 << 20: pattern(2, 20<<12)}
	runs, bits := makeWindows(1, data, 0x1000, 1<<20), makeWindows(5, data, 0x1000, 1<<20)
	with := func(b []byte, off int, p ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], p)
		return b
	}
	for name, c := range map[string]struct {
		file []byte
		is   error
		word string
	}{
		"32 bits":        {with(runs, 4, 'D', 'U', 'M', 'P'), ErrFormat, "32-bit"},
		"a minidump":     {with(runs, 3992, 4), ErrFormat, "type 4"},
		"cut":            {runs[:len(runs)-1], ErrTruncated, "run 1"},
		"cut header":     {runs[:8000], ErrTruncated, "header"},
		"no runs":        {with(runs, 136, 0), ErrFormat, "0 runs"},
		"many runs":      {with(runs, 136, 44), ErrFormat, "44 runs"},
		"a huge run":     {with(runs, 152+15, 1), ErrFormat, "no machine"},
		"empty runs":     {with(with(runs, 160, 0), 176, 0), ErrFormat, "without memory"},
		"no bitmap":      {with(bits, 8192, 'R'), ErrFormat, "RDMPDUMP"},
		"many frames":    {with(bits, 8192+0x35, 1), ErrFormat, "page frames"},
		"a short bitmap": {with(bits, 8192+0x33, 1), ErrTruncated, "its bitmap has"},
		"cut bitmap":     {bits[:8192+0x40], ErrTruncated, "bitmap at offset"},
		"cut pages":      {bits[:len(bits)-1], ErrTruncated, "page frame 0x113"},
	} {
		if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	for _, b := range [][]byte{runs, bits} {
		m := open(t, file(t, b[:len(b)-5000]), AllowTruncated())
		defer m.Close()
		same(t, m, 1<<20, data[1<<20][:18<<12])
	}
}

func FuzzWindows(f *testing.F) {
	data := map[mem.PA][]byte{0x1000: make([]byte, 8192), 0x8000: make([]byte, 4096)}
	f.Add(makeWindows(1, data, 0x1000, 0x8000))
	f.Add(makeWindows(5, data, 0x1000, 0x8000))
	f.Fuzz(fuzzOpen)
}
